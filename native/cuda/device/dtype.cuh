// dtype.cuh: from the dtype number of a view to a C++ type, and element conversions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <limits>

#include "native/abi/backend.h"
#include "native/cuda/check.h"

namespace aq::cuda {

// Calls f.operator()<T>() for a compute type, float or double.
template <class F>
int32_t visitFloat(int32_t dtype, aq_error* err, F&& f) {
  switch (dtype) {
    case AQ_F32:
      return f.template operator()<float>();
    case AQ_F64:
      return f.template operator()<double>();
    default:
      return fail(err, AQ_DTYPE, "cuda: this kernel takes f32 or f64, not dtype %d.", dtype);
  }
}

// Calls f.operator()<T>() for any element type.
template <class F>
int32_t visitAny(int32_t dtype, aq_error* err, F&& f) {
  switch (dtype) {
    case AQ_F64:
      return f.template operator()<double>();
    case AQ_F32:
      return f.template operator()<float>();
    case AQ_BF16:
      return f.template operator()<__nv_bfloat16>();
    case AQ_F16:
      return f.template operator()<__half>();
    case AQ_I32:
      return f.template operator()<int32_t>();
    case AQ_I8:
      return f.template operator()<int8_t>();
    case AQ_U8:
      return f.template operator()<uint8_t>();
    default:
      return fail(err, AQ_DTYPE, "cuda: there is no dtype %d.", dtype);
  }
}

// Double holds every value of every element type, so a conversion through it rounds once.
template <class T>
__device__ inline double toDouble(T x) {
  return static_cast<double>(x);
}
template <>
__device__ inline double toDouble(__nv_bfloat16 x) {
  return static_cast<double>(__bfloat162float(x));
}
template <>
__device__ inline double toDouble(__half x) {
  return static_cast<double>(__half2float(x));
}

template <class T>
inline constexpr double kLowest = std::numeric_limits<T>::lowest();
template <class T>
inline constexpr double kHighest = std::numeric_limits<T>::max();

// To nearest, ties to even; integers saturate, and NaN becomes 0 there.
template <class T>
__device__ inline T fromDouble(double x) {
  if constexpr (std::numeric_limits<T>::is_integer) {
    return isnan(x) ? T(0) : static_cast<T>(fmin(fmax(rint(x), kLowest<T>), kHighest<T>));
  } else {
    return static_cast<T>(x);
  }
}
template <>
__device__ inline __nv_bfloat16 fromDouble(double x) {
  return __double2bfloat16(x);
}
template <>
__device__ inline __half fromDouble(double x) {
  return __double2half(x);
}

}  // namespace aq::cuda
