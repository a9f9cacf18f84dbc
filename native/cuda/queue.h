// queue.h: a queue of the CUDA backend is a device, a stream of it, and what its kernels share. One
// thread uses a queue at a time; work on one queue runs in order.
#pragma once
#include <cuda_runtime.h>

#include "native/cuda/block_cache.h"
#include "native/cuda/fault.h"
#include "native/cuda/graph.h"
#include "native/cuda/reading.h"
#include "native/cuda/staging.h"

namespace aq::cuda {

// How the products of f32 tensors are computed: operands rounded to bf16 or f16 with f32 sums on the
// tensor cores, or f32 throughout.
enum class Precision { kF32, kBf16, kF16 };

struct Blas;    // gemm.cu: the cuBLASLt handle and its plans, made at the first product
class PassRun;  // passes.h: kernels at the queue's end that may run side by side

}  // namespace aq::cuda

struct aq_queue {
  int device;
  cudaStream_t stream;
  cudaMemPool_t pool;                // the device's (device_state.h); scratch comes from it
  int multiprocessors;               // of the device
  int computeCapability;             // 90 for 9.0
  aq::cuda::Fault* fault = nullptr;  // pinned host memory that kernels write to (fault.h)
  uint32_t* ticket = nullptr;        // device memory, 0 between kernels (device/last_block.cuh)
  aq::cuda::Precision precision = aq::cuda::Precision::kF32;
  aq::cuda::Blas* blas = nullptr;
  uint64_t calls = 0;  // of functions that may have enqueued something
  aq::cuda::PassRun* passes = nullptr;
  const void* attended = nullptr;  // keys of the last cached_attention
  aq::cuda::BlockCache cache = {};
  aq::cuda::Recorder recorder = {};
  aq::cuda::Staging staging = {};
  aq::cuda::SpareReadings readings = {};
};
