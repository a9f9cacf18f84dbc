// wide_tiles.cuh: how the products with bf16 operands go over C on Hopper: in tiles of 256 rows x 128
// columns, two neighbouring ones at a time, which the two blocks of a cluster take; blocks stay and
// take tiles in turn. Only code under AQ_HAS_HOPPER may use the device functions.
#pragma once
#include <cstdint>

#include "native/cuda/device/hopper.cuh"

namespace aq::cuda::wide {

inline constexpr int kRows = 256;  // of C of a tile
inline constexpr int kCols = 128;
inline constexpr int kCluster = 2;       // blocks, one beside the other, that share rows of C
inline constexpr int kWarpgroup = 128;   // threads
inline constexpr int kConsumers = 2;     // warpgroups that multiply
inline constexpr int kAlignment = 1024;  // of the stages; the swizzle is by address
inline constexpr int kBoxWidth = 128;    // bytes of a row that is copied at once

struct Tiling {
  int64_t rows, cols;  // of tiles; those of a column belong to a whole cluster

  int64_t count() const { return rows * cols; }
};

inline Tiling tilingOf(int64_t m, int64_t n) {
  return {(m + kRows - 1) / kRows, (n + kCols * kCluster - 1) / (kCols * kCluster)};
}

#if defined(AQ_HAS_HOPPER)

struct Place {
  int64_t row, col;  // of C, where this block's tile starts
  bool isLast;       // of this block's
};

// Tiles are numbered along the columns of groups of a few rows of tiles, so that those worked on at
// the same time share operands in L2.
__device__ inline Place placeTile(const Tiling& tiling, int64_t tile) {
  constexpr int64_t kGroup = 8;
  const int64_t group = tile / (kGroup * tiling.cols), first = group * kGroup;
  const int64_t high = tiling.rows - first < kGroup ? tiling.rows - first : kGroup;
  const int64_t within = tile - first * tiling.cols;
  const bool isLast = tile + gridDim.x / kCluster >= tiling.rows * tiling.cols;
  return {(first + within % high) * kRows, (within / high * kCluster + clusterRank()) * kCols,
          isLast};
}

// Calls f with the places of this block's tiles.
template <class F>
__device__ inline void visitTiles(const Tiling& tiling, F&& f) {
  const int64_t count = tiling.rows * tiling.cols;
  for (int64_t tile = blockIdx.x / kCluster; tile < count; tile += gridDim.x / kCluster)
    f(placeTile(tiling, tile));
}

using cuda::Turn;

// The barriers of kStages stages, full ones, then empty ones, before anything uses them.
template <int kStages>
__device__ inline void initStages(uint32_t barriers) {
  for (int i = 0; i < kStages; i++) {
    barrierInit(barriers + i * 8, 1);
    barrierInit(barriers + (kStages + i) * 8, kConsumers * (kWarpgroup / 32) * kCluster);
  }
}

// Tells both blocks of the cluster that a warp has read what it needs of a stage, which may be filled
// again once all warps that multiply have.
__device__ inline void releaseStage(uint32_t empty, int thread) {
  const int lane = thread % 32;
  if (lane < kCluster) barrierArriveAt(empty, uint32_t(lane));
}

// 16 of k, number `part`, of a matrix with k across its rows, copied in boxes of boxBytes, 128 bytes
// of a row each.
__device__ inline uint64_t turnedDescriptor(uint32_t address, uint32_t boxBytes, int part) {
  constexpr uint64_t kUnused = uint64_t(1) << 16;
  return tileDescriptor(address) - kUnused + (uint64_t(boxBytes >> 4) << 16) +
         part * (16 * kBoxWidth / 16);
}

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda::wide
