// packed.cuh: codes of activations, and loads and stores of results, for the
// ops on packed weights.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "native/cuda/packed.h"

namespace aq::cuda::packed {

// The code of x on a grid of codes 0 .. top.
template <class T>
__device__ T codeOf(T x, T scale, T zero, T top) {
  const T code = rint(x / scale) + zero;
  return code < T(0) ? T(0) : code > top ? top : code;  // a NaN stays
}

// Loads and stores of results by the number of their type.
__device__ inline float loadAs(int32_t dtype, const void* data, int64_t i) {
  if (dtype == AQ_BF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  if (dtype == AQ_F16) return __half2float(static_cast<const __half*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
__device__ inline void storeAs(int32_t dtype, void* data, int64_t i, float value) {
  if (dtype == AQ_BF16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  } else if (dtype == AQ_F16) {
    static_cast<__half*>(data)[i] = __float2half_rn(value);
  } else {
    static_cast<float*>(data)[i] = value;
  }
}

}  // namespace aq::cuda::packed
