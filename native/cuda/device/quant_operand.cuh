// quant_operand.cuh: what quant_operand does with a group: its extremes, its grid, its codes
// written.
#pragma once
#include <cstdint>

#include "native/cuda/device/biased_code.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/group.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kMostThreads = 512;  // of a block that shares a group

template <class S>
struct OperandCall {
  using T = Wide<S>;
  const S* x;
  const T* v;  // offsets and factors, or null
  const T* r;
  const T* c;
  ClipLogits<T> clip;
  T* scale;
  T* zero;
  void* y;
  int32_t dtype;          // of y
  __nv_bfloat16* values;  // beside y in int8, or null
  Groups groups;
  GridRule<T> rule;
  bool isBeside;  // the pass in front (passes.h)

  // Where a group's columns have their factors, and the factor of its row.
  __device__ const T* columns(int64_t group) const {
    return c ? c + groups.column(group) : nullptr;
  }
  __device__ T row(int64_t group) const { return r ? r[groups.row(group)] : T(1); }

  __device__ T seed(const S* from, T row, const T* columns) const {
    if (!rule.published) return T(0);
    const T first = mulRn(row, T(from[0]));
    return columns ? mulRn(first, columns[0]) : first;
  }
};

// ---------------------------------------------------------------- what lanes find out together

// Smallest and largest over a block of any number of whole warps. Called at most once by a kernel.
__device__ inline void blockExtremes(float& low, float& high) {
  __shared__ float lows[kMostThreads / kWarp], highs[kMostThreads / kWarp];
  neighbourExtremes<kWarp>(low, high);
  if (threadIdx.x % kWarp == 0) {
    lows[threadIdx.x / kWarp] = low;
    highs[threadIdx.x / kWarp] = high;
  }
  __syncthreads();
  const int other = threadIdx.x % kWarp % (blockDim.x / kWarp);
  low = lows[other];
  high = highs[other];
  neighbourExtremes<kWarp>(low, high);
}

template <int kLanes>
__device__ inline bool groupAny(bool flag) {
  if constexpr (kLanes == kBlock || kLanes > kWarp) {
    return __syncthreads_or(flag) != 0;
  } else {
    const unsigned first = threadIdx.x % kWarp / kLanes * kLanes;
    return (__ballot_sync(~0u, flag) >> first & (~0u >> (kWarp - kLanes))) != 0;
  }
}

// The grid of a group from its extremes.
template <class T>
struct FoundGrid {
  T s, z;

  template <class S>
  __device__ FoundGrid(const OperandCall<S>& a, const ClipFactors<T>& clip, T low, T high) {
    low = mulRn(low, clip.low);
    s = a.rule.scale(low, mulRn(high, clip.high));
    z = a.rule.zeroPoint(low, s);
  }
};

// ---------------------------------------------------------------- in vectors

template <class S, int kVec>
__device__ inline void scaledValues(const Vec<S, kVec>& raw, float r, const float* c, int64_t k,
                                    float (&x)[kVec]) {
#pragma unroll
  for (int e = 0; e < kVec; e++) x[e] = mulRn(r, static_cast<float>(raw.lane[e]));
  if (!c) return;
  const Vec<float, kVec> factor = loadRun<float, kVec>(c, k);
#pragma unroll
  for (int e = 0; e < kVec; e++) x[e] = mulRn(x[e], factor.lane[e]);
}

// Packs biased codes as int8; those that are NaN become 0. Returns whether there are any.
template <int kVec>
__device__ inline bool packBytes(const float (&biased)[kVec], Vec<uint32_t, kVec / 4>& bytes) {
  constexpr uint32_t kOnlyNaN = 1u << 28;  // a bit of NaN that no biased code has
  uint32_t code[kVec], any = 0;
#pragma unroll
  for (int e = 0; e < kVec; e++) {
    code[e] = __float_as_uint(biased[e]);
    any |= code[e];
  }
  const bool isNone = (any & kOnlyNaN) != 0;
  if (isNone) {
#pragma unroll
    for (int e = 0; e < kVec; e++) code[e] = code[e] & kOnlyNaN ? 0 : code[e];
  }
#pragma unroll
  for (int q = 0; q < kVec / 4; q++) {
    const uint32_t front = __byte_perm(code[4 * q], code[4 * q + 1], 0x0040);
    const uint32_t back = __byte_perm(code[4 * q + 2], code[4 * q + 3], 0x0040);
    bytes.lane[q] = __byte_perm(front, back, 0x5410);
  }
  return isNone;
}

// Writes the vectors of a group whose first number has the place `begin`; place(i) is where vector
// i goes, or negative. Returns whether a code that is to be an int8 is none.
template <int kVec, int kBatch, class Place>
__device__ inline bool writeAll(void* y, __nv_bfloat16* beside, int32_t dtype, int64_t begin,
                                const float (&biased)[kBatch][kVec], float s, Place&& place) {
  bool isNone = false;
  const auto values = [&](int i) {
    Vec<float, kVec> value;
#pragma unroll
    for (int e = 0; e < kVec; e++) value.lane[e] = mulRn(addRn(biased[i][e], -kBias), s);
    return value;
  };
  if (dtype == AQ_I8) {
    uint32_t* const to = reinterpret_cast<uint32_t*>(static_cast<int8_t*>(y) + begin);
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      Vec<uint32_t, kVec / 4> bytes;
      isNone = packBytes<kVec>(biased[i], bytes) || isNone;
      if (place(i) >= 0) storeVec(to, place(i), bytes);
      if (beside && place(i) >= 0)
        storeVec(beside + begin, place(i), narrow<__nv_bfloat16>(values(i)));
    }
  } else if (dtype == AQ_BF16) {
    __nv_bfloat16* const to = static_cast<__nv_bfloat16*>(y) + begin;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (place(i) >= 0) storeVec(to, place(i), narrow<__nv_bfloat16>(values(i)));
    }
  } else if (dtype == AQ_F16) {
    __half* const to = static_cast<__half*>(y) + begin;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (place(i) >= 0) storeVec(to, place(i), narrow<__half>(values(i)));
    }
  } else {
    float* const to = static_cast<float*>(y) + begin;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (place(i) >= 0) storeVec(to, place(i), values(i));
    }
  }
  return isNone;
}

}  // namespace aq::cuda
