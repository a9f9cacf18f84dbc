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
  float* parts;  // [splits][rows][outputs] where there are no clusters, else null
  int32_t splits;
};

// Starts the copies of the codes and grids of a piece into a stage; all lanes of a warp.
template <class S>
__device__ void fetchWeights(const Weights& w, int tileRow0, int piece, uint32_t stage, int lane) {
#pragma unroll
  for (int m = 0; m < S::kRowTiles; m++) {
    const int64_t tileRow = min(tileRow0 + m, w.tileRows - 1);
    copyAsync16(stage + m * kPieceBytes + lane * 16, w.codes + tileRow * w.tiles * kTileBytes +
                                                         int64_t(piece) * kPieceBytes + lane * 16);
  }
  // Three parts of 16 bytes per row tile and group; steps beyond the last group are padding.
  const int groups = w.groupSteps == 1 ? 2 : 1;
#pragma unroll
  for (int first = 0; first < S::kRowTiles * 3 * kPieceSteps; first += kWarp) {
    const int i = first + lane;
    if (i >= S::kRowTiles * 3 * groups) break;
    const int j = i % groups, m = i / groups / 3, part = i / groups % 3;
    const int64_t group = min(w.firstGroup(piece * kPieceSteps) + j, w.groups - 1);
    const int64_t slot =
        (int64_t(min(tileRow0 + m, w.tileRows - 1)) * w.groups + group) * kTileRows;
    if (part < 2) {
      copyAsync16(stage + S::kScale + (m * kPieceSteps + j) * S::kScaleBytes + part * 16,
                  w.scale + slot + part * 8);
    } else {
      copyAsync16(stage + S::kZero + (m * kPieceSteps + j) * S::kZeroBytes, w.zero + slot);
    }
  }
}

// Starts the copies of the columns of x that meet it.
template <class S>
__device__ void fetchX(const Task& task, int64_t token0, int live, int piece, uint32_t stage,
                       int lane) {
  constexpr int kParts = S::kTokenBytes / 16, kElement = S::kTokenBytes / kPieceColumns;
  // Codes have zeros up to whole tiles; halves end with the columns.
  const int columns = kElement == 1 ? task.w.tiles * kTileColumns : task.w.inputs;
  const int left = (columns - piece * kPieceColumns) * kElement;
  const char* const x = static_cast<const char*>(task.x.data) +
                        (token0 * task.x.ld + int64_t(piece) * kPieceColumns) * kElement;
#pragma unroll
  for (int j = 0; j < S::kTokens * kParts / kWarp; j++) {
    const int i = j * kWarp + lane, n = i / kParts, part = i % kParts;
    const int bytes = max(0, min(16, left - part * 16));
    if (n < live)
      copyAsync16(stage + S::xByte(n, part),
                  x + n * task.x.ld * kElement + (bytes > 0 ? part * 16 : 0), bytes);
  }
}

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

  __device__ FloatFetch(const Task& task, int tileRow0, int64_t token0, int live, int lane)
      : lane(lane), live(live - lane / 8), columns(task.w.inputs - lane % 8 * 8) {
    const Weights& w = task.w;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; m++)
      codes[m] =
          w.codes + int64_t(min(tileRow0 + m, w.tileRows - 1)) * w.tiles * kTileBytes + lane * 16;
    const int64_t tileRow = min(tileRow0 + lane / S::kGroups % S::kRowTiles, w.tileRows - 1);
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

struct NoFetch {
  __device__ NoFetch(const Task&, int, int64_t, int, int) {}
};

}  // namespace aq::cuda::int4
