// fp4.cuh: 4-bit floats: e2m1 elements, and the e4m3 or power-of-two scales of their groups.
//
// The same operations in the same order as on the CPU (native/cpu/kernels/fp4.h), each rounded by
// itself, so that codes next to a tie are the same on both.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"

namespace aq::cuda {

inline constexpr int kNvFp4 = 0, kMxFp4 = 1;  // the parameter `format`

// Columns of a group.
template <int kFormat>
inline constexpr int kFp4Group = kFormat == kNvFp4 ? 16 : 32;

template <class T>
inline constexpr T kFp4Most = T(6);  // the largest element
template <class T>
inline constexpr T kE4m3Least = T(0x1p-9);
template <class T>
inline constexpr T kE4m3Most = T(448);

// ---------------------------------------------------------------- roundings

// The power of two at or below |x|: 0 where x is subnormal, infinite where it is not finite.
__device__ inline float powerBelow(float x) {
  return __uint_as_float(__float_as_uint(x) & 0x7f800000u);
}
__device__ inline double powerBelow(double x) {
  return __longlong_as_double(__double_as_longlong(x) & 0x7ff0000000000000ll);
}

// Adding and taking away kWholes times a power of two rounds to multiples of that, ties to even ones;
// zeros come out positive.
template <class T>
inline constexpr T kWholes = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);

// e4m3fn of 2^-9 <= x <= 448, ties to even; NaN stays. What is added is exact: the products are not
// rounded, and each sum is once.
__device__ inline float roundE4m3(float x) {
  const float power = fmaxf(powerBelow(x), 0x1p-6f);
  constexpr float kLarge = kWholes<float> * 0.125f;
  return __fmaf_rn(power, -kLarge, __fmaf_rn(power, kLarge, x));
}
__device__ inline double roundE4m3(double x) {
  const double power = fmax(powerBelow(x), 0x1p-6);
  constexpr double kLarge = kWholes<double> * 0.125;
  return __fma_rn(power, -kLarge, __fma_rn(power, kLarge, x));
}

// e2m1 of |x| <= 6, ties to the even code, the same way; NaN stays.
__device__ inline float roundE2m1(float x) {
  const float power = fmaxf(powerBelow(x), 1.0f);
  constexpr float kLarge = kWholes<float> * 0.5f;
  return __fmaf_rn(power, -kLarge, __fmaf_rn(power, kLarge, x));
}
__device__ inline double roundE2m1(double x) {
  const double power = fmax(powerBelow(x), 1.0);
  constexpr double kLarge = kWholes<double> * 0.5;
  return __fma_rn(power, -kLarge, __fma_rn(power, kLarge, x));
}

// How far apart the elements near u are.
template <class T>
__device__ inline T e2m1Step(T u) {
  return fmin(fmax(powerBelow(u), T(1)), T(4)) * T(0.5);
}

// The code of an element; 0 for NaN, whose scale is one.
__device__ inline uint32_t e2m1Code(float q) {
  const uint32_t bits = __float_as_uint(q);
  if (!(fabsf(q) > 0)) return 0;
  // Exponent and first place of the mantissa count the codes from 1.0 on, which is 2.
  return (max(bits >> 22 & 0x1ffu, 253u) - 252u) | (bits >> 28 & 8u);
}

__device__ inline float e2m1Value(uint32_t code) {
  const uint32_t doubled = __byte_perm(0x03020100u, 0x0c080604u, code & 7u) & 0xffu;
  return __uint_as_float(__float_as_uint(static_cast<float>(doubled) * 0.5f) | (code & 8u) << 28);
}

// share with the sign of x turned into it.
__device__ inline float withSign(float share, float x) {
  return __uint_as_float(__float_as_uint(share) ^ (__float_as_uint(x) & 0x80000000u));
}
__device__ inline double withSign(double share, double x) { return x < 0 ? -share : share; }

// The larger one; NaN wins.
__device__ inline float maxOrNaN(float a, float b) { return atLeast(a, b); }
__device__ inline double maxOrNaN(double a, double b) { return a > b || a != a ? a : b; }

// ---------------------------------------------------------------- scales

// a / 6, rounded once: the residual corrects the product with 1 / 6 (Markstein).
__device__ inline bool isUsualSixth(float a) { return a > 0x1p-100f && a < 0x1p127f; }
__device__ inline float usualSixth(float a) {
  constexpr float kSixth = 1.0f / 6.0f;
  const float q = mulRn(a, kSixth);
  return __fmaf_rn(__fmaf_rn(-q, 6.0f, a), kSixth, q);
}
__device__ inline float sixth(float a) { return isUsualSixth(a) ? usualSixth(a) : divRn(a, 6.0f); }
__device__ inline double sixth(double a) { return divRn(a, 6.0); }

// 1 / x to a unit or two in the last place, of an x whose inverse is not subnormal.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same, rounded to nearest: of numbers from 1 on as the compiler divides, and of scales of four bits.
__device__ inline float inverseOf(float x) {
  const float near = reciprocal(x);
  return __fmaf_rn(near, __fmaf_rn(-x, near, 1.0f), near);
}

// What 1 is divided by for clipFactor, bit for bit, in fewer instructions.
__device__ inline float clipDivisor(float logit) {
  // What e^x is below -60 does not show beside 1.
  const float x = atMost(atLeast(-logit, -60.0f), 89.0f);
  const float moved = addRn(mulRn(x, 1.44269504088896341f), kWholes<float>);
  const float n = addRn(moved, -kWholes<float>);
  const float p = expOfRest(x, n);
  // 2^(n - 1): n is in the lowest places of `moved`.
  const float power = __uint_as_float((__float_as_uint(moved) << 23) + (126u << 23));
  return addRn(mulRn(mulRn(p, power), 2.0f), 1.0f);
}

// clipFactor in fewer instructions.
__device__ inline float fp4Clip(float logit) {
  const float divisor = clipDivisor(logit);
  return divisor < 0x1p125f ? inverseOf(divisor) : divRn(1.0f, divisor);
}
__device__ inline double fp4Clip(double logit) { return clipFactor(logit); }

// The matrix's global scale: 1 where it has none, or an infinite one.
template <class T>
__device__ inline T fp4Global(const T* g) {
  const T given = g ? *g : T(1);
  return isfinite(given) ? given : T(1);
}

// 2^(e - 2) of a, and 1 / s of such a scale.
__device__ inline float mxScale(float a) {
  const uint32_t power = (__float_as_uint(a) + 0x00200000u) & 0x7f800000u;
  return a == a ? __uint_as_float(max(power, 0x01800000u) - 0x01000000u) : a;
}
__device__ inline double mxScale(double a) {
  constexpr long long kPlace = 1ll << 52;
  const long long power = (__double_as_longlong(a) + (1ll << 50)) & 0x7ff0000000000000ll;
  const long long kept = min(max(power, (1023 - 124) * kPlace), (1023 + 129) * kPlace);
  return a == a ? __longlong_as_double(kept - 2 * kPlace) : a;
}

// What a group's scale comes from: f max |x|, and what that is before it is rounded (NVFP4).
template <class T, int kFormat>
struct Fp4Scale {
  T clipped;  // a
  T raw;      // a / 6 g

  Fp4Scale() = default;
  __device__ Fp4Scale(T factor, T largest, T g) : clipped(mulRn(factor, largest)), raw(0) {
    if constexpr (kFormat == kNvFp4) raw = mulRn(sixth(clipped), g);
  }

  __device__ T rounded() const {
    if constexpr (kFormat == kNvFp4)
      return roundE4m3(atMost(atLeast(raw, kE4m3Least<T>), kE4m3Most<T>));
    else
      return mxScale(clipped);
  }

  // Whether a gradient of s passes to a.
  __device__ bool passes() const {
    if constexpr (kFormat == kNvFp4)
      return raw >= kE4m3Least<T> && raw <= kE4m3Most<T>;
    else
      return clipped > T(0);
  }

  // The gradient of s' = s / g taken to a.
  __device__ T toClipped(T gradient, T s) const {
    if (!passes()) return T(0);
    return gradient * (kFormat == kNvFp4 ? T(1) / T(6) : s / clipped);
  }
};

// What an x is times, to be in steps of its group: g / s, rounded once.
template <class T>
__device__ inline T fp4Inverse(T g, T s) {
  return divRn(g, s);
}

// The same of an e4m3 scale, where no product or residual is subnormal or infinite: the inverse of the
// scale is rounded correctly, so that the residual rounds the quotient correctly (Markstein).
__device__ inline bool isUsualGlobal(float g) { return g > 0x1p-80f && g < 0x1p80f; }
__device__ inline float e4m3Inverse(float g, float s) {
  const float inverse = inverseOf(s), q = mulRn(g, inverse);
  return __fmaf_rn(__fmaf_rn(-q, s, g), inverse, q);
}

}  // namespace aq::cuda
