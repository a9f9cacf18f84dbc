// scratch.h: temporary device memory of one kernel call, from the queue's pool and in its order: the
// next use of the same bytes runs after this call's kernels, so nothing is waited for.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

class Scratch {
 public:
  explicit Scratch(aq_queue* queue) : queue_(queue) {}
  ~Scratch() { giveMemory(queue_, data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // AQ_OK, or AQ_OOM with the number of bytes. `what` names the kernel. Call once.
  int32_t allocate(uint64_t bytes, const char* what, aq_error* err) {
    const cudaError_t status = takeMemory(queue_, bytes, &data_);
    bytes_ = bytes;
    if (status == cudaSuccess) return AQ_OK;
    (void)cudaGetLastError();
    if (status != cudaErrorMemoryAllocation) return failCuda(err, status, "taking scratch memory");
    return fail(err, AQ_OOM,
                "%s: device %d is out of memory for %llu bytes of scratch; use a smaller batch or "
                "sequence length, or free the device of other programs.",
                what, queue_->device, static_cast<unsigned long long>(bytes));
  }

  // The memory from byte `offset` on; keep offsets multiples of 256.
  template <class T>
  T* at(uint64_t offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset);
  }

 private:
  aq_queue* queue_;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// Sizes of parts of one scratch, each starting at a multiple of 256 bytes.
constexpr uint64_t scratchBytes(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace aq::cuda
