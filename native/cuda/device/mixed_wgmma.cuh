// mixed_wgmma.cuh: int8 numbers out of shared memory to bf16 operands in registers, and Hopper's
// product that takes its left operand from there. Only code under AQ_HAS_HOPPER may use this.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

#include "native/cuda/device/hopper.cuh"

namespace aq::cuda {

#if defined(AQ_HAS_HOPPER)

// Two neighbouring bytes of shared memory.
__device__ inline uint32_t loadBytes(uint32_t address) {
  uint16_t bytes;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bytes) : "r"(address) : "memory");
  return bytes;
}

// Two neighbouring f32 in shared memory, rounded to bf16.
__device__ inline __nv_bfloat162 loadScales(uint32_t address) {
  float low, high;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(low), "=f"(high)
               : "r"(address)
               : "memory");
  return __floats2bfloat162_rn(low, high);
}

// Byte `place` of two words, as int8, times their scales.
__device__ inline uint32_t expandPair(uint32_t low, uint32_t high, int place,
                                      __nv_bfloat162 scales) {
  const uint32_t both = __byte_perm(low, high, 0x4400 + 0x1111 * place);
  // 128 + (x & 127), less 128, or 256 where the sign is set: exact in bf16's eight digits.
  constexpr uint32_t k128 = 0x43004300;
  const uint32_t digits = (both & 0x007F007F) | k128, origin = (both & 0x00800080) | k128;
  __nv_bfloat162 x, y;
  memcpy(&x, &digits, 4);
  memcpy(&y, &origin, 4);
  const __nv_bfloat162 scaled = __hmul2(__hsub2(x, y), scales);
  uint32_t bits;
  memcpy(&bits, &scaled, 4);
  return bits;
}

// Keeps registers that a product under way reads from being used for something else before this.
__device__ inline void keepOperand(const uint32_t (&left)[4]) {
  asm volatile("" ::"r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]) : "memory");
}

#define AQ_SUMS4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define AQ_SUMS16(i) AQ_SUMS4(i), AQ_SUMS4(i + 4), AQ_SUMS4(i + 8), AQ_SUMS4(i + 12)
#define AQ_MIXED(turned)                                                                         \
  asm volatile(                                                                                  \
      "{ .reg .pred p; setp.ne.b32 p, %133, 0;"                                                  \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"                                  \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "         \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "         \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "         \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "   \
      "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "     \
      "%125, %126, %127}, {%128, %129, %130, %131}, %132, p, 1, 1, " turned "; }"                \
      : AQ_SUMS16(0), AQ_SUMS16(16), AQ_SUMS16(32), AQ_SUMS16(48), AQ_SUMS16(64), AQ_SUMS16(80), \
        AQ_SUMS16(96), AQ_SUMS16(112)                                                            \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(int32_t(add)))

// sum = left right (+ sum), left of 64 x 16 in registers and right of 16 x 256 in shared memory,
// stored with k along its rows, or turned. Thread t of the warpgroup holds of sum row 16 (t / 32) +
// t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2 at place i, and of left the pair
// of columns 2 (t % 4) + 8 (i / 2) of row 16 (t / 32) + t % 32 / 4 + 8 (i % 2).
template <bool kTurned>
__device__ inline void wgmmaMixed(float (&sum)[128], const uint32_t (&left)[4], uint64_t right,
                                  bool add) {
  if constexpr (kTurned) {
    AQ_MIXED("1");
  } else {
    AQ_MIXED("0");
  }
}

#undef AQ_MIXED

#define AQ_MIXED(turned)                                                                          \
  asm volatile(                                                                                   \
      "{ .reg .pred p; setp.ne.b32 p, %69, 0;"                                                    \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"                                   \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "          \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "          \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"            \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, " turned "; }"                                      \
      : AQ_SUMS16(kFirst), AQ_SUMS16(kFirst + 16), AQ_SUMS16(kFirst + 32), AQ_SUMS16(kFirst + 48) \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(int32_t(add)))

// Half of that, with a right operand of 16 x 128: the sums from place kFirst on, 0 or 64. For kernels
// whose blocks are so large that the compiler has too few registers for the whole.
template <bool kTurned, int kFirst>
__device__ inline void wgmmaMixedHalf(float (&sum)[128], const uint32_t (&left)[4], uint64_t right,
                                      bool add) {
  if constexpr (kTurned) {
    AQ_MIXED("1");
  } else {
    AQ_MIXED("0");
  }
}

#undef AQ_MIXED
#undef AQ_SUMS16
#undef AQ_SUMS4

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda
