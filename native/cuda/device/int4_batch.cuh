// int4_batch.cuh: the warpgroups that multiply out of the ring of int4_ring.cuh. Only under
// AQ_HAS_HOPPER (hopper.cuh).
#pragma once
#include "native/cuda/device/int4_ring.cuh"

namespace aq::cuda::int4 {

#if defined(AQ_HAS_HOPPER)

// The scale of a row, as factors of pairs; for bf16 in two parts, so that it is not rounded.
template <class H>
struct RowScale;
template <>
struct RowScale<__nv_bfloat16> {
  __nv_bfloat162 high, low;
  __device__ explicit RowScale(float s) {
    high = __floats2bfloat162_rn(s, s);
    const float rest = s - __low2float(high);
    low = __floats2bfloat162_rn(rest, rest);
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

// The grid of rows g and g + 8 of a row tile, for operands that are weights: w = (code - zero) scale.
template <class H>
struct WeightGrid {
  uint32_t z0, z8;
  RowScale<H> s0, s8;

  __device__ static WeightGrid read(const char* at, int lane) {
    const float2 s = __half22float2(reinterpret_cast<const __half2*>(at)[lane / 4]);
    const uint32_t z = reinterpret_cast<const uint16_t*>(at + 32)[lane / 4];
    return {Pair<H>::zero(z & 0xff), Pair<H>::zero(z >> 8), RowScale<H>(s.x), RowScale<H>(s.y)};
  }
  // The operand of 16 columns.
  __device__ void unpack(uint32_t word, uint32_t (&a)[4]) const {
    unpackWord<H>(word, z0, z8, a);
    s0.scale(a[0]);
    s8.scale(a[1]);
    s0.scale(a[2]);
    s8.scale(a[3]);
  }
};

// The same for operands code - zero, whose sums over a group are scaled.
template <class H>
struct SumGrid {
  uint32_t z0, z8;
  float2 scale;

  __device__ static SumGrid read(const char* at, int lane) {
    const float2 s = __half22float2(reinterpret_cast<const __half2*>(at)[lane / 4]);
    const uint32_t z = reinterpret_cast<const uint16_t*>(at + 32)[lane / 4];
    return {Pair<H>::zero(z & 0xff), Pair<H>::zero(z >> 8), s};
  }
  __device__ void unpack(uint32_t word, uint32_t (&a)[4]) const { unpackWord<H>(word, z0, z8, a); }
};

// A multiplying warp: its warpgroup's 64 rows of W and all tokens of the tile. W's operands are made
// in registers from the codes, 16 columns while the matrix units work on those before. With few
// tokens it is cheaper to scale sums than weights.
template <class H, class P>
struct Consumer {
  using Grid = std::conditional_t<P::kScalesSums, SumGrid<H>, WeightGrid<H>>;
  static constexpr int kSums = P::kTokens / 2;
  const uint32_t memory;
  char* const base;      // the same place, as a pointer
  const int slot, lane;  // slot: the warp
  float sum[kSums];

  __device__ Consumer(uint32_t memory, char* base, int slot, int lane)
      : memory(memory), base(base), slot(slot), lane(lane) {}

  __device__ void release(int stage) const {
    const uint32_t empty = memory + P::kEmpty + 8 * stage;
    if constexpr (P::kSharers == 1) {
      if (lane == 0) barrierArrive(empty);
    } else {
      if (lane < P::kSharers) barrierArriveAt(empty, uint32_t(lane));
    }
  }

  // Adds the scaled sums of products that are done.
  __device__ void addScaled(float (&part)[kSums], const float2& scale) {
    fenceSums(part);
#pragma unroll
    for (int i = 0; i < kSums; i++) sum[i] += part[i] * (i / 2 % 2 ? scale.y : scale.x);
  }

  __device__ void run(const Weights& w, const Work& work, Turn<P::kStages>& turn) {
    if constexpr (P::kIsFloats) {
      runFloats(work, turn);
    } else if constexpr (P::kTokens <= 32) {
      if (w.groupSteps == 1) {
        runFewCodes<2>(w, work, turn);
      } else {
        runFewCodes<4>(w, work, turn);
      }
    } else {
      runCodes(w, work, turn);
    }
  }

  // Of 4-bit floats: each operand is times its scale. The factors of a unit are made while the one
  // before is multiplied.
  __device__ void runFloats(const Work& work, Turn<P::kStages>& turn) {
    using Table = ScaleTable<P::kFormat, H, P::kUnitGroups>;
    static_assert(Table::kWords == P::kTableWords && Table::kRawBytes == P::kSlotGrids);
    constexpr int kWords = 4 * P::kHalves, kTogether = P::kTogether;
    static_assert(kWords / kTogether % 2 == 0);  // a's halves take turns, over units too
    const int phase = P::phaseOf(slot);
    const int mine = (work.units - phase + P::kPhases - 1) / P::kPhases;
    uint32_t* const tables =
        reinterpret_cast<uint32_t*>(base + P::kTables) + slot * (2 * P::kTableWords);
    const auto makeFactors = [&](const Turn<P::kStages>& of, int i) {
      barrierWait(memory + P::kFull + 8 * of.stage, of.parity);
      const int row = P::rowTileOf(slot) * P::kPhases + phase;
      uint32_t made[Table::kMade];
      Table::make(base + P::kGrids + of.stage * P::kGridsBytes + row * P::kSlotGrids, made, lane);
      Table::put(made, tables + i % 2 * P::kTableWords, lane);
    };
#pragma unroll
    for (int i = 0; i < kSums; i++) sum[i] = 0;
    uint32_t a[2][kTogether][4];
    int last = 0;
    if (mine > 0) makeFactors(turn, 0);
    for (int i = 0; i < mine; i++) {
      Turn<P::kStages> next = turn;
      next.next();
      const char* const codes =
          base + P::kCodes + turn.stage * P::kCodeBytes + slot * P::kPiece + lane * 16;
      const uint64_t x =
          tileDescriptor(memory + turn.stage * P::kXBytes + phase * P::kHalves * P::kXTile);
      uint4 words[P::kHalves];
#pragma unroll
      for (int h = 0; h < P::kHalves; h++)
        words[h] = *reinterpret_cast<const uint4*>(codes + h * kTileBytes / 2);
      __syncwarp();
      uint32_t scales[P::kUnitGroups];
      Table::read(tables + i % 2 * P::kTableWords, lane, scales);
#pragma unroll
      for (int k = 0; k < kWords; k += kTogether) {
        uint32_t(&operands)[kTogether][4] = a[k / kTogether % 2];
#pragma unroll
        for (int e = 0; e < kTogether; e++) {
          const uint4 w4 = words[(k + e) / 4];
          const int p = (k + e) % 4;
          scaledWord<P::kFormat, H>(p == 0   ? w4.x
                                    : p == 1 ? w4.y
                                    : p == 2 ? w4.z
                                             : w4.w,
                                    scales[(k + e) * stepGroups(P::kFormat) / 2], operands[e]);
        }
        wgmmaFence();
#pragma unroll
        for (int e = 0; e < kTogether; e++) {
          const int at = k + e;
          wgmmaHalves<H, P::kTokens>(sum, operands[e], x + at / 4 * (P::kXTile >> 4) + at % 4 * 2,
                                     true);
        }
        wgmmaCommit();
        if (k == kWords / 2 && i + 1 < mine) makeFactors(next, i + 1);
        wgmmaWait<1>();  // the operands of the products before may be overwritten
        if (k == 0 && i > 0) release(last);
      }
      last = turn.stage;
      turn = next;
    }
    wgmmaWait<0>();
    fenceSums(sum);
    if (mine > 0) release(last);
  }

  // Of whole numbers and few tokens: kTogether operands of 16 columns, all of one group, at a time. Two
  // sets of sums take turns: while one is made, the other is scaled and the operands after it are
  // unpacked, those of the next unit too.
  template <int kTogether>
  __device__ void runFewCodes(const Weights& w, const Work& work, Turn<P::kStages>& turn) {
    constexpr int kTimes = 4 * P::kHalves / kTogether;  // of a unit
    static_assert(kTimes % 2 == 0);                     // turns go on over units
    const int gridShift =
        w.groupSteps >= P::kUnitSteps ? 2 : w.groupSteps / 2;  // log2 of its steps
    const int phase = P::phaseOf(slot);
    const int mine = (work.units - phase + P::kPhases - 1) / P::kPhases;
#pragma unroll
    for (int i = 0; i < kSums; i++) sum[i] = 0;
    uint32_t a[2][kTogether][4];
    float part[2][kSums];
    float2 scale[2];
    uint4 words[P::kHalves];
    // Operands of part t of the unit at `of`, whose codes are read with the first.
    const auto unpack = [&](const Turn<P::kStages>& of, int t) {
      if (t == 0) {
        barrierWait(memory + P::kFull + 8 * of.stage, of.parity);
        const char* const codes =
            base + P::kCodes + of.stage * P::kCodeBytes + slot * P::kPiece + lane * 16;
#pragma unroll
        for (int h = 0; h < P::kHalves; h++)
          words[h] = *reinterpret_cast<const uint4*>(codes + h * kTileBytes / 2);
      }
      const int group = t * kTogether / 2 >> gridShift;
      const Grid grid = Grid::read(base + P::kGrids + of.stage * P::kGridsBytes +
                                       slot * P::kSlotGrids + group * P::kGridBytes,
                                   lane);
      scale[t % 2] = grid.scale;
#pragma unroll
      for (int e = 0; e < kTogether; e++) {
        const uint4 w4 = words[(t * kTogether + e) / 4];
        const int p = (t * kTogether + e) % 4;
        grid.unpack(p == 0 ? w4.x : p == 1 ? w4.y : p == 2 ? w4.z : w4.w, a[t % 2][e]);
      }
    };
    if (mine > 0) unpack(turn, 0);
    for (int i = 0; i < mine; i++) {
      Turn<P::kStages> next = turn;
      next.next();
      const uint64_t x =
          tileDescriptor(memory + turn.stage * P::kXBytes + phase * P::kHalves * P::kXTile);
#pragma unroll
      for (int t = 0; t < kTimes; t++) {
        wgmmaFence();
#pragma unroll
        for (int e = 0; e < kTogether; e++) {
          const int k = t * kTogether + e;
          wgmmaHalves<H, P::kTokens>(part[t % 2], a[t % 2][e],
                                     x + k / 4 * (P::kXTile >> 4) + k % 4 * 2, e > 0);
        }
        wgmmaCommit();
        wgmmaWait<1>();
        if (t > 0) addScaled(part[(t + 1) % 2], scale[(t + 1) % 2]);
        if (t + 1 < kTimes) {
          unpack(turn, t + 1);
        } else if (i + 1 < mine) {
          unpack(next, 0);
        }
      }
      wgmmaWait<0>();
      addScaled(part[1], scale[1]);
      release(turn.stage);
      turn = next;
    }
  }

  __device__ void runCodes(const Weights& w, const Work& work, Turn<P::kStages>& turn) {
    // 32-column steps of a grid, at most the unit's: 1, 2 or 4.
    const int gridSteps = min(w.groupSteps, P::kUnitSteps);
    const bool fine = gridSteps < P::kUnitSteps;
    const int phase = P::phaseOf(slot);
    const int mine = (work.units - phase + P::kPhases - 1) / P::kPhases;
    [[maybe_unused]] float part[P::kScalesSums ? kSums : 1];
    [[maybe_unused]] float2 scale = {};
#pragma unroll
    for (int i = 0; i < kSums; i++) sum[i] = 0;
    uint32_t a[2][4];
    int last = 0;
    for (int i = 0; i < mine; i++, turn.next()) {
      barrierWait(memory + P::kFull + 8 * turn.stage, turn.parity);
      const char* const codes =
          base + P::kCodes + turn.stage * P::kCodeBytes + slot * P::kPiece + lane * 16;
      const char* grids = base + P::kGrids + turn.stage * P::kGridsBytes + slot * P::kSlotGrids;
      const uint64_t x =
          tileDescriptor(memory + turn.stage * P::kXBytes + phase * P::kHalves * P::kXTile);
      uint4 words[P::kHalves];
#pragma unroll
      for (int h = 0; h < P::kHalves; h++)
        words[h] = *reinterpret_cast<const uint4*>(codes + h * kTileBytes / 2);
      Grid grid = Grid::read(grids, lane);
#pragma unroll
      for (int k = 0; k < 4 * P::kHalves; k++) {
        bool starts = k == 0;
        if (k > 0 && k % 2 == 0 && fine && (k / 2 & (gridSteps - 1)) == 0) {
          grid = Grid::read(grids += P::kGridBytes, lane);
          starts = true;
        }
        const uint4 w4 = words[k / 4];
        const int p = k % 4;
        grid.unpack(p == 0 ? w4.x : p == 1 ? w4.y : p == 2 ? w4.z : w4.w, a[k % 2]);
        const uint64_t b = x + k / 4 * (P::kXTile >> 4) + p * 2;
        if constexpr (P::kScalesSums) {
          if (starts) {
            if (k > 0 || i > 0) {
              wgmmaWait<0>();
              addScaled(part, scale);
            }
            scale = grid.scale;
          }
          wgmmaFence();
          wgmmaHalves<H, P::kTokens>(part, a[k % 2], b, !starts);
        } else {
          wgmmaFence();
          wgmmaHalves<H, P::kTokens>(sum, a[k % 2], b, true);
        }
        wgmmaCommit();
        wgmmaWait<1>();  // the operands of the product before may be overwritten
        if (k == 0 && i > 0) release(last);
      }
      last = turn.stage;
    }
    wgmmaWait<0>();
    if constexpr (P::kScalesSums) {
      if (mine > 0) addScaled(part, scale);
    }
    fenceSums(sum);
    if (mine > 0) release(last);
  }

  // Into [kPhases][kTokens][kSumPitch].
  __device__ void store(float* to) const {
    const int row = P::rowTileOf(slot) * kTileRows + lane / 4;
    to += P::phaseOf(slot) * P::kTokens * P::kSumPitch + row;
#pragma unroll
    for (int i = 0; i < P::kTokens / 2; i++) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
      to[token * P::kSumPitch + i / 2 % 2 * 8] = sum[i];
    }
  }
};

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda::int4
