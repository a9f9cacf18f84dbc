// fp4_sums.cuh: the sums that a warp's stage of fp4_small.cu feeds.
#pragma once
#include "native/cuda/device/fp4_decode.cuh"
#include "native/cuda/device/int4_sums.cuh"

namespace aq::cuda::int4 {

// A warp's sums, over kUnit of the operands.
template <class H, class S>
struct FloatSums {
  static constexpr Format kFormat = S::kFormat;
  static constexpr int kN = S::kN, kRowTiles = S::kRowTiles;
  using Table = ScaleTable<kFormat, H, S::kGroups>;
  static_assert(S::kTable == kRowTiles * Table::kWords * 4);
  float total[kRowTiles][kN][4] = {};

  __device__ FloatSums(const Activations&, int64_t, int) {}

  // Factors of the next piece, made while the one before is multiplied.
  uint32_t next[kRowTiles][Table::kMade];

  __device__ void makeFactors(const char* raw, int lane) {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) Table::make(raw + m * Table::kRawBytes, next[m], lane);
  }
  __device__ void putFactors(uint32_t* table, int lane) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) Table::put(next[m], table + m * Table::kWords, lane);
  }

  __device__ void addPiece(const char* stage, const uint32_t* table, int lane) {
    const uint32_t address = sharedAddress(stage);
    uint4 codes[kRowTiles];
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
      codes[m] = *reinterpret_cast<const uint4*>(stage + m * kPieceBytes + lane * 16);
    uint32_t scales[kRowTiles][S::kGroups];
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) Table::read(table + m * Table::kWords, lane, scales[m]);
#pragma unroll
    for (int step = 0; step < kPieceSteps; step++) {
      uint4 x[kN];
#pragma unroll
      for (int n = 0; n < kN; n++)
        x[n] = loadMatrices(address + S::xByte(8 * n + lane % 8, step * 4 + lane / 8));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int word = 2 * step + half, group = word * S::kGroups / 4;
#pragma unroll
        for (int m = 0; m < kRowTiles; m++) {
          const uint4 c = codes[m];
          uint32_t a[4];
          scaledWord<kFormat, H>(word == 0   ? c.x
                                 : word == 1 ? c.y
                                 : word == 2 ? c.z
                                             : c.w,
                                 scales[m][group], a);
#pragma unroll
          for (int n = 0; n < kN; n++)
            Pair<H>::multiply(total[m][n], a, half ? x[n].z : x[n].x, half ? x[n].w : x[n].y);
        }
      }
    }
  }
};

template <class S, Format kFormat>
struct SumsOf<S, kFormat, Math::kBf16> {
  using Type = FloatSums<__nv_bfloat16, S>;
};
template <class S, Format kFormat>
struct SumsOf<S, kFormat, Math::kF16> {
  using Type = FloatSums<__half, S>;
};

}  // namespace aq::cuda::int4
