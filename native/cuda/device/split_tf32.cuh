// split_tf32.cuh: products of f32 matrices on tf32 tensor cores that keep 21 bits: every number is
// the sum of two tf32, and of the four products of two such sums the three largest are to be added
// up.
#pragma once
#include <cstdint>

namespace aq::cuda {

// x = high + low as the tensor cores read them: they ignore the 13 lowest bits, so what is lost is
// below 2^-21 of x.
struct SplitTf32 {
  uint32_t high, low;
};
__device__ inline SplitTf32 splitTf32(float x) {
  const uint32_t high = __float_as_uint(x) & 0xffffe000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

// sum [16, 8] += a [16, 8] b [8, 8].
__device__ inline void multiplyTf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace aq::cuda
