// cublaslt_check.h: the numbers of the product of known values that a library has to get right
// before it is used (cublaslt.cu).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "native/abi/backend.h"
#include "native/cuda/cublaslt_api.h"

namespace aq::cuda::lt {

// Small whole numbers: every sum is exact in every dtype.
inline int32_t testValue(int64_t i) { return int32_t(i * 7 % 11) - 5; }

inline void putValue(char* at, int32_t dtype, int32_t value) {
  const auto put = [at](auto x) { std::memcpy(at, &x, sizeof x); };
  if (dtype == AQ_F64) put(double(value));
  if (dtype == AQ_F32) put(float(value));
  if (dtype == AQ_BF16) put(__float2bfloat16(float(value)));
  if (dtype == AQ_F16) put(__float2half(float(value)));
  if (dtype == AQ_I8) put(int8_t(value));
}

inline double getValue(const char* at, int32_t type) {
  const auto get = [at](auto x) {
    std::memcpy(&x, at, sizeof x);
    return x;
  };
  if (type == kR64F) return get(0.0);
  if (type == kR32I) return get(int32_t(0));
  if (type == kR16BF) return double(__bfloat162float(get(__nv_bfloat16())));
  return double(get(0.0f));
}

// What a result holds where the exact sum is `sum`.
inline double storedSum(int64_t sum, int32_t type) {
  const double value = double(sum);
  return type == kR16BF ? double(__bfloat162float(__float2bfloat16(float(value)))) : value;
}

}  // namespace aq::cuda::lt
