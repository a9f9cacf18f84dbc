// grid_grad.cuh: what the gradient of fake quantization takes from an element, and what a group's
// sums make of it. The formulas are derived in native/cpu/kernels/fake_quant_grad.h:
//
//   gx = in g, gv = in g s, and through the extremes of the group, in equal parts to the elements
//   that attain them, what S = sum g ((q - z) - in u) and Z = sum g (1 - in) say;
//   u = x/s, q = clamp(round(u + v) + z), `in` is 1 where the clamp did not act.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/group.cuh"

namespace aq::cuda {

// What is gathered from a group. The extremes start at the grid's seed; a count of 0 says that no
// element attains the extreme, and then nothing flows to x through it.
template <class T>
struct GroupSums {
  T steps = 0;    // S
  T outside = 0;  // Z
  T low, high;
  int lowCount = 0, highCount = 0;

  __device__ explicit GroupSums(T seed) : low(seed), high(seed) {}
};

// Takes an element into the sums; returns what of its gradient passes.
template <bool kCounts, bool kOffset, class T>
__device__ inline T gradStep(const GridCode<T>& grid, T x, T g, T v, GroupSums<T>& sums) {
  const T u = grid.ratio(x);
  const T code = grid.place(kOffset ? addRn(u, v) : u);
  const T q = grid.clamp(code);
  const bool inside = q == code;
  sums.steps += g * ((q - grid.z) - (inside ? u : T(0)));
  sums.outside += inside ? T(0) : g;
  if constexpr (kCounts) {
    sums.highCount = (x > sums.high ? 0 : sums.highCount) + (x >= sums.high ? 1 : 0);
    sums.lowCount = (x < sums.low ? 0 : sums.lowCount) + (x <= sums.low ? 1 : 0);
  }
  sums.high = fmax(sums.high, x);
  sums.low = fmin(sums.low, x);
  return inside ? g : T(0);
}

// The sums over kWidth neighbours of a warp, given to all of them.
template <int kWidth, bool kCounts, class T>
__device__ inline void addNeighbours(GroupSums<T>& sums) {
  const T low = sums.low, high = sums.high;
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2) {
    sums.steps += __shfl_xor_sync(~0u, sums.steps, step);
    sums.outside += __shfl_xor_sync(~0u, sums.outside, step);
    sums.low = fmin(sums.low, __shfl_xor_sync(~0u, sums.low, step));
    sums.high = fmax(sums.high, __shfl_xor_sync(~0u, sums.high, step));
  }
  if constexpr (kCounts) {
    if (low != sums.low) sums.lowCount = 0;
    if (high != sums.high) sums.highCount = 0;
#pragma unroll
    for (int step = kWidth / 2; step > 0; step /= 2) {
      sums.lowCount += __shfl_xor_sync(~0u, sums.lowCount, step);
      sums.highCount += __shfl_xor_sync(~0u, sums.highCount, step);
    }
  }
}

// The sums over the lanes of a group, given to all of them. Called at most once by a kernel.
template <int kLanes, bool kCounts, class T>
__device__ inline void groupSums(GroupSums<T>& sums) {
  addNeighbours<(kLanes < kWarp ? kLanes : kWarp), kCounts>(sums);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T parts[4][kWarps];
    __shared__ int counts[2][kWarps];
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    if (lane == 0) {
      parts[0][warp] = sums.steps;
      parts[1][warp] = sums.outside;
      parts[2][warp] = sums.low;
      parts[3][warp] = sums.high;
      counts[0][warp] = sums.lowCount;
      counts[1][warp] = sums.highCount;
    }
    __syncthreads();
    const int part = lane % kWarps;  // every run of kWarps lanes adds up all warps
    sums.steps = parts[0][part];
    sums.outside = parts[1][part];
    sums.low = parts[2][part];
    sums.high = parts[3][part];
    sums.lowCount = counts[0][part];
    sums.highCount = counts[1][part];
    addNeighbours<kWarps, kCounts>(sums);
  }
}

// Gradients of the clipped extremes hi = f1 high and lo = f2 low.
template <class T>
struct ExtremeGrads {
  T high, low;
};

template <class T>
__device__ inline ExtremeGrads<T> extremeGrads(const GroupSums<T>& sums, const GridRule<T>& rule,
                                               T s, T f1, T f2) {
  const T low = mulRn(sums.low, f2), high = mulRn(sums.high, f1);
  const bool free = rule.rawScale(low, high) >= rule.floor;
  const T steps = free ? sums.steps / rule.levels : T(0);
  if (rule.symmetric) {
    const T above = fabs(high), below = fabs(low);
    const T share = above > below ? T(1) : (above == below ? T(0.5) : T(0));
    return {steps * copysign(share, high), steps * copysign(T(1) - share, low)};
  }
  if (rule.published) return {steps, -steps};
  const T raw = free ? (sums.steps - sums.outside * low / s) / rule.levels : T(0);
  return {raw, sums.outside - raw};
}

// What each element that attains an extreme of its group gets through it.
template <class T>
struct ExtremeShares {
  T low, high, lowShare, highShare;

  __device__ ExtremeShares(const GroupSums<T>& sums, T lowGrad, T highGrad)
      : low(sums.low),
        high(sums.high),
        lowShare(sums.lowCount > 0 ? lowGrad / T(sums.lowCount) : T(0)),
        highShare(sums.highCount > 0 ? highGrad / T(sums.highCount) : T(0)) {}

  __device__ T of(T x) const {
    return (x == high ? highShare : T(0)) + (x == low ? lowShare : T(0));
  }

  // Whether a thread that gathered `mine` has an element to add to.
  __device__ bool reach(const GroupSums<T>& mine) const {
    return (mine.highCount > 0 && mine.high == high) || (mine.lowCount > 0 && mine.low == low);
  }
};

}  // namespace aq::cuda
