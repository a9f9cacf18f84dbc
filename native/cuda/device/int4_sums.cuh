// int4_sums.cuh: a warp's stage of int4_small.cu in shared memory, and the sums that it feeds: of
// products of halves, or of codes.
#pragma once
#include "native/cuda/device/int4.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

// Half a packed tile: 64 columns.
inline constexpr int kPieceColumns = kTileColumns / 2, kPieceBytes = kTileBytes / 2;
inline constexpr int kPieceSteps = kTileSteps / 2;

// A stage of the warp's ring, in bytes: codes of its row tiles in a piece of kSteps steps of columns,
// half a packed tile or a whole one; grids of up to kSteps groups; kTokens rows of x. A block has
// kBlockTiles row tiles: those of each of its warps, or those of two sets of warps.
template <Format kFormatOf, Math kMathOf, int kNOf, int kRowTilesOf, int kStepsOf = kPieceSteps,
          int kBlockTilesOf = kRowTilesOf>
struct Stage {
  static constexpr Format kFormat = kFormatOf;
  static constexpr Math kMath = kMathOf;
  static constexpr int kN = kNOf, kRowTiles = kRowTilesOf, kBlockTiles = kBlockTilesOf;
  static constexpr int kSets = kBlockTiles > kRowTiles ? 2 : 1, kRows = kBlockTiles * kTileRows;
  static constexpr bool kIsFloats = kFormat != Format::kInt4;
  static constexpr int kTokens = 8 * kN;
  static constexpr int kSteps = kStepsOf, kColumns = kSteps * kStepColumns;
  static constexpr int kCodeBytes = kTileBytes / kTileSteps * kSteps;  // of a row tile
  // Blocks whose stages leave room for another one in a multiprocessor.
  static constexpr int kBlocks = kN == 4 || kSteps > kPieceSteps ? 1 : 2;
  static constexpr int kStages = kRowTiles == 6   ? 3
                                 : kRowTiles == 3 ? 5
                                 : kRowTiles == 2 ? 6
                                 : kN == 2        ? 3
                                                  : 4;
  static constexpr int kTokenBytes = kMath == Math::kInteger ? kColumns : 2 * kColumns;
  static constexpr int kScale = kRowTiles * kCodeBytes;
  static constexpr int kScaleBytes = kTileRows * 2, kZeroBytes = kTileRows;  // of a tile and group
  static constexpr int kGroups = kSteps * (kIsFloats ? stepGroups(kFormat) : 1);
  static constexpr int kGrids = kIsFloats ? 0 : kRowTiles * kGroups;  // in the stage
  static constexpr int kZero = kScale + kGrids * kScaleBytes;
  static constexpr int kX = kZero + kGrids * kZeroBytes;
  static constexpr int kBytes = kX + kTokens * kTokenBytes;
  // Beside a warp's ring of 4-bit floats: one of their scales' bytes, a stage longer, and factors made
  // of a stage of them (fp4_sums.cuh).
  static constexpr int kRawBytes = kIsFloats ? kRowTiles * kGroups * kTileRows : 0;
  static constexpr int kRaws = kStages + 1;
  static constexpr int kTable = kIsFloats ? kRowTiles * factorWords(kGroups) * 4 : 0;
  static constexpr int kWarpBytes = kStages * kBytes + kRaws * kRawBytes + kTable;

  // Byte of 16-byte part `part` of token n: exchanged so that the reads of a warp hit all banks.
  __device__ static int xByte(int n, int part) {
    const int swap = kMath == Math::kInteger ? n & 2 : n & 7;
    return kX + n * kTokenBytes + ((part ^ swap) << 4);
  }
};

// Scales and zeros of rows g and g + 8 of row tile m, group j of the piece.
template <class S>
__device__ inline float2 scalesAt(const char* stage, int m, int j, int lane) {
  const char* const at = stage + S::kScale + (m * S::kSteps + j) * S::kScaleBytes;
  return __half22float2(reinterpret_cast<const __half2*>(at)[lane / 4]);
}
template <class S>
__device__ inline int2 zerosAt(const char* stage, int m, int j, int lane) {
  const char* const at = stage + S::kZero + (m * S::kSteps + j) * S::kZeroBytes;
  const int both = reinterpret_cast<const uint16_t*>(at)[lane / 4];
  return make_int2(both & 0xff, both >> 8);
}

// A warp's sums, for x as numbers of H. The codes enter the product with the offset that their
// exponent gives them, and sum (code - zero) x = sum (offset + code) x - (offset + zero) sum x: one
// more product per step, of ones and x, for all rows, instead of a subtraction per weight.
template <class H, class S>
struct HalfSums {
  static constexpr int kN = S::kN, kRowTiles = S::kRowTiles;
  float total[kRowTiles][kN][4] = {};

  __device__ HalfSums(const Activations&, int64_t, int) {}

  __device__ void addPiece(const char* stage, const Weights& w, int, int lane) {
    const uint32_t address = sharedAddress(stage);
    float sum[kRowTiles][kN][4] = {};
    float xSum[kN][4] = {};  // of tokens: the same in all rows
    uint4 codes[kRowTiles];
#pragma unroll
    for (int step = 0; step < S::kSteps; step++) {
      if (step % 2 == 0) {
#pragma unroll
        for (int m = 0; m < kRowTiles; m++)
          codes[m] = *reinterpret_cast<const uint4*>(stage + m * S::kCodeBytes +
                                                     step / 2 * kPieceBytes + lane * 16);
      }
      uint4 x[kN];
#pragma unroll
      for (int n = 0; n < kN; n++) {
        x[n] = loadMatrices(address + S::xByte(8 * n + lane % 8, step * 4 + lane / 8));
        constexpr uint32_t kOne = Pair<H>::kOnes;
        const uint32_t ones[4] = {kOne, kOne, kOne, kOne};
        Pair<H>::multiply(xSum[n], ones, x[n].x, x[n].y);
        Pair<H>::multiply(xSum[n], ones, x[n].z, x[n].w);
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        uint32_t a[4];
        offsetWord<H>(step % 2 ? codes[m].z : codes[m].x, a);
#pragma unroll
        for (int n = 0; n < kN; n++) Pair<H>::multiply(sum[m][n], a, x[n].x, x[n].y);
        offsetWord<H>(step % 2 ? codes[m].w : codes[m].y, a);
#pragma unroll
        for (int n = 0; n < kN; n++) Pair<H>::multiply(sum[m][n], a, x[n].z, x[n].w);
      }
      // A group ends with the piece, or has one or two steps.
      const bool isFine = w.groupSteps == 1, isHalf = w.groupSteps == 2;
      if (step + 1 < S::kSteps && !isFine && !(isHalf && step % 2 == 1)) continue;
      const int j = isFine ? step : isHalf ? step / 2 : 0;
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        const float2 s = scalesAt<S>(stage, m, j, lane);
        const int2 z = zerosAt<S>(stage, m, j, lane);
        const float z0 = Pair<H>::kOffset + float(z.x), z8 = Pair<H>::kOffset + float(z.y);
#pragma unroll
        for (int n = 0; n < kN; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            total[m][n][e] += (e < 2 ? s.x : s.y) * (sum[m][n][e] - (e < 2 ? z0 : z8) * xSum[n][e]);
            sum[m][n][e] = 0;
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kN; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) xSum[n][e] = 0;
      }
    }
  }
};

// A warp's sums, for x as codes.
template <class S>
struct IntegerSums {
  static constexpr int kN = S::kN, kRowTiles = S::kRowTiles;
  float total[kRowTiles][kN][4] = {};
  int32_t xZero[kN][2];

  __device__ IntegerSums(const Activations& x, int64_t token0, int lane) {
#pragma unroll
    for (int i = 0; i < 2 * kN; i++) {
      const int64_t token = token0 + i / 2 * 8 + lane % 4 * 2 + i % 2;
      xZero[i / 2][i % 2] = token < x.rows ? __float2int_rn(x.zero[token]) : 0;
    }
  }

  __device__ void addPiece(const char* stage, const Weights& w, int piece, int lane) {
    constexpr uint32_t kOnes = 0x01010101u, kLow = 0x0f0f0f0fu;
    const int g = lane / 4, t = lane % 4;
    const bool fine = w.groupSteps == 1;
    int32_t sum[kRowTiles][kN][4] = {};
    int32_t codeSum[kRowTiles][4] = {};                   // of rows: the same in all columns
    int32_t xSum[kN][4] = {};                             // of tokens: the same in all rows
    int live = max(0, w.inputs - piece * kPieceColumns);  // columns of the piece and beyond
    uint4 codes[kRowTiles];
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
      codes[m] = *reinterpret_cast<const uint4*>(stage + m * kPieceBytes + lane * 16);
#pragma unroll
    for (int step = 0; step < kPieceSteps; step++) {
      uint2 x[kN];
#pragma unroll
      for (int n = 0; n < kN; n++) {
        x[n] = *reinterpret_cast<const uint2*>(stage + S::xByte(8 * n + g, step * 2 + t / 2) +
                                               t % 2 * 8);
        const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
        multiplyBytes(xSum[n], ones, x[n].x, x[n].y);
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        const uint32_t w0 = step ? codes[m].z : codes[m].x, w1 = step ? codes[m].w : codes[m].y;
        const uint32_t a[4] = {w0 & kLow, w0 >> 4 & kLow, w1 & kLow, w1 >> 4 & kLow};
        multiplyBytes(codeSum[m], a, kOnes, kOnes);
#pragma unroll
        for (int n = 0; n < kN; n++) multiplyBytes(sum[m][n], a, x[n].x, x[n].y);
      }
      if (step == 0 && !fine) continue;
      const int j = fine ? step : 0;
      const int width = fine ? kStepColumns : kPieceColumns, count = min(width, live);
      live = max(0, live - width);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        const float2 s = scalesAt<S>(stage, m, j, lane);
        const int2 z = zerosAt<S>(stage, m, j, lane);
#pragma unroll
        for (int n = 0; n < kN; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int32_t zero = e < 2 ? z.x : z.y, offset = xZero[n][e % 2];
            const int32_t exact =
                sum[m][n][e] - offset * codeSum[m][e] - zero * (xSum[n][e] - offset * count);
            total[m][n][e] += (e < 2 ? s.x : s.y) * float(exact);
            sum[m][n][e] = 0;
          }
        }
#pragma unroll
        for (int e = 0; e < 4; e++) codeSum[m][e] = 0;
      }
#pragma unroll
      for (int n = 0; n < kN; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) xSum[n][e] = 0;
      }
    }
  }
};

template <class S, Format kFormat = S::kFormat, Math kMath = S::kMath>
struct SumsOf;
template <class S>
struct SumsOf<S, Format::kInt4, Math::kBf16> {
  using Type = HalfSums<__nv_bfloat16, S>;
};
template <class S>
struct SumsOf<S, Format::kInt4, Math::kF16> {
  using Type = HalfSums<__half, S>;
};
template <class S>
struct SumsOf<S, Format::kInt4, Math::kInteger> {
  using Type = IntegerSums<S>;
};

}  // namespace aq::cuda::int4
