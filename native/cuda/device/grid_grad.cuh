// grid_grad.cuh: what the gradient of fake quantization takes from its elements, and what a group's
// sums make of it. The formulas are derived in native/cpu/kernels/fake_quant_grad.h:
//
//   gx = in g, gv = in g s, and through the extremes of the group, in equal parts to the elements
//   that attain them, what S = sum g ((q - z) - in u) and Z = sum g (1 - in) say;
//   u = x/s, q = clamp(round(u + v) + z), `in` is 1 where the clamp did not act.
#pragma once
#include <cstdint>

#include "native/cuda/device/biased_code.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/group.cuh"

namespace aq::cuda {

// What is gathered from a group. The extremes start at the grid's seed.
template <class T>
struct GroupSums {
  T steps = 0;    // S
  T outside = 0;  // Z
  T low, high;

  __device__ explicit GroupSums(T seed) : low(seed), high(seed) {}

  template <int N>
  __device__ void reach(const T (&x)[N]) {
#pragma unroll
    for (int e = 0; e < N; e++) {
      high = fmax(high, x[e]);
      low = fmin(low, x[e]);
    }
  }
};

// A group's grid as the gradient sees it. Codes are those of GridCode.
template <class T>
struct GradGrid {
  T s, z, top;

  __device__ GradGrid(T scale, T zero, T largest) : s(scale), z(zero), top(largest) {
    if constexpr (sizeof(T) == 4) {
      lowest_ = addRn(kBias, -zero);
      asm("rcp.approx.f32 %0, %1;" : "=f"(inverse_) : "f"(scale));
      perTop_ = __frcp_rn(top);
      topInverse_ = inverse_ * perTop_;
      topZero_ = zero * perTop_;
      // Quotients up to `reach` are wrong by less than reach * 2^-21 where they come from the
      // reciprocals, and so is what is left of them beside a rounded quotient and its sum with an
      // offset of at most 1. What lies beyond is clamped whichever way it is rounded.
      const float reach = top + fabsf(zero) + 2;
      const bool isPlain = scale > 0x1p-60f && scale < 0x1p60f && reach < 65536.0f;
      margin_ = isPlain ? reach * 0x1p-20f : 2.0f;
    }
  }

  // Takes N elements into the sums: numbers x, their gradients g, of which what passes stays, and
  // offsets v.
  template <bool kOffset, int N>
  __device__ void take(const T (&x)[N], T (&g)[N], const T (&v)[N], GroupSums<T>& sums) const {
    sums.reach(x);
    T error[N];
    bool inside[N];
    place<kOffset>(x, v, error, inside);
#pragma unroll
    for (int e = 0; e < N; e++) {
      sums.steps = fma(g[e], error[e], sums.steps);
      if (!inside[e]) sums.outside += g[e];
      g[e] = inside[e] ? g[e] : T(0);
    }
  }

  // The same without offsets and extremes, for kernels that are short of registers: adds up first
  // and looks afterwards whether it was right to.
  template <int N>
  __device__ void pass(const float (&x)[N], float (&g)[N], GroupSums<float>& sums) const {
    float passing[N], steps = sums.steps, outside = sums.outside, nearest = 1;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const Code near = codeOf<false>(x[e], 0);
      nearest = atMost(nearest, fabsf(near.gap));
      const bool inside = near.gap < 0;
      steps = __fmaf_rn(g[e], inside ? -near.rest : near.q, steps);
      if (!inside) outside += g[e];
      passing[e] = inside ? g[e] : 0.0f;
    }
    if (nearest > margin_) {
      sums.steps = steps;
      sums.outside = outside;
    } else {
      float error[N];
      bool inside[N];
      placeExactly<false>(x, x, error, inside);
#pragma unroll
      for (int e = 0; e < N; e++) {
        sums.steps = __fmaf_rn(g[e], error[e], sums.steps);
        if (!inside[e]) sums.outside += g[e];
        passing[e] = inside[e] ? g[e] : 0.0f;
      }
    }
#pragma unroll
    for (int e = 0; e < N; e++) g[e] = passing[e];
  }

  // Of numbers x with offsets v: whether the clamp leaves them inside, and (q - z) - in u.
  template <bool kOffset, int N>
  __device__ void place(const T (&x)[N], const T (&v)[N], T (&error)[N], bool (&inside)[N]) const {
    if constexpr (sizeof(T) == 4) {
      if (placeSurely<kOffset>(x, v, error, inside)) return;
    }
    placeExactly<kOffset>(x, v, error, inside);
  }

 private:
  // Code by code.
  template <bool kOffset, int N>
  __device__ void placeExactly(const T (&x)[N], const T (&v)[N], T (&error)[N],
                               bool (&inside)[N]) const {
    const GridCode<T> exact(s, z, top);
#pragma unroll
    for (int e = 0; e < N; e++) {
      const T u = exact.ratio(x[e]);
      const T code = exact.place(kOffset ? addRn(u, v[e]) : u);
      const T q = exact.clamp(code);
      inside[e] = q == code;
      error[e] = (q - z) - (inside[e] ? u : T(0));
    }
  }

  // A code as the reciprocal gives it: q is the nearest one, found as a share of all codes, which
  // the instruction itself clamps; `rest` is what is left of the quotient beside it, and the clamp
  // acts where that is more than one half: where `gap` is not negative.
  struct Code {
    float q, rest, gap;
  };
  template <bool kOffset>
  __device__ Code codeOf(float x, float v) const {
    const float sum = kOffset ? __fmaf_rn(x, inverse_, v) : 0.0f;
    const float share =
        kOffset ? saturated(sum, perTop_, topZero_) : saturated(x, topInverse_, topZero_);
    const float q = addRn(__fmaf_rn(share, top, lowest_), -kBias);
    const float rest = kOffset ? addRn(sum, -q) : __fmaf_rn(x, inverse_, -q);
    return {q, rest, addRn(fabsf(rest), -0.5f)};
  }

  // False, and what it gave means nothing, where an element is so near to one half, or not a
  // number, that this cannot decide.
  template <bool kOffset, int N>
  __device__ bool placeSurely(const float (&x)[N], const float (&v)[N], float (&error)[N],
                              bool (&inside)[N]) const {
    float nearest = 1, farthest = 0;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const Code near = codeOf<kOffset>(x[e], v[e]);
      nearest = atMost(nearest, fabsf(near.gap));
      if constexpr (kOffset) farthest = fmaxf(farthest, fabsf(v[e]));
      inside[e] = near.gap < 0;
      error[e] = inside[e] ? (kOffset ? addRn(v[e], -near.rest) : -near.rest) : near.q;
    }
    return nearest > margin_ && (!kOffset || farthest <= 1.0f);
  }

  // a b + c, no less than 0 and no more than 1; 0 of NaN.
  __device__ static float saturated(float a, float b, float c) {
    float y;
    asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
    return y;
  }

  float lowest_ = 0;  // the biased code of 0
  float inverse_ = 0, margin_ = 0;
  float perTop_ = 0, topInverse_ = 0, topZero_ = 0;  // 1, inverse and zero, each through top
};

// The sums over kWidth neighbours of a warp, given to all of them.
template <int kWidth, class T>
__device__ inline void addNeighbours(GroupSums<T>& sums) {
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2) {
    sums.steps += __shfl_xor_sync(~0u, sums.steps, step);
    sums.outside += __shfl_xor_sync(~0u, sums.outside, step);
    sums.low = fmin(sums.low, __shfl_xor_sync(~0u, sums.low, step));
    sums.high = fmax(sums.high, __shfl_xor_sync(~0u, sums.high, step));
  }
}

// The sums over the lanes of a group, given to all of them. Called at most once by a kernel.
template <int kLanes, class T>
__device__ inline void groupSums(GroupSums<T>& sums) {
  addNeighbours<(kLanes < kWarp ? kLanes : kWarp)>(sums);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T parts[4][kWarps];
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    if (lane == 0) {
      parts[0][warp] = sums.steps;
      parts[1][warp] = sums.outside;
      parts[2][warp] = sums.low;
      parts[3][warp] = sums.high;
    }
    __syncthreads();
    const int part = lane % kWarps;  // every run of kWarps lanes adds up all warps
    sums.steps = parts[0][part];
    sums.outside = parts[1][part];
    sums.low = parts[2][part];
    sums.high = parts[3][part];
    addNeighbours<kWarps>(sums);
  }
}

// How many elements attain the extremes of a group. 0 says that the extreme is the zero that
// belongs to every grid, and then nothing flows to x through it.
struct ExtremeCounts {
  int low = 0, high = 0;

  template <class T>
  __device__ void take(T x, const GroupSums<T>& sums) {
    low += x == sums.low ? 1 : 0;
    high += x == sums.high ? 1 : 0;
  }
};

// The counts over the lanes of a group, given to all of them. Called at most once by a kernel.
template <int kLanes>
__device__ inline void groupCounts(ExtremeCounts& counts) {
  if constexpr (kLanes <= kWarp) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      counts.low += __shfl_xor_sync(~0u, counts.low, step);
      counts.high += __shfl_xor_sync(~0u, counts.high, step);
    }
  } else {
    __shared__ int lows, highs;
    if (threadIdx.x == 0) lows = highs = 0;
    __syncthreads();
    if (counts.low > 0) atomicAdd(&lows, counts.low);
    if (counts.high > 0) atomicAdd(&highs, counts.high);
    __syncthreads();
    counts.low = lows;
    counts.high = highs;
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
  T low = 0, high = 0, lowShare = 0, highShare = 0;

  __device__ ExtremeShares() {}
  __device__ ExtremeShares(const GroupSums<T>& sums, const ExtremeCounts& counts, T lowGrad,
                           T highGrad)
      : low(sums.low),
        high(sums.high),
        lowShare(counts.low > 0 ? lowGrad / T(counts.low) : T(0)),
        highShare(counts.high > 0 ? highGrad / T(counts.high) : T(0)) {}

  __device__ T of(T x) const {
    return (x == high ? highShare : T(0)) + (x == low ? lowShare : T(0));
  }
};

}  // namespace aq::cuda
