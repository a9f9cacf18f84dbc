// fp4_values: what the codes of 4-bit floats stand for.
//
// Math      y = q (s / g), q the number of a code, s the scale of its group, g the matrix's (params.h).
// Layout    4 codes a thread and turn; 16-byte stores where the addresses allow.
// Cost      a byte and a sixteenth or a 32nd of a scale read, a float written: bandwidth-bound. Once a
//           layer, when it is exported.
// Versions  v1 (this).
// Numerics  s / g and the product are rounded once each, as on the CPU.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kValuesRun = 4;  // codes of a thread

template <class T>
__global__ __launch_bounds__(kElementThreads) void expandCodes(const uint8_t* codes, const T* scale,
                                                               const T* given, T* x, int group,
                                                               int64_t runs, bool isWide) {
  const T g = fp4Global(given);
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; i < runs; i += stride) {
    const int64_t at = i * kValuesRun;
    const T s = divRn(scale[at / group], g);
    uint8_t code[kValuesRun];
    if (isWide) {
      const auto all = loadVec<uint8_t, kValuesRun>(codes, i);
#pragma unroll
      for (int e = 0; e < kValuesRun; e++) code[e] = all.lane[e];
    } else {
#pragma unroll
      for (int e = 0; e < kValuesRun; e++) code[e] = codes[at + e];
    }
    constexpr int kStep = kValuesRun < kVecWidth<T> ? kValuesRun : kVecWidth<T>;
#pragma unroll
    for (int part = 0; part < kValuesRun; part += kStep) {
      Vec<T, kStep> y;
#pragma unroll
      for (int e = 0; e < kStep; e++) y.lane[e] = mulRn(T(e2m1Value(code[part + e])), s);
      if (isWide) {
        storeVec(x + at + part, 0, y);
      } else {
#pragma unroll
        for (int e = 0; e < kStep; e++) x[at + part + e] = y.lane[e];
      }
    }
  }
}

}  // namespace

int32_t fp4_values(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const bool isMx = static_cast<const aq_fp4_values_params*>(params)->format == kMxFp4;
  const int64_t runs = numel(in[0]) / kValuesRun;
  if (runs == 0) return AQ_OK;
  return visitFloat(out[0].dtype, err, [&]<class T>() -> int32_t {
    const auto* const codes = static_cast<const uint8_t*>(in[0].data);
    T* const x = static_cast<T*>(out[0].data);
    expandCodes<T><<<elementBlocks(runs), kElementThreads, 0, queue->stream>>>(
        codes, static_cast<const T*>(in[1].data), static_cast<const T*>(in[2].data), x,
        isMx ? kFp4Group<kMxFp4> : kFp4Group<kNvFp4>, runs, isAligned16(codes) && isAligned16(x));
    LAUNCH_CHECK("fp4_values");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
