// plain_operand.cuh: quant_operand of a matrix as it lies, without factors and offsets, at few
// instructions and registers: numbers stay as they were read, and codes are written before it is
// known whether all of them were sure.
#pragma once
#include <cstdint>
#include <type_traits>

#include "native/cuda/device/biased_code.cuh"
#include "native/cuda/device/quant_operand.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/stored.cuh"

namespace aq::cuda {

// Smallest and largest of what a thread has. Short numbers are compared in pairs.
template <class S, int kVec, int kBatch>
__device__ inline void ownExtremes(const Vec<S, kVec> (&raw)[kBatch], float& low, float& high) {
  if constexpr (kIsShort<S>) {
    using Pair = std::conditional_t<std::is_same_v<S, __half>, __half2, __nv_bfloat162>;
    Pair lows[kVec / 2], highs[kVec / 2];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      Vec<Pair, kVec / 2> pairs;
      memcpy(&pairs, &raw[i], sizeof pairs);
#pragma unroll
      for (int e = 0; e < kVec / 2; e++) {
        lows[e] = i ? __hmin2(lows[e], pairs.lane[e]) : pairs.lane[e];
        highs[e] = i ? __hmax2(highs[e], pairs.lane[e]) : pairs.lane[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kVec / 2; e++) {
      low = fminf(low, fminf(float(lows[e].x), float(lows[e].y)));
      high = fmaxf(high, fmaxf(float(highs[e].x), float(highs[e].y)));
    }
  } else {
    float lows[kVec], highs[kVec];
#pragma unroll
    for (int e = 0; e < kVec; e++) lows[e] = low, highs[e] = high;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        lows[e] = fminf(lows[e], raw[i].lane[e]);
        highs[e] = fmaxf(highs[e], raw[i].lane[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      low = fminf(low, lows[e]);
      high = fmaxf(high, highs[e]);
    }
  }
}

// Where codes go: as int8, and beside them as bf16.
struct CodesAndValues {
  void* codes;
  __nv_bfloat16* values;
};

// Codes on their way to memory as numbers of type Y, or as both.
template <class Y, int kVec, class To>
__device__ inline bool storeCodes(To y, int64_t begin, int place, const float (&biased)[kVec],
                                  float s) {
  if constexpr (std::is_same_v<To, CodesAndValues>) {
    const bool isNone = storeCodes<int8_t, kVec>(y.codes, begin, place, biased, s);
    storeCodes<__nv_bfloat16, kVec>(static_cast<void*>(y.values), begin, place, biased, s);
    return isNone;
  } else if constexpr (std::is_same_v<Y, int8_t>) {
    Vec<uint32_t, kVec / 4> bytes;
    const bool isNone = packBytes<kVec>(biased, bytes);
    uint32_t* const to = reinterpret_cast<uint32_t*>(static_cast<int8_t*>(y) + begin);
    if (place >= 0) storeVec(to, place, bytes);
    return isNone;
  } else {
    Vec<float, kVec> value;
#pragma unroll
    for (int e = 0; e < kVec; e++) value.lane[e] = mulRn(addRn(biased[e], -kBias), s);
    if (place >= 0) storeVec(static_cast<Y*>(y) + begin, place, narrow<Y>(value));
    return false;
  }
}

// Writes all that a thread has, vector i at place(i); returns whether an int8 is no number.
template <class Y, class S, int kVec, int kBatch, class To, class Place>
__device__ inline bool writeCodes(To y, int64_t begin, const Vec<S, kVec> (&raw)[kBatch],
                                  const BiasedCode& codes, float s, Place&& place) {
  uint32_t doubts = codes.isPlain() ? 0 : 1;
  bool isNone = false;
  if (doubts == 0) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const Vec<float, kVec> x = widen(raw[i]);
      float biased[kVec];
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const float below = __fmaf_rn(x.lane[e], codes.below, kBias);
        doubts |=
            __float_as_uint(below) ^ __float_as_uint(__fmaf_rn(x.lane[e], codes.above, kBias));
        biased[e] = codes.clamp(below);
      }
      isNone = storeCodes<Y, kVec>(y, begin, place(i), biased, s) || isNone;
    }
  }
  if (doubts == 0) return isNone;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const Vec<float, kVec> sure = sureCodes<kVec>(codes.exact, widen(raw[i]), {});
    isNone = storeCodes<Y, kVec>(y, begin, place(i), sure.lane, s) || isNone;
  }
  return isNone;
}

}  // namespace aq::cuda
