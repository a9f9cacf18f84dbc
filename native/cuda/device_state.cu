// device_state.cu: counting devices and opening their memory pools (see device_state.h).
#include "native/cuda/device_state.h"

#include "native/cuda/check.h"

namespace aq::cuda {

namespace {
constexpr int32_t kMaxDevices = 64;
}

int32_t deviceCount() {
  // Asked once: CUDA does not see devices come or go within a process either.
  static const int32_t count = [] {
    int found = 0;
    const cudaError_t status = cudaGetDeviceCount(&found);
    (void)cudaGetLastError();
    if (status != cudaSuccess) return 0;
    return found < kMaxDevices ? found : kMaxDevices;
  }();
  return count;
}

DeviceState* stateOf(int32_t device, aq_error* err) {
  static DeviceState states[kMaxDevices];
  const int32_t count = deviceCount();
  if (device < 0 || device >= count) {
    fail(err, AQ_DEVICE, "cuda: there is no device %d; this machine has %d.", device, count);
    return nullptr;
  }
  return &states[device];
}

int32_t prepareDevice(int32_t device, DeviceState& state, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(device));
  const std::lock_guard lock(state.mutex);
  if (state.pool) return AQ_OK;

  int isSupported = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&isSupported, cudaDevAttrMemoryPoolsSupported, device));
  if (!isSupported) {
    return fail(err, AQ_UNSUPPORTED,
                "cuda: device %d has no memory pools, which this backend needs; use another device "
                "or the CPU.",
                device);
  }
  cudaMemPoolProps props = {};
  props.allocType = cudaMemAllocationTypePinned;
  props.location.type = cudaMemLocationTypeDevice;
  props.location.id = device;
  cudaMemPool_t pool = nullptr;
  CUDA_CHECK(cudaMemPoolCreate(&pool, &props));
  // Freed memory stays in the pool: a training step asks for the same sizes again and again, and
  // giving them back to the driver at each synchronization costs milliseconds.
  uint64_t threshold = UINT64_MAX;
  CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  state.pool = pool;
  return AQ_OK;
}

}  // namespace aq::cuda
