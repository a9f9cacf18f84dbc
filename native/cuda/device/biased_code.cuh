// biased_code.cuh: codes of a uniform grid for vectors of f32 numbers, at a few instructions each.
//
// A biased code is kBias + (code - zero), an f32 whose low bits hold the whole number: it is what
// rounding by an addition leaves behind, it can be clamped as it is, and one subtraction gives the
// number itself. The code is the one that division and rounding give (device/grid.cuh): the
// quotient is taken with a reciprocal that is surely too small and one that is surely too large,
// and where both round to the same number, so does every quotient between them. Else, and where
// the scale is extreme, it divides.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr float kBias = 12582912.0f;  // 1.5 * 2^23: f32 beside it are whole numbers

// The biased codes of x with rounding offsets v, which may be zeros; NaN stays NaN. Not inlined:
// where it is rare, it should not stand in the way of the instructions around it.
template <int N>
__device__ __noinline__ Vec<float, N> sureCodes(GridCode<float> grid, Vec<float, N> x,
                                                Vec<float, N> v) {
#pragma unroll
  for (int e = 0; e < N; e++)
    x.lane[e] = addRn(kBias, addRn(grid.code(x.lane[e], v.lane[e]), -grid.z));
  return x;
}

struct BiasedCode {
  GridCode<float> exact;
  float below, above;     // the reciprocal of the scale from either side
  float lowest, highest;  // biased codes of 0 and top

  __device__ BiasedCode(float scale, float zero, float top) : exact(scale, zero, top) {
    lowest = addRn(kBias, -zero);
    highest = addRn(kBias, addRn(top, -zero));
    below = mulRn(exact.inverse, 1.0f - 0x1p-22f);
    above = mulRn(exact.inverse, 1.0f + 0x1p-22f);
  }

  // Without a usable reciprocal, or a zero point, everything is divided.
  __device__ bool isPlain() const { return exact.inverse != 0 && fabsf(exact.z) < 65536.0f; }

  __device__ float clamp(float biased) const { return atMost(atLeast(biased, lowest), highest); }

  // Not 0 where the reciprocals disagree about a code of x.
  template <int N>
  __device__ uint32_t doubts(const float (&x)[N]) const {
    uint32_t differ = 0;
#pragma unroll
    for (int e = 0; e < N; e++) {
      differ |= __float_as_uint(__fmaf_rn(x[e], below, kBias)) ^
                __float_as_uint(__fmaf_rn(x[e], above, kBias));
    }
    return differ;
  }

  // The biased code of x where nothing was in doubt; NaN stays NaN.
  __device__ float quick(float x) const { return clamp(__fmaf_rn(x, below, kBias)); }
};

}  // namespace aq::cuda
