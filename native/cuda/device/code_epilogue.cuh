// code_epilogue.cuh: what follows the sums of a tile of code_product_hopper: scaling and writing.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

#include "native/cuda/code_product.h"
#include "native/cuda/device/code_scale.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// What the columns of a tile need, in shared memory.
struct CodeColumns {
  static constexpr int kMost = 256;
  float scale[kMost], bias[kMost];
  int32_t zero[kMost], sum[kMost];

  __device__ void set(int j, const CodeRow& column, float columnBias) {
    scale[j] = column.scale;
    bias[j] = columnBias;
    zero[j] = column.zero;
    sum[j] = column.sum;
  }
};

// One value to where it belongs in c.
__device__ inline void writeValue(const CodeProduct& p, int64_t at, float value) {
  if (p.isShort) {
    __nv_bfloat16* const c = static_cast<__nv_bfloat16*>(p.c) + at;
    *c = __nv_bfloat16(p.accumulate ? value + float(*c) : value);
  } else {
    float* const c = static_cast<float*>(p.c) + at;
    *c = p.accumulate ? value + *c : value;
  }
}

// What the sums of one block of eight columns stand for: of two rows, two columns each. kLeftOver:
// zero points remain.
template <bool kLeftOver>
__device__ inline void scaleBlock(float (&value)[2][2], const int32_t* sum, int block,
                                  const CodeColumns& columns, const CodeRow (&rows)[2],
                                  int64_t terms) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int half = i / 2, j = block * 8 + int(threadIdx.x % 4) * 2 + i % 2;
    if constexpr (kLeftOver) {
      const CodeRow column = {columns.scale[j], columns.zero[j], columns.sum[j], 0};
      value[half][i % 2] = scaledSum(sum[i], rows[half], column, terms);
    } else {
      value[half][i % 2] = float(sum[i]) * (rows[half].scale * columns.scale[j]);
    }
    value[half][i % 2] += columns.bias[j];
  }
}

// Scales the sums of this thread's two rows and writes them, two neighbouring ones at a time, R:
// what c holds. There are no branches in it: it is long, and what it jumped over would have to be
// fetched. Exchanging with other threads for wider stores makes it slower.
template <class R, int kN>
__device__ inline void writePairs(const int32_t (&sum)[kN / 2], const CodeProduct& p,
                                  const CodeColumns& columns, const CodeRow (&rows)[2], int64_t row,
                                  int64_t firstCol) {
  const int first = int(threadIdx.x % 4) * 2;
  R* const c = static_cast<R*>(p.c) + row * p.n + firstCol + first;
  const int cols = int(p.n - firstCol < kN ? p.n - firstCol : kN) - first;
  const bool inside[2] = {row < p.m, row + 8 < p.m};
#pragma unroll
  for (int block = 0; block < kN / 8; block++) {
    float value[2][2];
    scaleBlock<false>(value, sum + block * 4, block, columns, rows, 0);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Vec<R, 2> out = {{R(value[half][0]), R(value[half][1])}};
      if (inside[half] && block * 8 < cols) storeVec(c + half * 8 * p.n + block * 8, 0, out);
    }
  }
}

// The same in bf16, where two numbers are half of what memory moves: of two blocks of eight
//           columns,
// neighbouring threads exchange a pair each, so that every thread writes four numbers of one block.
// n is a multiple of 4.
template <int kN>
__device__ inline void writeQuads(const int32_t (&sum)[kN / 2], const CodeProduct& p,
                                  const CodeColumns& columns, const CodeRow (&rows)[2], int64_t row,
                                  int64_t firstCol) {
  const bool isOdd = threadIdx.x & 1;
  const int first = int(threadIdx.x % 4) / 2 * 4 + (isOdd ? 8 : 0);
  __nv_bfloat16* const c = static_cast<__nv_bfloat16*>(p.c) + row * p.n + firstCol + first;
  const int cols = int(p.n - firstCol < kN ? p.n - firstCol : kN) - first;
  const bool inside[2] = {row < p.m, row + 8 < p.m};
#pragma unroll
  for (int block = 0; block < kN / 8; block += 2) {
    float value[2][2][2];
    scaleBlock<false>(value[0], sum + block * 4, block, columns, rows, 0);
    scaleBlock<false>(value[1], sum + block * 4 + 4, block + 1, columns, rows, 0);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t pair[2];
#pragma unroll
      for (int b = 0; b < 2; b++) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(value[b][half][0], value[b][half][1]);
        memcpy(&pair[b], &both, sizeof both);
      }
      const uint32_t other = __shfl_xor_sync(~0u, isOdd ? pair[0] : pair[1], 1);
      const uint2 out = {isOdd ? other : pair[0], isOdd ? pair[1] : other};
      if (inside[half] && block * 8 < cols)
        *reinterpret_cast<uint2*>(c + half * 8 * p.n + block * 8) = out;
    }
  }
}

// The same for any sizes and addresses, and what is added to, number by number.
template <int kN, bool kLeftOver>
__device__ inline void writeSingly(const int32_t (&sum)[kN / 2], const CodeProduct& p,
                                   const CodeColumns& columns, const CodeRow (&rows)[2],
                                   int64_t row, int64_t firstCol) {
#pragma unroll
  for (int block = 0; block < kN / 8; block++) {
    float value[2][2];
    scaleBlock<kLeftOver>(value, sum + block * 4, block, columns, rows, p.k);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t at = row + i / 2 * 8;
      const int64_t j = firstCol + block * 8 + int(threadIdx.x % 4) * 2 + i % 2;
      if (at < p.m && j < p.n) writeValue(p, at * p.n + j, value[i / 2][i % 2]);
    }
  }
}

// kMayLeave: zero points may be left over (isLeft).
template <int kN, bool kMayLeave>
__device__ inline void writeSums(const int32_t (&sum)[kN / 2], const CodeProduct& p,
                                 const CodeColumns& columns, const CodeRow (&rows)[2], bool isLeft,
                                 int64_t row, int64_t firstCol) {
  const bool isWide = p.n % 2 == 0 && reinterpret_cast<uintptr_t>(p.c) % 8 == 0;
  if (!isWide || p.accumulate || (kMayLeave && isLeft)) {
    if (kMayLeave && isLeft) {
      writeSingly<kN, kMayLeave>(sum, p, columns, rows, row, firstCol);
    } else {
      writeSingly<kN, false>(sum, p, columns, rows, row, firstCol);
    }
  } else if (p.isShort && p.n % 4 == 0) {
    writeQuads<kN>(sum, p, columns, rows, row, firstCol);
  } else if (p.isShort) {
    writePairs<__nv_bfloat16, kN>(sum, p, columns, rows, row, firstCol);
  } else {
    writePairs<float, kN>(sum, p, columns, rows, row, firstCol);
  }
}

}  // namespace aq::cuda
