// staging.h: copies between the device and pageable host memory, by way of two pinned buffers, so
// that the transfer of one piece runs while the processor copies the next.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "native/abi/backend.h"

namespace aq::cuda {

class CopyThreads;

struct Staging {
  static constexpr int kSlots = 2;
  struct Slot {
    char* data = nullptr;
    cudaEvent_t done = nullptr;  // the last transfer from or to it
  };
  // Made at the first copy that is worth it.
  Slot slots[kSlots] = {};
  CopyThreads* threads = nullptr;
  bool isRefused = false;  // there is no pinned memory to be had
};

// Enqueues a copy to the device; the host's memory may be reused afterwards.
int32_t copyToDevice(aq_queue* queue, void* device, const void* host, uint64_t bytes,
                     aq_error* err);
// Copies to the host, and waits for it.
int32_t copyToHost(aq_queue* queue, void* host, const void* device, uint64_t bytes, aq_error* err);

void closeStaging(Staging& staging);

}  // namespace aq::cuda
