// stored.cuh: numbers that lie short (bf16 and f16, S and G in params.h) and are computed with in
// f32. f32 and f64 lie as they are computed with.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native/abi/backend.h"
#include "native/cuda/check.h"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// What numbers of type S are computed with in.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
inline constexpr bool kIsShort = sizeof(S) == 2;

inline bool isShortType(int32_t dtype) { return dtype == AQ_BF16 || dtype == AQ_F16; }

// Bytes of a stored number.
inline int64_t elementBytes(int32_t dtype) {
  return dtype == AQ_F64 ? 8 : (isShortType(dtype) ? 2 : 4);
}

// N neighbouring numbers in accesses of 16 bytes at most, as they are aligned beside a vector of N
// short ones.
template <class T, int N>
__device__ inline Vec<T, N> loadRun(const T* data, int64_t index) {
  constexpr int kStep = N < kVecWidth<T> ? N : kVecWidth<T>;
  Vec<T, N> run;
#pragma unroll
  for (int part = 0; part < N / kStep; part++) {
    const Vec<T, kStep> piece = loadVec<T, kStep>(data, index * (N / kStep) + part);
#pragma unroll
    for (int e = 0; e < kStep; e++) run.lane[part * kStep + e] = piece.lane[e];
  }
  return run;
}

template <class S, int N>
__device__ inline Vec<Wide<S>, N> widen(const Vec<S, N>& x) {
  Vec<Wide<S>, N> y;
#pragma unroll
  for (int e = 0; e < N; e++) y.lane[e] = static_cast<Wide<S>>(x.lane[e]);
  return y;
}

// To nearest, ties to even.
template <class S, int N>
__device__ inline Vec<S, N> narrow(const Vec<Wide<S>, N>& x) {
  if constexpr (kIsShort<S> && N % 2 == 0) {
    using Pair = std::conditional_t<std::is_same_v<S, __half>, __half2, __nv_bfloat162>;
    Vec<Pair, N / 2> pairs;
#pragma unroll
    for (int e = 0; e < N / 2; e++) {
      const float2 both = {x.lane[2 * e], x.lane[2 * e + 1]};
      if constexpr (std::is_same_v<S, __half>) {
        pairs.lane[e] = __float22half2_rn(both);
      } else {
        pairs.lane[e] = __float22bfloat162_rn(both);
      }
    }
    Vec<S, N> y;
    memcpy(&y, &pairs, sizeof y);
    return y;
  } else {
    Vec<S, N> y;
#pragma unroll
    for (int e = 0; e < N; e++) y.lane[e] = static_cast<S>(x.lane[e]);
    return y;
  }
}

// Calls f.operator()<S>() for the type of a stored number.
template <class F>
int32_t visitStored(int32_t dtype, aq_error* err, F&& f) {
  switch (dtype) {
    case AQ_F64:
      return f.template operator()<double>();
    case AQ_F32:
      return f.template operator()<float>();
    case AQ_BF16:
      return f.template operator()<__nv_bfloat16>();
    case AQ_F16:
      return f.template operator()<__half>();
    default:
      return fail(err, AQ_DTYPE, "cuda: this kernel takes f64, f32, bf16 or f16, not dtype %d.",
                  dtype);
  }
}

// The type of a gradient of numbers of type S.
template <class S>
using GradientOf = std::conditional_t<kIsShort<S>, __nv_bfloat16, S>;

}  // namespace aq::cuda
