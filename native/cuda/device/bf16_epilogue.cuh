// bf16_epilogue.cuh: what follows the sums of a tile of bf16_product: factors, what is added, writing.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native/cuda/bf16_product.h"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

__device__ inline uint32_t packPair(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
}

// Writes the sums of 64 of a tile's rows, which a warpgroup holds as wgmmaBf16 leaves them, to C, R: what
// it holds. row and col are those of the tile's first element. kAdds: something is added to them.
template <class R, bool kAdds>
__device__ inline void writeSums(const float (&sum)[128], const Bf16Product& p, int row, int col) {
  constexpr int kGroups = 32;  // of 8 columns
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const bool isOdd = lane % 2 != 0;
  float factor = p.factors[0] ? *p.factors[0] : 1.0f;
  if (p.factors[1]) factor *= *p.factors[1];
  R* const c = static_cast<R*>(p.c);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int down = row + warp * 16 + half * 8 + lane / 4;
    if (down - lane / 4 >= p.m) return;
    const bool isInside = down < p.m;
    R* const start = c + int64_t(down) * p.n + col;
    const int wide = int(p.n) - col;
    // Two neighbouring values of a group: columns at and at + 1.
    const auto values = [&](int group) {
      const int at = group * 8 + lane % 4 * 2;
      float2 pair = {sum[group * 4 + half * 2] * factor, sum[group * 4 + half * 2 + 1] * factor};
      if constexpr (kAdds) {
        if (at >= wide || !isInside) return pair;
        if (p.accumulate) {
          const auto before = loadVec<R, 2>(start + at, 0);
          pair.x += float(before.lane[0]), pair.y += float(before.lane[1]);
        }
        if (p.bias) pair.x += p.bias[col + at], pair.y += p.bias[col + at + 1];
      }
      return pair;
    };
    if constexpr (std::is_same_v<R, float>) {
#pragma unroll
      for (int group = 0; group < kGroups; group++) {
        const float2 pair = values(group);
        const int at = group * 8 + lane % 4 * 2;
        if (at < wide && isInside) *reinterpret_cast<float2*>(start + at) = pair;
      }
    } else {
      // Neighbouring threads exchange pairs, so that four together write 32 bytes of a row.
#pragma unroll
      for (int group = 0; group < kGroups; group += 2) {
        const float2 low = values(group), high = values(group + 1);
        const uint32_t even = packPair(low.x, low.y), odd = packPair(high.x, high.y);
        const uint32_t other = __shfl_xor_sync(~0u, isOdd ? even : odd, 1);
        const int at = (group + isOdd) * 8 + lane % 4 / 2 * 4;
        if (at < wide && isInside) {
          *reinterpret_cast<uint2*>(start + at) =
              isOdd ? make_uint2(other, odd) : make_uint2(even, other);
        }
      }
    }
  }
}

}  // namespace aq::cuda
