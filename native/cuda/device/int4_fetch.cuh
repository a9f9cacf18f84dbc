// int4_fetch.cuh: what a warp of int4_small.cuh brings into a stage of its ring.
#pragma once
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/int4_sums.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

inline constexpr int kWarp = 32;

struct Task {
  Weights w;
  Activations x;
  Result result;
  float* parts;               // [splits][rows][outputs] where there are no clusters, else null
  int32_t splits, rowBlocks;  // blocks that share rows; such sets of them
};

// What a block has: row tiles [tileRow0, tileRow0 + rowTiles), and of these the pieces
// [begin, begin + count) of columns. It starts with piece `shift` of them, which is another one in every
// block: all blocks read all of x, and not the same part at the same time.
struct BlockShare {
  int tileRow0, rowTiles, rank, begin, count, shift;

  // The block-th one; a tile has `pieces`.
  __device__ BlockShare(const Task& task, int block, int pieces)
      : tileRow0(partStart(task.w.tileRows, block / task.splits, task.rowBlocks)),
        rowTiles(partStart(task.w.tileRows, block / task.splits + 1, task.rowBlocks) - tileRow0),
        rank(block % task.splits),
        begin(pieces * partStart(task.w.tiles, rank, task.splits)),
        count(pieces * partStart(task.w.tiles, rank + 1, task.splits) - begin),
        shift(count > 0 ? int(block * 5u % unsigned(count)) : 0) {}

  // The piece that comes i-th.
  __device__ int pieceAt(int i) const {
    const int piece = i + shift;
    return begin + (piece < count ? piece : piece - count);
  }
};

// Starts the copies of a piece into a stage: the codes and grids of a warp's row tiles and the columns of
// x that meet them; all lanes of a warp. Where a lane's parts start is found once.
template <class S>
struct CodeFetch {
  static constexpr int kParts = S::kTokenBytes / 16, kElement = S::kTokenBytes / S::kColumns;
  static constexpr int kTokensAtOnce = kWarp / kParts, kCopies = S::kTokens / kTokensAtOnce;
  static constexpr int kGridParts = 3 * S::kRowTiles;  // 16 bytes each, of a group
  static_assert(kGridParts <= kWarp);

  const uint8_t* codes;
  const char* grids;  // scales or zeros
  const char* x;
  int64_t rowBytes, xStep;  // of codes of a row tile; of the rows of x between two copies
  uint32_t gridStep, gridTo;
  int tiles, live, left, groups;

  // Of `count` row tiles from tileRow0 on.
  __device__ CodeFetch(const Task& task, int tileRow0, int count, int64_t token0, int liveTokens,
                       int lane)
      : tiles(count), live(liveTokens - lane / kParts) {
    const Weights& w = task.w;
    rowBytes = int64_t(w.tiles) * kTileBytes;
    codes = w.codes + tileRow0 * rowBytes + lane * 16;
    const int m = lane / 3, part = lane % 3;
    const bool isScale = part < 2;
    const int64_t slot = int64_t(tileRow0 + m) * w.groups * kTileRows;
    gridStep = isScale ? S::kScaleBytes : S::kZeroBytes;
    grids = isScale ? reinterpret_cast<const char*>(w.scale + slot) + part * 16
                    : reinterpret_cast<const char*>(w.zero + slot);
    gridTo = isScale ? S::kScale + m * S::kSteps * S::kScaleBytes + part * 16
                     : S::kZero + m * S::kSteps * S::kZeroBytes;
    groups = m < tiles ? w.groups : 0;
    // Codes have zeros up to whole tiles; halves end with the columns.
    const int columns = kElement == 1 ? w.tiles * kTileColumns : w.inputs;
    left = columns * kElement - lane % kParts * 16;
    x = static_cast<const char*>(task.x.data) + (token0 + lane / kParts) * task.x.ld * kElement +
        lane % kParts * 16;
    xStep = task.x.ld * (kElement * kTokensAtOnce);
    // Kept, instead of found again for each piece.
    asm volatile("" : "+l"(codes), "+l"(grids), "+l"(x), "+l"(xStep), "+r"(left));
  }

  __device__ void operator()(const Weights& w, int piece, uint32_t stage, int lane) const {
    fetchWeights(w, piece, stage, lane);
    fetchX(piece, stage, lane);
  }
  __device__ void fetchWeights(const Weights& w, int piece, uint32_t stage, int lane) const {
    const uint8_t* from = codes + int64_t(piece) * S::kCodeBytes;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; m++, from += rowBytes)
      if (m < tiles)
#pragma unroll
        for (int part = 0; part < S::kCodeBytes; part += kPieceBytes)
          copyAsync16(stage + m * S::kCodeBytes + part + lane * 16, from + part);
    // Steps beyond the last group are padding.
    const int group = w.firstGroup(piece * S::kSteps);
    if (lane < kGridParts && groups > 0) {
      copyAsync16(stage + gridTo, grids + uint64_t(min(group, groups - 1)) * gridStep);
#pragma unroll
      for (int j = 1; j < S::kSteps; j++)
        if (w.groupSteps <= (S::kSteps - 1) / j)
          copyAsync16(stage + gridTo + j * gridStep,
                      grids + uint64_t(min(group + j, groups - 1)) * gridStep);
    }
  }
  __device__ void fetchX(int piece, uint32_t stage, int lane) const {
    const int bytes = max(0, min(16, left - piece * S::kTokenBytes));
    const char* const xFrom = x + (bytes > 0 ? int64_t(piece) * S::kTokenBytes : 0);
#pragma unroll
    for (int j = 0; j < kCopies; j++)
      if (j * kTokensAtOnce < live)
        copyAsync16(stage + S::xByte(j * kTokensAtOnce + lane / kParts, lane % kParts),
                    xFrom + j * xStep, bytes);
  }
};

// Both for 4-bit floats, whose scales and rows of x come in whole 16 bytes: where a lane's parts start
// is found once.
template <class S>
struct FloatFetch {
  static constexpr int kTokensAtOnce = 4, kCopies = S::kTokens / kTokensAtOnce;
  const uint8_t* codes[S::kRowTiles];
  const uint8_t* scales;
  const char* x;
  int64_t xStep;  // bytes of the rows of x between two copies
  int lane, live, columns, groups;

  __device__ FloatFetch(const Task& task, int tileRow0, int count, int64_t token0, int live,
                        int lane)
      : lane(lane), live(live - lane / 8), columns(task.w.inputs - lane % 8 * 8) {
    const Weights& w = task.w;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; m++)
      codes[m] = w.codes + int64_t(tileRow0 + min(m, count - 1)) * w.tiles * kTileBytes + lane * 16;
    const int64_t tileRow = tileRow0 + min(lane / S::kGroups % S::kRowTiles, count - 1);
    scales = w.bytes + tileRow * w.groups * kTileRows;
    groups = w.groups - 1 - lane % S::kGroups;
    x = static_cast<const char*>(task.x.data) + (token0 + lane / 8) * task.x.ld * 2 + lane % 8 * 16;
    xStep = task.x.ld * (2 * kTokensAtOnce);
  }

  __device__ void operator()(int piece, uint32_t stage) const {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; m++)
      copyAsync16(stage + m * kPieceBytes + lane * 16, codes[m] + int64_t(piece) * kPieceBytes);
    const int bytes = piece * kPieceColumns < columns ? 16 : 0;
#pragma unroll
    for (int j = 0; j < kCopies; j++)
      if (j * kTokensAtOnce < live)
        copyAsync16(stage + S::xByte(j * kTokensAtOnce + lane / 8, lane % 8),
                    x + j * xStep + int64_t(piece) * S::kTokenBytes, bytes);
  }

  // The bytes of scales; groups beyond the last are padding.
  __device__ void fetchScales(int piece, uint32_t to) const {
    const int group = min(piece * S::kGroups, groups) + lane % S::kGroups;
    if (lane < S::kRowTiles * S::kGroups) copyAsync16(to + lane * 16, scales + group * kTileRows);
  }
};

}  // namespace aq::cuda::int4
