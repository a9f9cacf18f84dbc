// grid_value.cuh: how values are rounded on a uniform grid (quant_grid, fake_quant in params.h),
// for the kernels that do it to many values of one group.
#pragma once
#include <cmath>
#include <type_traits>

namespace aq::cuda {

// Adding this to an f32 below 2^22 rounds it to a whole number, ties to even, and leaves that
// number in the low bits.
inline constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// One group's grid: codes 0 .. top, where code = clamp(round(x / scale + v) + zero, 0, top) stands
// for (code - zero) scale.
template <class T>
struct GridValue {
  T scale, zero, top;

  __device__ GridValue(T s, T z, T largest) : scale(s), zero(z), top(largest) {
    if constexpr (std::is_same_v<T, float>) {
      inverse_ = 1.0f / s;
      // Quotients beyond `reach` are clamped, whichever way they are rounded. Within it the product
      // with the reciprocal is wrong by less than reach * 2^-21, also against a rounded quotient.
      const float reach = largest + fabsf(z) + 2;
      const bool isPlain = s > 1e-18f && s < 1e18f && reach < 65536;
      surely_ = isPlain ? 0.5f - reach * 0x1p-21f : -1.0f;
    }
  }

  // round(x / scale + v) of N values, with the bits that division and rounding give. For f32 it
  // multiplies by the reciprocal, which rounds to the same number unless the quotient is close to a
  // tie, or not finite: then it divides, and returns true. Only then a result can be NaN.
  template <int N, bool kOffset>
  __device__ bool round(const T (&x)[N], const T (&v)[N], T (&whole)[N]) const {
    if constexpr (std::is_same_v<T, float>) {
      bool isSure = true;
#pragma unroll
      for (int e = 0; e < N; e++) {
        const float near = kOffset ? fmaf(x[e], inverse_, v[e]) : 0.0f;
        const float moved = kOffset ? near + kRounder : fmaf(x[e], inverse_, kRounder);
        whole[e] = moved - kRounder;
        const float rest = kOffset ? near - whole[e] : fmaf(x[e], inverse_, -whole[e]);
        isSure = isSure && fabsf(rest) <= surely_;
        if constexpr (kOffset) isSure = isSure && fabsf(v[e]) <= 1.0f;
      }
      if (isSure) return false;
    }
#pragma unroll
    for (int e = 0; e < N; e++) whole[e] = rint(x[e] / scale + v[e]);
    return true;
  }

 private:
  float inverse_ = 0, surely_ = -1;
};

}  // namespace aq::cuda
