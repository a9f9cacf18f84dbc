// grad_rows.cuh: what becomes of a tile of a quantized matrix's gradient instead of being written. The
// warpgroups that multiply leave it in shared memory, rounded to bf16 as a gradient in memory would
// be, and go on with the next tile; a warpgroup of its own takes it from there through the gradient
// of the quantizer (device/grid_grad.cuh). Only code under AQ_HAS_HOPPER may use this.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "native/cuda/device/grad_lane.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/wide_tiles.cuh"
#include "native/cuda/grad_product.h"

namespace aq::cuda {

inline constexpr int kGradTileBytes = wide::kRows * wide::kCols * 2;
inline constexpr int kGradRowLanes = wide::kCols / kGradLane;
inline constexpr int kGradWarps = wide::kWarpgroup / kWarp;
inline constexpr int kGradAllWarps = (1 + wide::kConsumers) * kGradWarps;

#if defined(AQ_HAS_HOPPER)

// The tile in shared memory: rows of 256 bytes, whose 16-byte pieces are exchanged by the row's number
// so that neither side's accesses meet in a bank. `full` has an arrival of every warp that multiplies,
// `empty` one of every warp of the other side.
struct GradTile {
  uint32_t data, full, empty;

  // Where piece `piece` of a row lies.
  __device__ static uint32_t at(uint32_t base, int row, int piece) {
    return base + uint32_t(row * wide::kCols * 2) + uint32_t((piece ^ (row & 7)) << 4);
  }

  __device__ void init() const {
    barrierInit(full, wide::kConsumers * wide::kWarpgroup / kWarp);
    barrierInit(empty, kGradWarps);
  }
};

// Fetches `bytes`, a multiple of 16, into L2.
__device__ inline void prefetchBytes(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Two neighbouring numbers to shared memory.
__device__ inline void storeSums(uint32_t address, float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &both, 4);
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(bits) : "memory");
}

__device__ inline Vec<uint32_t, 4> loadShared(uint32_t address) {
  Vec<uint32_t, 4> v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.lane[0]), "=r"(v.lane[1]), "=r"(v.lane[2]), "=r"(v.lane[3])
               : "r"(address)
               : "memory");
  return v;
}

// Adds up the lanes of a part, of two rows at once, and writes it. Even lanes keep the first row, odd
// ones the second; of these every second one the steps and the smallest numbers, the others what is
// outside and the largest. parts: where the part of either row is, or null.
__device__ inline void storeParts(GradPart* const (&parts)[2], const RowSums (&rows)[2],
                                  int partLanes) {
  const int lane = int(threadIdx.x) % kWarp;
  const bool isSecond = lane & 1, isUpper = lane & 2;
  float steps = isSecond ? rows[1].steps : rows[0].steps;
  float outside = isSecond ? rows[1].outside : rows[0].outside;
  float low = isSecond ? rows[1].low : rows[0].low;
  float minusHigh = isSecond ? -rows[1].high : -rows[0].high;
  steps += __shfl_xor_sync(~0u, isSecond ? rows[0].steps : rows[1].steps, 1);
  outside += __shfl_xor_sync(~0u, isSecond ? rows[0].outside : rows[1].outside, 1);
  low = fminf(low, __shfl_xor_sync(~0u, isSecond ? rows[0].low : rows[1].low, 1));
  minusHigh = fminf(minusHigh, __shfl_xor_sync(~0u, isSecond ? -rows[0].high : -rows[1].high, 1));
  float sum = isUpper ? outside : steps, extreme = isUpper ? minusHigh : low;
  sum += __shfl_xor_sync(~0u, isUpper ? steps : outside, 2);
  extreme = fminf(extreme, __shfl_xor_sync(~0u, isUpper ? low : minusHigh, 2));
#pragma unroll
  for (int step = 4; step < kGradRowLanes; step *= 2) {
    if (step >= partLanes) break;
    sum += __shfl_xor_sync(~0u, sum, step);
    extreme = fminf(extreme, __shfl_xor_sync(~0u, extreme, step));
  }
  GradPart* const part = isSecond ? parts[1] : parts[0];
  if (!part || lane % partLanes >= 4) return;
  float* const to = reinterpret_cast<float*>(part);
  to[isUpper ? 1 : 0] = sum;
  to[isUpper ? 3 : 2] = extreme;
}

// What the warps of some warpgroups do to a tile: four rows at a time, each warp every `warps`th
// four. A lane has two rows that are two apart; those of the next time are read meanwhile.
template <GradKind kKind>
__device__ inline void takeGradTile(const MatrixGrad& a, const wide::Place& place,
                                    const GradTile& tile, uint32_t parity, int warp, int warps) {
  using Lane = GradLane<kKind>;
  static_assert(kGradRowLanes * 2 == kWarp);
  const int lane = int(threadIdx.x) % kWarp;
  const int piece = lane % kGradRowLanes, half = lane / kGradRowLanes;
  const int64_t col = place.col + piece * kGradLane;
  // Rows of the tile that are the matrix's, for the lane's columns and for the part they belong to.
  const int64_t rest = a.rows - place.row;
  const int all = int(rest < wide::kRows ? rest : wide::kRows);
  const int rows = col < a.cols ? all : 0;
  const int64_t partCol = col - col % a.partCols;
  const int partRows = a.parts && partCol < a.cols ? all : 0;
  const int64_t rowParts = (a.cols + a.partCols - 1) / a.partCols;
  int down = 4 * warp + half;
  int64_t at = (place.row + down) * a.cols + col;
  int64_t grid = (place.row + down) * a.perRow + (a.perRow == 1 ? 0 : col / a.group);
  GradPart* part = a.parts + (place.row + down) * rowParts + col / a.partCols;
  const int64_t atStep = 4 * warps * a.cols, gridStep = 4 * warps * a.perRow;
  const int64_t partStep = 4 * warps * rowParts;
  Lane ahead[2];
#pragma unroll
  for (int i = 0; i < 2; i++)
    ahead[i].load(a, down + 2 * i < rows, at + 2 * i * a.cols, grid + 2 * i * a.perRow);
  barrierWait(tile.full, parity);
#pragma unroll 1
  for (; down < wide::kRows; down += 4 * warps) {
    RowSums sums[2];
    GradPart* parts[2];
    // Of a row: what was read ahead as floats, and what comes next read.
    const auto open = [&](int i, GradNumbers<kKind>& own) {
      own.open(a, ahead[i], loadShared(GradTile::at(tile.data, down + 2 * i, piece)),
               down + 2 * i < rows);
      const GradGrid<float> codes(ahead[i].scale, ahead[i].zero, a.top);
      ahead[i].load(a, down + 4 * warps + 2 * i < rows, at + atStep + 2 * i * a.cols,
                    grid + gridStep + 2 * i * a.perRow);
      return codes;
    };
    const auto finish = [&](int i, const GradNumbers<kKind>& own, const GradGrid<float>& codes) {
      const bool isInside = down + 2 * i < rows;
      if (isInside) own.write(a, at + 2 * i * a.cols, codes.s);
      parts[i] = down + 2 * i < partRows ? part + 2 * i * rowParts : nullptr;
      sums[i] = own;
    };
    if constexpr (kKind == GradKind::kShort) {
      // Both rows at once: instructions of one fill the gaps of the other.
      GradNumbers<kKind> own[2];
      const GradGrid<float> codes[2] = {open(0, own[0]), open(1, own[1])};
      const bool isFirstSure = own[0].addSure(codes[0]);
      if (__builtin_expect(!(own[1].addSure(codes[1]) && isFirstSure), 0)) {
        own[0].addExactly(codes[0]);
        own[1].addExactly(codes[1]);
      }
      finish(0, own[0], codes[0]);
      finish(1, own[1], codes[1]);
    } else {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        GradNumbers<kKind> own;
        const GradGrid<float> codes = open(i, own);
        if (__builtin_expect(!own.addSure(codes), 0)) own.addExactly(codes);
        finish(i, own, codes);
      }
    }
    if (a.parts) storeParts(parts, sums, a.partCols / kGradLane);
    at += atStep;
    grid += gridStep;
    part += partStep;
  }
}

// Of the warpgroup that works tiles off: all of them, the last one with the others.
template <GradKind kKind>
__device__ inline void takeGradTiles(const MatrixGrad& a, const wide::Tiling& tiling,
                                     const GradTile& tile) {
  const int warp = int(threadIdx.x) % wide::kWarpgroup / kWarp;
  uint32_t parity = 0;
  wide::visitTiles(tiling, [&](const wide::Place& place) {
    takeGradTile<kKind>(a, place, tile, parity, warp, place.isLast ? kGradAllWarps : kGradWarps);
    __syncwarp();
    if (int(threadIdx.x) % kWarp == 0) arrive(tile.empty);
    parity ^= 1;
  });
}

// Of the warpgroups that multiply, which have nothing more to do: their share of the last tile.
template <GradKind kKind>
__device__ inline void helpWithLast(const MatrixGrad& a, const wide::Place& place,
                                    const GradTile& tile, uint32_t parity) {
  // Their warps are those from the second warpgroup on.
  takeGradTile<kKind>(a, place, tile, parity, int(threadIdx.x) / kWarp, kGradAllWarps);
}

// Of one warp that has nothing else to do: fetches what a tile will need into L2 while the tile is
// multiplied.
template <GradKind kKind>
__device__ inline void prefetchGradTiles(const MatrixGrad& a, const wide::Tiling& tiling,
                                         const GradTile& tile) {
  constexpr int kBytes = kKind == GradKind::kShort || kKind == GradKind::kOffset ? 2 : 4;
  bool isFirst = true;
  uint32_t parity = 0;
  wide::visitTiles(tiling, [&](const wide::Place& place) {
    if (!isFirst) {
      // The tile before is multiplied.
      barrierWait(tile.full, parity);
      parity ^= 1;
    }
    isFirst = false;
    const int64_t rest = a.cols - place.col;
    if (rest <= 0) return;
    const int count = int(rest < wide::kCols ? rest : wide::kCols);
    for (int i = int(threadIdx.x) % kWarp; i < wide::kRows; i += kWarp) {
      if (place.row + i >= a.rows) break;
      const int64_t at = (place.row + i) * a.cols + place.col;
      prefetchBytes(static_cast<const char*>(a.x) + at * kBytes, count * kBytes);
      if constexpr (kKind == GradKind::kOffset) prefetchBytes(a.v + at, count * 4);
      if constexpr (kKind == GradKind::kAdded) prefetchBytes(a.added + at, count * 4);
    }
  });
}

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda
