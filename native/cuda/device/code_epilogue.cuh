// code_epilogue.cuh: what follows the sums of a tile of code_product_hopper: scaling and writing.
#pragma once
#include <cstdint>

#include "native/cuda/code_product.h"
#include "native/cuda/device/code_scale.cuh"

namespace aq::cuda {

// What the columns of a tile need, in shared memory.
template <int kN>
struct CodeColumns {
  float scale[kN], bias[kN];
  int32_t zero[kN], sum[kN];

  __device__ void set(int j, const CodeRow& column, float columnBias) {
    scale[j] = column.scale;
    bias[j] = columnBias;
    zero[j] = column.zero;
    sum[j] = column.sum;
  }
};

// Scales the sums of this thread's two rows and writes them. kLeftOver: zero points remain. Two
// neighbouring threads exchange halves, so that each writes four neighbouring columns.
template <int kN, bool kLeftOver>
__device__ inline void writeSums(const int32_t (&sum)[kN / 2], const CodeProduct& p,
                                 const CodeColumns<kN>& columns, const CodeRow (&rows)[2],
                                 int64_t row, int64_t firstCol) {
  const bool isWide = p.n % 4 == 0 && reinterpret_cast<uintptr_t>(p.c) % 16 == 0;
  const int lane = int(threadIdx.x % 4), odd = lane % 2;
  float* const c = p.c + row * p.n + firstCol;
#pragma unroll
  for (int block = 0; block < kN / 8; block += 2) {
    float value[2][2][2];  // block, row, column
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int b = i / 4, half = i / 2 % 2, e = i % 2;
      const int j = (block + b) * 8 + lane * 2 + e;
      const int32_t total = sum[block * 4 + i];
      if constexpr (kLeftOver) {
        const CodeRow column = {columns.scale[j], columns.zero[j], columns.sum[j], 0};
        value[b][half][e] = scaledSum(total, rows[half], column, p.k);
      } else {
        value[b][half][e] = float(total) * (rows[half].scale * columns.scale[j]);
      }
      value[b][half][e] += columns.bias[j];
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float quad[4];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float sent = odd ? value[0][half][e] : value[1][half][e];
        const float got = __shfl_xor_sync(~0u, sent, 1);
        quad[e] = odd ? got : value[0][half][e];
        quad[e + 2] = odd ? value[1][half][e] : got;
      }
      const int j = (block + odd) * 8 + (lane - odd) * 2;
      if (row + half * 8 >= p.m || firstCol + j >= p.n) continue;
      float* const at = c + half * 8 * p.n + j;
      if (isWide) {
        float4* const wide = reinterpret_cast<float4*>(at);
        float4 out = {quad[0], quad[1], quad[2], quad[3]};
        if (p.accumulate) {
          const float4 before = *wide;
          out = {out.x + before.x, out.y + before.y, out.z + before.z, out.w + before.w};
        }
        *wide = out;
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (firstCol + j + e < p.n) at[e] = p.accumulate ? at[e] + quad[e] : quad[e];
        }
      }
    }
  }
}

}  // namespace aq::cuda
