// tensor.h: device memory with a shape.
//
// A Tensor is a value: copying it shares the buffer. Memory goes back to its queue when the last
// tensor (or view) that uses it goes. Tensors are contiguous; a view is a range of elements of
// another tensor under a new shape.
#pragma once
#include <memory>

#include "native/core/device.h"
#include "native/core/shape.h"

namespace aq {

class Buffer {
 public:
  Buffer(std::shared_ptr<Queue> queue, int64_t bytes);  // raises AQ_OOM
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  const std::shared_ptr<Queue>& queue() const { return queue_; }

 private:
  std::shared_ptr<Queue> queue_;
  char* data_ = nullptr;
  int64_t bytes_;
};

struct Tensor {
  std::shared_ptr<Buffer> buffer;
  int64_t byteOffset = 0;
  int32_t dtype = AQ_F32;
  Shape shape;

  static Tensor empty(const std::shared_ptr<Queue>& queue, int32_t dtype, Shape shape);

  int64_t numel() const { return aq::numel(shape); }
  int64_t bytes() const { return numel() * dtypeBytes(dtype); }
  const Queue& queue() const { return *buffer->queue(); }
  aq_view view() const;

  // Elements [offset, offset + numel(shape)) under a new shape. Raises AQ_SHAPE outside the tensor.
  Tensor slice(int64_t offset, Shape shape) const;

  // Host copies of bytes [offset, offset + count). Reading waits for the queue; writing may not.
  void read(void* host, int64_t offset, int64_t count) const;
  void write(const void* host, int64_t offset, int64_t count) const;
};

}  // namespace aq
