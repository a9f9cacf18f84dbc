// attention_mma.cuh: tiles of 16-bit numbers in shared memory and their products on the tensor
// cores (mma.sync m16n8k16, f32 sums), for heads of kD columns.
//
// A tile is as packHeads wrote it: panels of up to 64 columns, each row by row in chunks of 16
// bytes. The chunk's number within its row is xor-ed with the row's, so that the eight rows which
// one ldmatrix step reads at one column lie in different banks. Rows are 64 or 128 bytes and tiles
// start at multiples of 1024, so moving along a row by whole fragments is an xor of the address
// too.
//
// Fragments, lane = 4 g + t: an accumulator c[4] has columns 2t, 2t + 1 of row g (c[0], c[1]) and
// of row g + 8 (c[2], c[3]); two neighbouring ones are an operand A of 16 columns.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "native/cuda/device/attention_shape.cuh"
#include "native/cuda/device/mma.cuh"

namespace aq::cuda {

// c += a b for the two neighbouring operands B that one step of loadTiles gives.
template <class E>
__device__ inline void multiplyPair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[4]) {
  mma(left, a, {b[0], b[1]}, E());
  mma(right, a, {b[2], b[3]}, E());
}

template <class E>
__device__ inline uint32_t packPair(float low, float high) {
  if constexpr (std::is_same_v<E, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

__device__ inline float powerOfTwo(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// This lane's addresses of fragments at the top left of a tile: of an operand A stored [m][k] or an
// operand B stored [k][n] (then read turned), and of an operand B stored [n][k].
template <int kD>
__device__ inline uint32_t laneOfRows(uint32_t tile) {
  const int lane = threadIdx.x & 31;
  return tile + chunkOffset<kD>(lane & 15, lane >> 4);
}
template <int kD>
__device__ inline uint32_t laneOfColumns(uint32_t tile) {
  const int lane = threadIdx.x & 31;
  return tile + chunkOffset<kD>((lane & 7) | ((lane >> 4) << 3), (lane >> 3) & 1);
}
// From there to the fragment at row 16 i and column 16 j of a tile of kRows rows.
template <int kD, int kRows>
__device__ inline uint32_t fragment(uint32_t lane, int i, int j) {
  return (lane ^ uint32_t(j % 4 * 32)) + uint32_t((i * 16 + j / 4 * kRows) * kRowBytes<kD>);
}

// Starts copying kRows rows of a packed head into a tile; all threads of the block.
template <int kD, int kRows, int kThreads, class E>
__device__ inline void copyTile(uint32_t tile, const E* head, int padded, int row0) {
  constexpr int kPanel = kRows * kRowBytes<kD> / 16, kCount = kRows * kD / 8;  // chunks
  const char* const from = reinterpret_cast<const char*>(head) + int64_t(row0) * kRowBytes<kD>;
#pragma unroll
  for (int i = 0; i < (kCount + kThreads - 1) / kThreads; i++) {
    const int c = int(threadIdx.x) + i * kThreads;
    if (kCount % kThreads != 0 && c >= kCount) break;
    const int64_t panel = int64_t(c / kPanel) * padded * kRowBytes<kD>;
    copyAsync16(tile + c * 16, from + panel + c % kPanel * 16);
  }
}

// s = A Bt: 16 kM of the kRows rows of A with kN rows of B, both stored with k along the row.
template <class E, int kD, int kRows, int kM, int kN>
__device__ inline void multiplyRows(float (&s)[kM][kN / 8][4], uint32_t aLane, uint32_t bLane) {
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN / 8; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
#pragma unroll
  for (int k = 0; k < kD / 16; k++) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; m++) loadTiles(a[m], fragment<kD, kRows>(aLane, m, k));
#pragma unroll
    for (int n = 0; n < kN / 16; n++) {
      uint32_t b[4];
      loadTiles(b, fragment<kD, kN>(bLane, n, k));
#pragma unroll
      for (int m = 0; m < kM; m++) multiplyPair<E>(s[m][2 * n], s[m][2 * n + 1], a[m], b);
    }
  }
}

// sums += P B: P is 16 kM rows of kN columns held as accumulators, rounded to E here; B is kN rows.
template <class E, int kD, int kM, int kN>
__device__ inline void addUpRows(float (&sums)[kM][kD / 8][4], const float (&p)[kM][kN / 8][4],
                                 uint32_t bLane) {
#pragma unroll
  for (int k = 0; k < kN / 16; k++) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; m++) {
      a[m][0] = packPair<E>(p[m][2 * k][0], p[m][2 * k][1]);
      a[m][1] = packPair<E>(p[m][2 * k][2], p[m][2 * k][3]);
      a[m][2] = packPair<E>(p[m][2 * k + 1][0], p[m][2 * k + 1][1]);
      a[m][3] = packPair<E>(p[m][2 * k + 1][2], p[m][2 * k + 1][3]);
    }
#pragma unroll
    for (int d = 0; d < kD / 16; d++) {
      uint32_t b[4];
      loadTilesTransposed(b, fragment<kD, kN>(bLane, k, d));
#pragma unroll
      for (int m = 0; m < kM; m++) multiplyPair<E>(sums[m][2 * d], sums[m][2 * d + 1], a[m], b);
    }
  }
}

// Writes a row's accumulated columns below `size`, times `factor`; `row` is the row's first number.
// half: 0 for row g, 1 for row g + 8.
template <int kD>
__device__ inline void storeRow(float* row, int size, bool isPaired, const float (&sums)[kD / 8][4],
                                int half, float factor) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int n = 0; n < kD / 8; n++) {
    const int column = n * 8 + 2 * t;
    const float2 pair = {sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor};
    if (isPaired) {  // size is even, and so is every row's start
      if (column < size) *reinterpret_cast<float2*>(row + column) = pair;
    } else {
      if (column < size) row[column] = pair.x;
      if (column + 1 < size) row[column + 1] = pair.y;
    }
  }
}

}  // namespace aq::cuda
