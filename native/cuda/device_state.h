// device_state.h: what the backend keeps per device for the life of the process: a memory pool of
// its own and the byte counts that `memory` reports. Thread-safe.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <mutex>

#include "native/abi/backend.h"

namespace aq::cuda {

struct DeviceState {
  std::mutex mutex;  // guards the creation of `pool`
  cudaMemPool_t pool = nullptr;
  std::atomic<uint64_t> usedBytes{0};
  std::atomic<uint64_t> peakBytes{0};

  void countAlloc(uint64_t bytes) {
    const uint64_t used = usedBytes.fetch_add(bytes) + bytes;
    uint64_t peak = peakBytes.load();
    while (peak < used && !peakBytes.compare_exchange_weak(peak, used)) {}
  }
  void countRelease(uint64_t bytes) { usedBytes.fetch_sub(bytes); }
};

// The number of devices; 0 where there is no GPU or no usable driver, which is no error.
int32_t deviceCount();

// The state of `device`, or nullptr and *err for a number outside 0 .. deviceCount() - 1.
DeviceState* stateOf(int32_t device, aq_error* err);

// Makes the device current on this thread and its pool exist.
int32_t prepareDevice(int32_t device, DeviceState& state, aq_error* err);

}  // namespace aq::cuda
