// fp4_decode.cuh: packed e2m1 codes, and the scales of their groups, into operands of the matrix
// instructions.
//
// Sign, exponent and mantissa of a code are moved to where a half has its sign, the low places of its
// exponent and the first of its mantissa. That is the code's value times a power of two, its subnormal
// .5 included: q 2^-126 in bf16, q 2^-14 in f16. One multiplication by the scale, which itself is times
// another power, makes it q s over kUnit, and exactly so: q s has at most 6 significant bits and is a
// multiple of 2^-10 not above 2688 in NVFP4. The scales of MXFP4 need all of bf16's exponents, and a
// multiplication more.
#pragma once
#include <cuda_fp8.h>

#include <type_traits>

#include "native/cuda/device/int4.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

// Bits of a where the mask has ones, else of b. As an instruction, because the compiler would take it
// apart again at the masks that follow.
template <uint32_t kMask>
__device__ inline uint32_t chosen(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(r) : "n"(kMask), "r"(a), "r"(b));
  return r;
}

// The 16 x 16 operand of one word a thread, as halves of the value times a power of two. Of two codes
// of the low and two of the high byte of each half (bf16; f16: odd and even ones) the signs are brought
// to the right distance from exponent and mantissa; what then lies between is not theirs.
template <class H>
__device__ inline void placeWord(uint32_t w, uint32_t (&a)[4]) {
  if constexpr (std::is_same_v<H, __nv_bfloat16>) {
    constexpr uint32_t kKept = 0x81c081c0u;
    const uint32_t high = chosen<0x88008800u>(w, w >> 6), low = chosen<0x22002200u>(w << 6, w);
    a[3] = high & kKept;
    a[2] = high << 4 & kKept;
    a[1] = low << 2 & kKept;
    a[0] = low << 6 & kKept;
  } else {
    constexpr uint32_t kKept = 0x8e008e00u;
    const uint32_t odd = chosen<0x80808080u>(w, w >> 3), even = chosen<0x40404040u>(w << 3, w);
    a[3] = odd & kKept;
    a[2] = even << 1 & kKept;
    a[1] = odd << 8 & kKept;
    a[0] = even << 9 & kKept;
  }
}

template <class H>
using Both = std::conditional_t<std::is_same_v<H, __half>, __half2, __nv_bfloat162>;

template <class H>
__device__ inline uint32_t times(uint32_t a, Both<H> b) {
  const Both<H> product = __hmul2(reinterpret_cast<const Both<H>&>(a), b);
  return reinterpret_cast<const uint32_t&>(product);
}
template <class H>
__device__ inline uint32_t times(uint32_t a, uint32_t b) {
  return times<H>(a, reinterpret_cast<const Both<H>&>(b));
}
__device__ inline __nv_bfloat162 lowTwice(__nv_bfloat162 v) { return __low2bfloat162(v); }
__device__ inline __nv_bfloat162 highTwice(__nv_bfloat162 v) { return __high2bfloat162(v); }
__device__ inline __half2 lowTwice(__half2 v) { return __low2half2(v); }
__device__ inline __half2 highTwice(__half2 v) { return __high2half2(v); }

// Two e4m3fn without sign as f16, exactly.
__device__ inline __half2 halvesOf(uint32_t bytes) {
#if __CUDA_ARCH__ >= 890
  return __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(bytes), __NV_E4M3);
#else
  const uint32_t halves = __byte_perm(bytes, 0, 0x4140);
  const uint32_t nan = (halves + 0x00010001u) & 0x00800080u;
  // Their places, 7 further up, are s 2^-8 of f16; it has more exponents, and other NaNs.
  const uint32_t s = times<__half>(halves << 7, 0x5c005c00u) | nan * 0xffu;
  return reinterpret_cast<const __half2&>(s);
#endif
}

// What operands of 4-bit floats are in H: kUnit times them is q s. scalesOf: the bytes of rows g (low)
// and g + 8 as the factors of their operands. A scale that is no number gives a factor that is none.
template <Format kFormat, class H>
struct FloatScale;

template <>
struct FloatScale<Format::kNvFp4, __nv_bfloat16> {
  using H = __nv_bfloat16;
  static constexpr float kUnit = 0x1p7f;
  // s reaches up to 448: 2^119 of it is just below the end of the range.
  __device__ static uint32_t scalesOf(uint32_t bytes) {
    const float2 s = __half22float2(halvesOf(bytes));
    const __nv_bfloat162 pair = __floats2bfloat162_rn(s.x, s.y);
    return times<H>(reinterpret_cast<const uint32_t&>(pair), 0x7b007b00u);
  }
  __device__ static uint32_t operand(uint32_t placed) { return placed; }
};

template <>
struct FloatScale<Format::kNvFp4, __half> {
  using H = __half;
  static constexpr float kUnit = 0x1p14f;
  __device__ static uint32_t scalesOf(uint32_t bytes) {
    const __half2 s = halvesOf(bytes);
    return reinterpret_cast<const uint32_t&>(s);
  }
  __device__ static uint32_t operand(uint32_t placed) { return placed; }
};

template <>
struct FloatScale<Format::kMxFp4, __nv_bfloat16> {
  using H = __nv_bfloat16;
  static constexpr float kUnit = 1;
  __device__ static uint32_t scaleOf(uint32_t byte) {
    return byte == 0xff ? 0x7fffu : byte ? byte << 7 : 0x40u;  // 0 is 2^-127
  }
  __device__ static uint32_t scalesOf(uint32_t bytes) {
    return scaleOf(bytes & 0xff) | scaleOf(bytes >> 8 & 0xff) << 16;
  }
  __device__ static uint32_t operand(uint32_t placed) { return times<H>(placed, 0x7e807e80u); }
};

// The operand of one word a thread: q s / kUnit.
template <Format kFormat, class H>
__device__ inline void scaledWord(uint32_t w, uint32_t scales, uint32_t (&a)[4]) {
  using S = FloatScale<kFormat, H>;
  const Both<H> both = reinterpret_cast<const Both<H>&>(scales);
  const Both<H> s0 = lowTwice(both), s8 = highTwice(both);
  placeWord<H>(w, a);
  a[0] = times<H>(S::operand(a[0]), s0);
  a[1] = times<H>(S::operand(a[1]), s8);
  a[2] = times<H>(S::operand(a[2]), s0);
  a[3] = times<H>(S::operand(a[3]), s8);
}

// Factors of a row tile's groups in shared memory, made by a warp once from their bytes and not by
// each of the four lanes that need them.
template <Format kFormat, class H, int kGroups>
struct ScaleTable {
  static constexpr int kPitch = factorPitch(kGroups), kWords = factorWords(kGroups);
  static constexpr int kRawBytes = kGroups * kTileRows;
  static_assert(kGroups == 2 || kGroups == 4 || kGroups == 8);

  static constexpr int kMade = (8 * kGroups + 31) / 32;  // by a lane

  // All lanes of a warp: factors from the bytes, and their way into the table; __syncwarp before and
  // after.
  __device__ static void make(const char* raw, uint32_t (&made)[kMade], int lane) {
#pragma unroll
    for (int i = 0; i < kMade; i++) {
      if (8 * kGroups < 32 && lane >= 8 * kGroups) break;
      made[i] =
          FloatScale<kFormat, H>::scalesOf(reinterpret_cast<const uint16_t*>(raw)[32 * i + lane]);
    }
  }
  __device__ static void put(const uint32_t (&made)[kMade], uint32_t* to, int lane) {
#pragma unroll
    for (int i = 0; i < kMade; i++) {
      if (8 * kGroups < 32 && lane >= 8 * kGroups) break;
      to[lane % 8 * kPitch + 4 * i + lane / 8] = made[i];
    }
  }
  // Of rows g and g + 8 of all groups.
  __device__ static void read(const uint32_t* from, int lane, uint32_t (&scales)[kGroups]) {
    const uint32_t* const row = from + lane / 4 * kPitch;
    if constexpr (kGroups == 2) {
      const uint2 both = *reinterpret_cast<const uint2*>(row);
      scales[0] = both.x, scales[1] = both.y;
    } else {
#pragma unroll
      for (int i = 0; i < kGroups; i += 4) {
        const uint4 four = reinterpret_cast<const uint4*>(row)[i / 4];
        scales[i] = four.x, scales[i + 1] = four.y;
        scales[i + 2] = four.z, scales[i + 3] = four.w;
      }
    }
  }
};

}  // namespace aq::cuda::int4
