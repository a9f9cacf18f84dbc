// half.h: float16 and bfloat16 as bit patterns, and conversions that round to nearest even.
// Plain integer arithmetic, so every level and every machine gives the same bits.
#pragma once
#include <cstdint>
#include <cstring>

namespace aq::cpu {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

inline uint32_t floatBits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float bitsFloat(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline float toFloat(Bfloat b) { return bitsFloat(uint32_t(b.bits) << 16); }

inline Bfloat toBfloat(float f) {
  uint32_t u = floatBits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40u)};  // quiet NaN
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

inline float toFloat(Half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bitsFloat(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return bitsFloat(sign | ((rest << 13) + (112u << 23)));
  // Subnormal: rest * 2^-24, exact in float.
  const float value = float(rest) * 5.9604644775390625e-8f;
  return bitsFloat(sign | floatBits(value));
}

inline Half toHalf(float f) {
  const uint32_t u = floatBits(f);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (a >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to infinity from 65520 up
  if (a < 0x38800000u) {                                    // below 2^-14: subnormal or zero
    // Adding 0.5 aligns the value's ulp to 2^-24, so the FPU does the rounding.
    const float shifted = bitsFloat(a) + 0.5f;
    return {uint16_t(sign | (floatBits(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
  return {uint16_t(sign | ((rounded - (112u << 23)) >> 13))};
}

}  // namespace aq::cpu
