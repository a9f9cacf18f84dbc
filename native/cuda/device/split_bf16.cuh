// split_bf16.cuh: products of f32 matrices on bf16 tensor cores that keep 16 bits: every number is
// the sum of two bf16, and of the four products of two such sums the three largest are added up.
//
// A tile in shared memory is [rows][pitch] of the high parts and, `low` numbers behind them, the
// low parts. A pitch of 8 modulo 64 keeps the reads of 8 rows in different banks.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// Four neighbouring numbers to `tile` and `tile + low`; both 8-byte aligned.
__device__ inline void storeSplit(__nv_bfloat16* tile, int low, const Vec<float, 4>& x) {
  Vec<__nv_bfloat162, 2> highs, lows;
#pragma unroll
  for (int pair = 0; pair < 2; pair++) {
    const float a = x.lane[2 * pair], b = x.lane[2 * pair + 1];
    const __nv_bfloat162 high = __floats2bfloat162_rn(a, b);
    highs.lane[pair] = high;
    lows.lane[pair] = __floats2bfloat162_rn(a - __low2float(high), b - __high2float(high));
  }
  *reinterpret_cast<Vec<__nv_bfloat162, 2>*>(tile) = highs;
  *reinterpret_cast<Vec<__nv_bfloat162, 2>*>(tile + low) = lows;
}

// One operand of a warp's products: how its 16 x 16 tiles are read. kRowsAreTerms: stored [k][..],
// else [..][k].
template <bool kRowsAreTerms>
struct SplitOperand {
  uint32_t address;  // of this lane's row in the first tile, high part
  uint32_t low;      // bytes to the low part
  uint32_t pitch;    // bytes

  // Tile `across` along the matrix and `term` along the sum, both in steps of 16.
  __device__ uint32_t at(int across, int term) const {
    return kRowsAreTerms ? address + term * 16 * pitch + across * 32
                         : address + across * 16 * pitch + term * 32;
  }
  __device__ void load(uint32_t (&high)[4], uint32_t (&lowPart)[4], int across, int term) const {
    const uint32_t from = at(across, term);
    loadFrom(high, from);
    loadFrom(lowPart, from + low);
  }
  // Of numbers that were not split.
  __device__ void load(uint32_t (&whole)[4], int across, int term) const {
    loadFrom(whole, at(across, term));
  }

 private:
  static __device__ void loadFrom(uint32_t (&tile)[4], uint32_t from) {
    if constexpr (kRowsAreTerms) {
      loadTilesTransposed(tile, from);
    } else {
      loadTiles(tile, from);
    }
  }
};

// The operand whose first number of this warp is at `tile`; `low` is not looked at where numbers were
// not split. kIsLeft: the matrix on the left of the product, whose 8 x 8 parts the instruction wants
// in the other order.
template <bool kIsLeft, bool kRowsAreTerms, class E>
__device__ inline SplitOperand<kRowsAreTerms> splitOperand(const E* tile, int low, int pitch) {
  static_assert(sizeof(E) == 2);
  const int lane = threadIdx.x % 32;
  constexpr bool kRowsFirst = kIsLeft != kRowsAreTerms;
  const int row = kRowsFirst ? lane % 16 : lane % 8 + lane / 16 * 8;
  const int column = kRowsFirst ? lane / 16 * 8 : lane / 8 % 2 * 8;
  return {sharedAddress(tile + row * pitch + column), uint32_t(low) * 2, uint32_t(pitch) * 2};
}

// sum [2 x 16][kColumns x 8] += a b over 16 terms, number `term` of their sixteens.
template <int kColumns, bool kATerms, bool kBTerms>
__device__ inline void multiplySplit(float (&sum)[2][kColumns][4], const SplitOperand<kATerms>& a,
                                     const SplitOperand<kBTerms>& b, int term) {
  uint32_t aHigh[2][4], aLow[2][4];
#pragma unroll
  for (int r = 0; r < 2; r++) a.load(aHigh[r], aLow[r], r, term);
#pragma unroll
  for (int c = 0; c < kColumns / 2; c++) {
    uint32_t high[4], low[4];
    b.load(high, low, c, term);
// A sum waits for its last product: the other sums of the four come in between.
#pragma unroll
    for (int product = 0; product < 3; product++) {
      const auto& left = product == 0 ? aLow : aHigh;
      const auto& right = product == 1 ? low : high;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t part[2] = {right[2 * half], right[2 * half + 1]};
#pragma unroll
        for (int r = 0; r < 2; r++) mma(sum[r][2 * c + half], left[r], part, __nv_bfloat16());
      }
    }
  }
}

}  // namespace aq::cuda
