#include "native/core/tensor.h"

#include "native/core/error.h"

namespace aq {

Buffer::Buffer(std::shared_ptr<Queue> queue, int64_t bytes)
    : queue_(std::move(queue)), bytes_(bytes) {
  if (bytes == 0) return;
  aq_error err{};
  void* data = nullptr;
  const int32_t status =
      queue_->backend().table->alloc(queue_->handle(), uint64_t(bytes), &data, &err);
  if (status != AQ_OK) throw Error{status, err.text};
  data_ = static_cast<char*>(data);
}

Buffer::~Buffer() {
  if (data_) queue_->backend().table->release(queue_->handle(), data_, uint64_t(bytes_));
}

Tensor Tensor::empty(const std::shared_ptr<Queue>& queue, int32_t dtype, Shape shape) {
  const int64_t bytes = aq::numel(shape) * dtypeBytes(dtype);
  return {std::make_shared<Buffer>(queue, bytes), 0, dtype, std::move(shape)};
}

aq_view Tensor::view() const {
  aq_view v{};
  v.data = buffer->data() + byteOffset;
  v.dtype = dtype;
  v.rank = int32_t(shape.size());
  for (size_t i = 0; i < shape.size(); i++) v.dim[i] = shape[i];
  return v;
}

Tensor Tensor::slice(int64_t offset, Shape wanted) const {
  const int64_t count = aq::numel(wanted);
  if (offset < 0 || offset > numel() - count) {
    raise(AQ_SHAPE, "view: %s at element %lld does not fit into %s", toString(wanted).c_str(),
          static_cast<long long>(offset), toString(shape).c_str());
  }
  return {buffer, byteOffset + offset * dtypeBytes(dtype), dtype, std::move(wanted)};
}

namespace {
void checkRange(const Tensor& tensor, int64_t offset, int64_t count, const char* what) {
  if (offset < 0 || count < 0 || offset > tensor.bytes() - count) {
    raise(AQ_ARG, "%s: %lld bytes at %lld are outside a tensor of %lld bytes (%s %s)", what,
          static_cast<long long>(count), static_cast<long long>(offset),
          static_cast<long long>(tensor.bytes()), dtypeName(tensor.dtype),
          toString(tensor.shape).c_str());
  }
}

void copy(const Queue& queue, void* to, const void* from, int64_t count, int32_t kind) {
  if (count == 0) return;
  aq_error err{};
  const int32_t status =
      queue.backend().table->copy(queue.handle(), to, from, uint64_t(count), kind, &err);
  // No wait besides: a copy to the host ends when the bytes are there, one to the device when the
  // host's may be reused (backend.h).
  if (status != AQ_OK) throw Error{status, err.text};
}
}  // namespace

void Tensor::read(void* host, int64_t offset, int64_t count) const {
  checkRange(*this, offset, count, "read");
  copy(queue(), host, buffer->data() + byteOffset + offset, count, AQ_DEVICE_TO_HOST);
}

void Tensor::write(const void* host, int64_t offset, int64_t count) const {
  checkRange(*this, offset, count, "write");
  copy(queue(), buffer->data() + byteOffset + offset, host, count, AQ_HOST_TO_DEVICE);
}

}  // namespace aq
