// int4_batch.cuh: the two roles in a block of int4_batch.cu, and their place in shared memory. Only
// under AQ_HAS_HOPPER (hopper.cuh).
#pragma once
#include <cstdint>

#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/int4_wgmma.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

// One product. `splits` blocks share a tile of y.
struct Batch {
  Weights w;
  Activations x;
  Result result;
  int32_t splits;
  bool wide;  // y allows 16-byte accesses
};

inline constexpr int kTileOutputs = 256;  // of a block
inline constexpr int kRowTiles16 = kTileOutputs / kTileRows;
inline constexpr int kProducers = 128, kConsumers = 256;  // threads
inline constexpr int kDepth = 64;                         // columns of a step, half a packed tile
inline constexpr int kSumPitch = kTileOutputs + 4;        // floats between tokens of a sum

// Shared memory, in bytes: a ring of steps, each x as a tile of kTokens rows, codes, and per row tile
// the scales (32 bytes) and zeros (16) of up to two groups; then barriers.
template <int kTokens>
struct Room {
  static constexpr int kStages = kTokens == 64 ? 12 : 8;
  static constexpr int kXBytes = kTokens * kDepth * 2;
  static constexpr int kHalfTile = kTileBytes / 2;
  static constexpr int kCodeBytes = kRowTiles16 * kHalfTile;
  static constexpr int kGridBytes = 48;
  static constexpr int kGridsBytes = kRowTiles16 * 2 * kGridBytes;
  static constexpr int kCodes = kStages * kXBytes;
  static constexpr int kGrids = kCodes + kStages * kCodeBytes;
  static constexpr int kFull = kGrids + kStages * kGridsBytes;
  static constexpr int kEmpty = kFull + 8 * kStages;
  static constexpr int kBytes = kEmpty + 8 * kStages + 1024;  // x tiles start at multiples of 1024
  static_assert(kTokens * kSumPitch * 4 <= kFull, "the sums take the ring's place");
};

#if defined(AQ_HAS_HOPPER)

// Brings the steps of a block by asynchronous copies. `memory` is the address of its Room.
template <class H, int kTokens>
struct Producer {
  using R = Room<kTokens>;
  const Batch& job;
  const uint32_t memory;
  const int tileRow0, firstStep, thread;
  const int64_t token0;

  __device__ void fetchWeights(int i) const {
    const Weights& w = job.w;
    const int step = firstStep + i, stage = i % R::kStages;
    const int lane = thread % 32;
#pragma unroll
    for (int j = 0; j < kRowTiles16 / 4; j++) {
      const int m = 4 * j + thread / 32;
      const int64_t tileRow = min(tileRow0 + m, w.tileRows - 1);
      copyAsync16(
          memory + R::kCodes + stage * R::kCodeBytes + m * R::kHalfTile + lane * 16,
          w.codes + tileRow * w.tiles * kTileBytes + int64_t(step) * R::kHalfTile + lane * 16);
    }
    const int groups = w.groupSteps > 1 ? 1 : 2;  // of the step
    if (thread >= kRowTiles16 * 3 * groups) return;
    const int m = thread / (3 * groups), j = groups == 1 ? 0 : thread / 3 % 2, part = thread % 3;
    const int64_t tileRow = min(tileRow0 + m, w.tileRows - 1);
    // Steps beyond the last group are padding.
    const int64_t slot =
        (tileRow * w.groups + min(w.firstGroup(2 * step) + j, w.groups - 1)) * kTileRows;
    const uint32_t to =
        memory + R::kGrids + stage * R::kGridsBytes + (2 * m + j) * R::kGridBytes + part * 16;
    if (part < 2) {
      copyAsync16(to, w.scale + slot + part * 8);
    } else {
      copyAsync16(to, w.zero + slot);
    }
  }

  __device__ void fetchX(int i) const {
    const int n0 = thread / 8, part = thread % 8;
    const int64_t column = int64_t(firstStep + i) * kDepth + part * 8;
    const int bytes = int(max(int64_t(0), min(int64_t(8), job.w.inputs - column))) * 2;
    const H* const x =
        static_cast<const H*>(job.x.data) + (token0 + n0) * job.x.ld + (bytes > 0 ? column : 0);
    const int64_t live = job.x.rows - token0 - n0;
    const uint32_t to = memory + i % R::kStages * R::kXBytes + n0 * 128 + ((part ^ (n0 & 7)) << 4);
#pragma unroll
    for (int j = 0; j < kTokens / 16; j++) {
      const bool exists = 16 * j < live;
      copyAsync16(to + 16 * j * 128, exists ? x + 16 * j * job.x.ld : job.x.data,
                  exists ? bytes : 0);
    }
  }

  // The first weights may come as far as L2 while the kernel before still runs; there they are right
  // even if it writes them.
  __device__ void run(int steps) const {
    if (thread < kRowTiles16) {
      const int64_t tileRow = min(tileRow0 + thread, job.w.tileRows - 1);
      prefetch(job.w.codes + tileRow * job.w.tiles * kTileBytes + int64_t(firstStep) * R::kHalfTile,
               min(R::kStages, steps) * R::kHalfTile);
    }
    waitForKernelBefore();
    for (int i = 0; i < steps; i++) {
      const int stage = i % R::kStages;
      if (i >= R::kStages) barrierWait(memory + R::kEmpty + 8 * stage, (i / R::kStages - 1) & 1);
      fetchWeights(i);
      fetchX(i);
      barrierArriveAfterCopies(memory + R::kFull + 8 * stage);
    }
    letNextKernelStart();
  }
};

// The scale of a row, as factors of pairs; for bf16 in two parts, so that it is not rounded.
template <class H>
struct RowScale;
template <>
struct RowScale<__nv_bfloat16> {
  __nv_bfloat162 high, low;
  __device__ explicit RowScale(float s) {
    const __nv_bfloat16 h = __float2bfloat16_rn(s);
    high = __bfloat162bfloat162(h);
    low = __bfloat162bfloat162(__float2bfloat16_rn(s - __bfloat162float(h)));
  }
  __device__ void scale(uint32_t& pair) const {
    const auto v = reinterpret_cast<const __nv_bfloat162&>(pair);
    const __nv_bfloat162 w = __hfma2(v, high, __hmul2(v, low));
    pair = reinterpret_cast<const uint32_t&>(w);
  }
};
template <>
struct RowScale<__half> {
  __half2 factor;
  __device__ explicit RowScale(float s) : factor(__float2half2_rn(s)) {}
  __device__ void scale(uint32_t& pair) const {
    const __half2 w = __hmul2(reinterpret_cast<const __half2&>(pair), factor);
    pair = reinterpret_cast<const uint32_t&>(w);
  }
};

// Multiplies: warpgroup `group` (0, 1) of the block has 128 rows of W, as two runs of 64, and all
// tokens. W's operands are made in registers from the codes, half a step while the matrix units
// work on the half before.
template <class H, int kTokens>
struct Consumer {
  using R = Room<kTokens>;
  static constexpr int kRuns = 2;
  const uint32_t memory;
  const char* const base;  // the same place, as a pointer
  const int group, warp, lane;
  float sum[kRuns][kTokens / 2];  // set by the first piece

  __device__ Consumer(uint32_t memory, const char* base, int group, int warp, int lane)
      : memory(memory), base(base), group(group), warp(warp), lane(lane) {}

  __device__ int rowTile(int run) const { return (group * kRuns + run) * 4 + warp; }

  // The grid of rows g and g + 8 of a row tile.
  struct Grid {
    uint32_t z0, z8;
    RowScale<H> s0, s8;
  };

  __device__ Grid gridAt(int stage, int run, int group) const {
    const char* const at =
        base + R::kGrids + stage * R::kGridsBytes + (2 * rowTile(run) + group) * R::kGridBytes;
    const float2 s = __half22float2(reinterpret_cast<const __half2*>(at)[lane / 4]);
    const uint32_t z = reinterpret_cast<const uint16_t*>(at + 32)[lane / 4];
    return {Pair<H>::zero(z & 0xff), Pair<H>::zero(z >> 8), RowScale<H>(s.x), RowScale<H>(s.y)};
  }

  __device__ static void unpack(uint32_t word, const Grid& grid, uint32_t (&a)[4]) {
    unpackWord<H>(word, grid.z0, grid.z8, a);
    grid.s0.scale(a[0]);
    grid.s8.scale(a[1]);
    grid.s0.scale(a[2]);
    grid.s8.scale(a[3]);
  }

  __device__ void run(int steps, bool fine) {
    uint32_t a[2][2][kRuns][4];  // operands of the two halves of a step, each of two products
    for (int i = 0; i < steps; i++) {
      const int stage = i % R::kStages;
      barrierWait(memory + R::kFull + 8 * stage, i / R::kStages & 1);
      fenceForMatrixUnits();
      const char* const codes = base + R::kCodes + stage * R::kCodeBytes + lane * 16;
      const uint64_t x = tileDescriptor(memory + stage * R::kXBytes);
      const uint4 words[kRuns] = {
          *reinterpret_cast<const uint4*>(codes + rowTile(0) * R::kHalfTile),
          *reinterpret_cast<const uint4*>(codes + rowTile(1) * R::kHalfTile)};
      Grid grid[kRuns] = {gridAt(stage, 0, 0), gridAt(stage, 1, 0)};
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int run = 0; run < kRuns; run++) {
          if (half == 1 && fine) grid[run] = gridAt(stage, run, 1);
          unpack(half == 0 ? words[run].x : words[run].z, grid[run], a[half][0][run]);
          unpack(half == 0 ? words[run].y : words[run].w, grid[run], a[half][1][run]);
        }
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < 2; k++) {
#pragma unroll
          for (int run = 0; run < kRuns; run++)
            wgmmaHalves<H, kTokens>(sum[run], a[half][k][run], x + 4 * half + 2 * k,
                                    i > 0 || half > 0 || k > 0);
        }
        wgmmaCommit();
        wgmmaWait<1>();  // the half before is done: its operands may be overwritten
      }
      // Of the step before nothing is under way.
      if (i > 0 && lane == 0) barrierArrive(memory + R::kEmpty + 8 * ((i - 1) % R::kStages));
    }
    wgmmaWait<0>();
  }

  // Into [kTokens][kSumPitch].
  __device__ void store(float* to) const {
#pragma unroll
    for (int run = 0; run < kRuns; run++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i++) {
        const int row = rowTile(run) * kTileRows + lane / 4 + i / 2 % 2 * 8;
        const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
        to[token * kSumPitch + row] = sum[run][i];
      }
    }
  }
};

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda::int4
