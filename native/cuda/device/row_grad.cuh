// row_grad.cuh: what fake_quant_grad finds out about whole rows, part by part: a warp about a tile
// of columns, and later a warp about the row.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/stored.cuh"

namespace aq::cuda {

// Columns of a tile: a lane has kTileNumbers of them, in vectors of 16 bytes, a warp's width apart.
inline constexpr int kTileVectors = 4;
template <class S>
inline constexpr int kTileNumbers = kTileVectors* kVecWidth<S>;
template <class S>
inline constexpr int kTileColumns = kTileNumbers<S>* kWarp;
inline constexpr int kMostTiles = kWarp;  // of a row: a lane of the warp that finishes it has one

inline constexpr int kNoColumn = -1;     // no element attains the extreme
inline constexpr int kManyColumns = -2;  // several do

// What the extremes of a row add to the gradient of the columns' factors: at one column each, or
// wherever an element equals them.
struct RowExtremes {
  int lowColumn, highColumn;
  float lowValue, highValue;  // what is added there
};

// What a warp found in a tile of a row. The masks say which lanes attain its extremes.
struct alignas(16) RowPart {
  float sums[4];  // steps, outside, of the row's factor
  float low, high;
  uint32_t lowLanes, highLanes;
};

template <class S>
struct RowGrad {
  using G = GradientOf<S>;
  const S* x;
  const G* g;
  const float* r;  // null: ones
  const float* c;
  const float* scale;
  const float* zero;
  ClipLogits<float> clip;
  GridRule<float> rule;
  G* gx;                  // or null
  float* clipGrad;        // [2, M], or null
  float* gr;              // [M], or null
  RowPart* parts;         // [M, tiles]
  float* partials;        // [rowBlocks, K] of gc, or null
  RowExtremes* extremes;  // [M], with partials
  float4* shares;         // [M], low, high and what elements equal to them get
  int64_t rows;
  int columns, tiles, rowBlocks;

  __device__ float scaled(int64_t row, int k, float factor) const {
    const float y = mulRn(factor, static_cast<float>(x[row * columns + k]));
    return c ? mulRn(y, c[k]) : y;
  }
};

// Whole numbers in the order of the floats; a zero counts as positive.
__device__ inline int orderOf(float x) {
  const int bits = __float_as_int(addRn(x, 0.0f));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
__device__ inline float floatOf(int order) {
  return __int_as_float(order ^ ((order >> 31) & 0x7fffffff));
}

// Stores the sums of a warp's lanes.
__device__ inline void storePart(RowPart& part, const GroupSums<float>& found, float rowGrad) {
  const int lane = int(threadIdx.x) % kWarp;
  // Three sums at once: lanes keep the one that their number says and give the others away.
  const bool isOdd = lane & 1, isUpper = lane & 2;
  float pair = isOdd ? found.outside : found.steps;
  pair += __shfl_xor_sync(~0u, isOdd ? found.steps : found.outside, 1);
  rowGrad += __shfl_xor_sync(~0u, rowGrad, 1);
  float sum = isUpper ? rowGrad : pair;
  sum += __shfl_xor_sync(~0u, isUpper ? pair : rowGrad, 2);
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const int low = orderOf(found.low), high = orderOf(found.high);
  const int lowest = __reduce_min_sync(~0u, low), highest = __reduce_max_sync(~0u, high);
  const uint32_t lowLanes = __ballot_sync(~0u, low == lowest);
  const uint32_t highLanes = __ballot_sync(~0u, high == highest);
  if (lane < 3) part.sums[lane] = sum;
  if (lane == 3) {
    part.low = floatOf(lowest);
    part.high = floatOf(highest);
    part.lowLanes = lowLanes;
    part.highLanes = highLanes;
  }
}

// A row as one warp finishes it. Half of the warp looks after the smallest, half after the largest
// elements.
template <class S>
struct RowFinish {
  const RowGrad<S>& a;
  const RowPart* parts;
  int64_t row;
  float r;
  GroupSums<float> sums{0.0f};
  uint32_t tiles = 0;  // those that attain the extreme of this half
  int lane, half;

  __device__ RowFinish(const RowGrad<S>& all, int64_t index)
      : a(all),
        parts(all.parts + index * all.tiles),
        row(index),
        r(all.r ? all.r[index] : 1.0f),
        lane(int(threadIdx.x) % kWarp),
        half(lane / (kWarp / 2)) {}

  // Adds the parts up; returns the sum for the row's factor.
  __device__ float add() {
    const bool has = lane < a.tiles;
    const RowPart part = parts[has ? lane : 0];
    sums.steps = warpSum(has ? part.sums[0] : 0.0f);
    sums.outside = warpSum(has ? part.sums[1] : 0.0f);
    const float rowGrad = warpSum(has ? part.sums[2] : 0.0f);
    sums.low = floatOf(__reduce_min_sync(~0u, orderOf(part.low)));
    sums.high = floatOf(__reduce_max_sync(~0u, orderOf(part.high)));
    const uint32_t lows = __ballot_sync(~0u, has && part.low == sums.low);
    const uint32_t highs = __ballot_sync(~0u, has && part.high == sums.high);
    tiles = half ? highs : lows;
    return rowGrad;
  }

  // Calls f(k, y, isOwn) with the elements of the lanes that attained an extreme, all lanes
  // together, where isOwn says that y is the extreme of the lane's half.
  template <class F>
  __device__ void visitExtremes(F&& f) const {
    constexpr int kHalf = kWarp / 2, kVec = kVecWidth<S>;
    static_assert(kTileNumbers<S> % kHalf == 0);
    const float extreme = half ? sums.high : sums.low;
    uint32_t ownTiles = tiles, lanes = 0;
    int tile = 0;
    while (true) {
      if (lanes == 0 && ownTiles != 0) {
        tile = __ffs(int(ownTiles)) - 1;
        ownTiles &= ownTiles - 1;
        lanes = half ? parts[tile].highLanes : parts[tile].lowLanes;
      }
      const bool isActive = lanes != 0;
      if (!__any_sync(~0u, isActive)) return;
      const int from = __ffs(int(lanes)) - 1;
      lanes &= lanes - 1;
      for (int number = lane % kHalf; number < kTileNumbers<S>; number += kHalf) {
        const int vector = (tile * kTileVectors + number / kVec) * kWarp + from;
        const int k = vector * kVec + number % kVec;
        const bool isInside = isActive && k < a.columns;
        const float y = isInside ? a.scaled(row, k, r) : 0.0f;
        f(k, y, isInside && y == extreme);
      }
    }
  }

  __device__ void finish() {
    const float s = a.scale[row];
    const ClipFactors<float> clip(a.clip, row);
    const float f1 = clip.high, f2 = clip.low;
    float rowGrad = add();
    const ExtremeGrads<float> grads = extremeGrads(sums, a.rule, s, f1, f2);
    if (a.clipGrad && lane == 0) {
      a.clipGrad[row] = grads.high * sums.high * (f1 * (1 - f1));
      a.clipGrad[a.rows + row] = grads.low * sums.low * (f2 * (1 - f2));
    }
    const float lowGrad = grads.low * f2, highGrad = grads.high * f1;
    const bool isFlat = r == 0;  // every element is 0, and its x c cannot be told from that
    if (a.gx || a.partials || isFlat) {
      const ExtremeShares<float> shares(sums, countExtremes(highGrad, lowGrad), lowGrad, highGrad);
      if (a.gx) addToGradient(shares, s);
      if (isFlat) rowGrad += (shares.lowShare + shares.highShare) * flatSum();
    }
    // Extreme elements have x c = y / r.
    if (!isFlat) rowGrad += (highGrad * sums.high + lowGrad * sums.low) / r;
    if (a.gr && lane == 0) a.gr[row] = rowGrad;
  }

 private:
  // Counts, and says what the extremes add to the columns.
  __device__ ExtremeCounts countExtremes(float highGrad, float lowGrad) const {
    constexpr int kHalf = kWarp / 2;
    int count = 0, column = kNoColumn;
    visitExtremes([&](int k, float, bool isOwn) {
      const uint32_t all = __ballot_sync(~0u, isOwn);
      const uint32_t own = all >> (half * kHalf) & 0xffffu;
      count += __popc(own);
      const int first = __shfl_sync(~0u, k, own ? half * kHalf + __ffs(int(own)) - 1 : lane);
      if (own) column = first;
    });
    ExtremeCounts counts;
    counts.low = __shfl_sync(~0u, count, 0);
    counts.high = __shfl_sync(~0u, count, kHalf);
    if (!a.partials) return counts;
    float value = 0;
    if (count == 1)
      value = (half ? highGrad : lowGrad) * static_cast<float>(a.x[row * a.columns + column]) * r;
    if (count > 1) column = kManyColumns;
    const int highColumn = __shfl_sync(~0u, column, kHalf);
    const float highValue = __shfl_sync(~0u, value, kHalf);
    if (lane == 0) {
      a.extremes[row] = {column, highColumn, value, highValue};
      a.shares[row] = {sums.low, sums.high, counts.low > 0 ? lowGrad / float(counts.low) : 0.0f,
                       counts.high > 0 ? highGrad / float(counts.high) : 0.0f};
    }
    return counts;
  }

  // Writes the gradients of the extreme elements again, with their shares.
  __device__ void addToGradient(const ExtremeShares<float>& shares, float s) const {
    const GridCode<float> grid(s, a.zero[row], a.rule.top);
    visitExtremes([&](int k, float y, bool isOwn) {
      if (!isOwn) return;
      const int64_t at = row * a.columns + k;
      const float code = grid.place(grid.ratio(y));
      const float passing = grid.clamp(code) == code ? static_cast<float>(a.g[at]) : 0.0f;
      const float gradient = (passing + shares.of(y)) * r * (a.c ? a.c[k] : 1.0f);
      a.gx[at] = static_cast<GradientOf<S>>(gradient);
    });
  }

  __device__ float flatSum() const {
    float sum = 0;
    for (int k = lane; k < a.columns; k += kWarp) {
      const float x = static_cast<float>(a.x[row * a.columns + k]);
      sum += a.c ? x * a.c[k] : x;
    }
    return warpSum(sum);
  }
};

}  // namespace aq::cuda
