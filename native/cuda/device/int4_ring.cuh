// int4_ring.cuh: the ring of steps in shared memory that feeds the matrix units in int4_batch.cu,
// int4_prefill.cu and their likes for 4-bit floats, and the warp that fills it. Only under AQ_HAS_HOPPER (hopper.cuh).
#pragma once
#include <cstdint>

#include "native/cuda/device/fp4_decode.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/int4_wgmma.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/int4_maps.h"

namespace aq::cuda::int4 {

// One product. `splits` blocks share a tile of y.
struct Batch {
  Weights w;
  Activations x;
  Result result;
  int32_t splits;
  bool wide;  // y allows accesses of 16 bytes (int4_prefill.cu: of two neighbours)
};

// How a block takes its tile of y. Warpgroups have 64 rows of W each; kPhases of them have the same
// rows and take units of columns in turn, so that a block with few rows, which needs no other block
// to finish its sums, still has work for all. A step is kPhases units.
template <Format kFormatOf, int kTokensOf, int kPhasesOf, int kBlocksOf = 1>
struct Plan {
  static constexpr Format kFormat = kFormatOf;
  static constexpr bool kIsFloats = kFormat != Format::kInt4;
  static constexpr int kTokens = kTokensOf, kPhases = kPhasesOf;
  static constexpr int kBlocks = kBlocksOf;  // of a multiprocessor
  static constexpr bool kIsPrefill = kTokens == 256;
  static constexpr int kSharers = kIsPrefill ? 2 : 1;  // blocks of a cluster that share x
  static constexpr int kWarpgroups = kIsPrefill || kBlocks == 2 ? 2 : 4;
  static constexpr int kRowGroups = kWarpgroups / kPhases;
  static constexpr int kRows = 64 * kRowGroups, kRowTilesOf = kRows / kTileRows;
  static constexpr int kSlots = 4 * kWarpgroups;  // row tiles of a step, one a warp
  static constexpr int kConsumers = 32 * kSlots;
  static constexpr bool kScalesSums = !kIsFloats && kTokens <= 64;
  // Many sums need more registers than an even share; only a whole warpgroup can give some away.
  static constexpr bool kShifts = kTokens >= 128;
  static constexpr int kMany = kIsPrefill ? 224 : 112, kFew = kIsPrefill ? 56 : 32;
  static constexpr int kThreads = kConsumers + (kShifts ? 128 : 32);
  static constexpr int kHalves = kIsPrefill ? 1 : 2;  // runs of 64 columns of a unit
  static constexpr int kUnitsOfTile = 2 / kHalves, kUnitSteps = kTileSteps / kUnitsOfTile;
  // A stage in bytes: tiles of x, each kTokens rows of 64 columns; codes, and scales (32 bytes) and
  // zeros (16) of every group, of every slot; of 4-bit floats a scale of 16 bytes of every group, and
  // row tile by row tile instead of slot by slot. Bulk copies start at multiples of 128.
  static constexpr int kXTile = kTokens * 128, kBoxes = kPhases * kHalves;
  static constexpr int kXBytes = kBoxes * kXTile;
  static constexpr int kPiece = kHalves * kTileBytes / 2, kCodeBytes = kSlots * kPiece;
  static constexpr int kUnitGroups = kUnitSteps * (kIsFloats ? stepGroups(kFormat) : 1);
  static constexpr int kGridBytes = kIsFloats ? 16 : 48, kSlotGrids = kUnitGroups * kGridBytes;
  static constexpr int kGridsBytes = kSlots * kSlotGrids;
  // Operands of 4-bit floats that are made before the products with them start.
  static constexpr int kTogether = kTokens <= 64 ? 4 : 1;
  // Words of a slot's factors, which its warp makes of scales.
  static constexpr int kTableWords = kIsFloats ? factorWords(kUnitGroups) : 0;
  static constexpr int kTableBytes = 2 * kSlots * kTableWords * 4;  // in turn
  // Of a multiprocessor, and what a block loses to the system, to alignment and to barriers.
  static constexpr int kAll = 228 << 10, kLost = 1024 + 1024 + 256;
  static constexpr int kMost = kAll / kBlocks - kLost - kTableBytes;
  static constexpr int kFit = kMost / (kXBytes + kCodeBytes + kGridsBytes);
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  // Shared memory: x first, whose tiles start at multiples of 1024.
  static constexpr int kCodes = kStages * kXBytes;
  static constexpr int kGrids = kCodes + kStages * kCodeBytes;
  static constexpr int kTables = kGrids + kStages * kGridsBytes;
  static constexpr int kFull = kTables + kTableBytes;
  static constexpr int kEmpty = kFull + 8 * kStages;
  static constexpr int kBytes = kEmpty + 8 * kStages + 1024;
  // The sums take the ring's place at the end: [kPhases][kTokens][kSumPitch] floats.
  static constexpr int kSumPitch = kRows + 4;
  static constexpr MapBoxes kBoxesOf = {
      kTokens / kSharers, kBoxes,  kPiece,
      kRowTilesOf,        kPhases, kIsFloats ? kPhases* kSlotGrids : 0};
  static_assert(kIsPrefill || kPhases * kTokens * kSumPitch * 4 <= kFull);

  __host__ __device__ static constexpr int phaseOf(int slot) { return slot / (4 * kRowGroups); }
  __host__ __device__ static constexpr int rowTileOf(int slot) { return slot % (4 * kRowGroups); }
};

// A block's tile of y, and its share of the columns in units, of whose steps it begins with `shift`:
// blocks that read the same x should not read the same part at the same time.
struct Work {
  int tileRow0, token0, firstUnit, units;
  int shift = 0;

  template <class P>
  __device__ int steps() const {
    return (units + P::kPhases - 1) / P::kPhases;
  }
  // First unit of the step that comes i-th.
  template <class P>
  __device__ int unitAt(int i) const {
    const int step = i + shift, count = steps<P>();
    return firstUnit + (step < count ? step : step - count) * P::kPhases;
  }
};

#if defined(AQ_HAS_HOPPER)

// All threads of a block: `full` ends when the producing warp's copies are there, `empty` when all
// multiplying warps are done with a stage, those of blocks that share x included.
template <class P>
__device__ inline void initRing(uint32_t memory) {
  if (threadIdx.x > 0) return;
  for (int i = 0; i < P::kStages; i++) {
    barrierInit(memory + P::kFull + 8 * i, P::kIsFloats ? 1 : 32 + 1);
    barrierInit(memory + P::kEmpty + 8 * i, P::kSlots * P::kSharers);
  }
  barrierInitFence();
}

// The warp that brings the steps. `memory` is the address of the ring.
template <class P>
struct Producer {
  const Batch& job;
  const Maps& maps;
  const uint32_t memory;
  const int lane;

  // The first weights may come as far as L2 while the kernel before still runs; there they are right
  // even if it writes them.
  __device__ void prefetchFirst(const Work& work) const {
    if (lane == 0) {
      prefetchMap(&maps.x);
      prefetchMap(&maps.codes);
      if constexpr (P::kIsFloats) prefetchMap(&maps.scales);
    }
    const int first = work.shift * P::kPhases + P::phaseOf(lane) * P::kStages;
    const int count = min(P::kStages, work.units - first);
    const int64_t tileRow = work.tileRow0 + P::rowTileOf(lane);
    if (lane < P::kSlots && tileRow < job.w.tileRows && count > 0)
      prefetch(job.w.codes + tileRow * job.w.tiles * kTileBytes +
                   int64_t(work.firstUnit + first) * P::kPiece,
               count * P::kPiece);
  }

  // What one thread brings: codes and x, and the scales of floats. Units beyond the block's share, or
  // the matrix, come for no one.
  __device__ void copy(const Work& work, int stage, int unit, uint32_t full) const {
    constexpr int kScaleBytes = P::kIsFloats ? P::kGridsBytes : 0;
    barrierExpect(full, P::kXBytes + P::kCodeBytes + kScaleBytes);
    copyBox(memory + P::kCodes + stage * P::kCodeBytes, &maps.codes, full, 0, work.tileRow0, unit);
    if constexpr (P::kIsFloats)
      copyBox(memory + P::kGrids + stage * P::kGridsBytes, &maps.scales, full,
              unit * (P::kSlotGrids / 4), work.tileRow0, 0);
    const uint32_t to = memory + stage * P::kXBytes;
    if constexpr (P::kSharers == 1) {
      copyBox(to, &maps.x, full, 0, work.token0, unit * P::kHalves);
    } else {
      const int share = int(clusterRank()) * (P::kTokens / P::kSharers);
      copyBoxToAll(to + share * 128, &maps.x, full, 0, work.token0 + share, unit * P::kHalves,
                   uint16_t((1 << P::kSharers) - 1));
    }
  }

  __device__ void run(const Work& work, Turn<P::kStages>& turn) const {
    const Weights& w = job.w;
    [[maybe_unused]] const int slot = lane % P::kSlots, slotPart = lane / P::kSlots;
    [[maybe_unused]] const int64_t firstSlot =
        int64_t(min(work.tileRow0 + P::rowTileOf(slot), w.tileRows - 1)) * w.groups * kTileRows;
    [[maybe_unused]] const int groups =
        w.groupSteps >= P::kUnitSteps ? 1 : P::kUnitSteps / w.groupSteps;
    for (int i = 0; i < work.steps<P>(); i++, turn.next()) {
      const uint32_t full = memory + P::kFull + 8 * turn.stage;
      const int unit = work.unitAt<P>(i);
      barrierWait(memory + P::kEmpty + 8 * turn.stage, turn.parity ^ 1);
      if (lane == 0) copy(work, turn.stage, unit, full);
      if constexpr (P::kIsFloats) {
        __syncwarp();
        continue;
      }
      const int firstGroup = w.firstGroup((unit + P::phaseOf(slot)) * P::kUnitSteps);
      const uint32_t grids =
          memory + P::kGrids + turn.stage * P::kGridsBytes + slot * P::kSlotGrids;
      for (int i = slotPart; i < 3 * groups; i += 32 / P::kSlots) {
        const int j = i / 3, part = i % 3;
        const int64_t at = firstSlot + min(firstGroup + j, w.groups - 1) * kTileRows;
        const void* const from = part < 2 ? static_cast<const void*>(w.scale + at + part * 8)
                                          : static_cast<const void*>(w.zero + at);
        copyAsync16(grids + j * P::kGridBytes + part * 16, from);
      }
      barrierArriveAfterCopies(full);
    }
  }
};

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda::int4
