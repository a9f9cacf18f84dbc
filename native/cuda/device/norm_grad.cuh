// norm_grad.cuh: the gradient of a norm in one pass over its rows, and what can be done to a row's g
// while it is in registers, before the norm sees it.
#pragma once
#include <cstdint>

#include "native/cuda/device/async_copy.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/norm_rows.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/queue.h"

namespace aq::cuda {

template <class T>
struct NormGrad {
  const T* x;
  const T* w;
  const T* mean;  // layer_norm only
  const T* rstd;
  const T* g;
  T* gx;     // or null
  T* parts;  // [parts, gw and, where it is wanted, gb: columns each]
  int64_t rows;
  int64_t columns;
  int64_t rowsPerPart;
  int64_t stride;  // of parts: columns, or twice that
};

// What a row's threads agree on: `slope` = mean(u n), `level` = mean u.
template <class T>
struct RowMeans {
  T mean, rstd, slope, level;

  __device__ T gradient(T x, T u) const {
    return rstd * fma(-mulRn(x - mean, rstd), slope, u - level);
  }
};

// rowSums where the block had a barrier since the last call.
template <int kLanes, class T, int N>
__device__ inline void nextRowSums(T (&values)[N]) {
  for (T& value : values) value = warpSum(value);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T parts[kWarps][N];
    if (threadIdx.x % kWarp == 0) {
      for (int i = 0; i < N; i++) parts[threadIdx.x / kWarp][i] = values[i];
    }
    __syncthreads();
    for (int i = 0; i < N; i++) {
      values[i] = 0;
      for (int w = 0; w < kWarps; w++) values[i] += parts[w][i];
    }
  }
}

// Sums of u (x - mean) and, where kCentered, of u; over the threads of the row. kNext: the block had a
// barrier since the last call.
template <int kLanes, bool kCentered, bool kNext, class T>
__device__ RowMeans<T> meansOf(T mean, T rstd, T cross, T level, int64_t columns) {
  T sums[kCentered ? 2 : 1] = {cross};
  if constexpr (kCentered) sums[1] = level;
  if constexpr (kNext) {
    nextRowSums<kLanes>(sums);
  } else {
    rowSums<kLanes>(sums);
  }
  return {mean, rstd, sums[0] * rstd / T(columns), kCentered ? sums[kCentered] / T(columns) : T(0)};
}

// g as it is.
struct NothingBefore {
  static constexpr bool kHasBarrier = false;  // of the block, in every call
  struct State {};
  __device__ State start() const { return {}; }
  template <class T, int kVec>
  __device__ void operator()(const State&, int64_t, int, const Vec<T, kVec> (&)[kNormKept],
                             Vec<T, kVec> (&)[kNormKept]) const {}
  __device__ void finish() const {}
};

template <int kLanes>
inline constexpr int kNormGradBlock = kLanes > kNormThreads ? kLanes : kNormThreads;
// Bytes of dynamic shared memory: x and g of the row at hand and of the next one.
template <int kLanes>
inline constexpr int kNormStages = 4 * kNormKept* kNormGradBlock<kLanes> * 16;

// A block a part of the rows. kBias: gb is wanted. before(state, row, lane, x, g) works on a row's g in
// place; all lanes of the row call it.
template <class T, int kLanes, bool kCentered, bool kBias, class Before>
__global__ __launch_bounds__(kNormGradBlock<kLanes>,
                             kLanes > kNormThreads
                                 ? 1
                                 : 2) void normGradPart(const __grid_constant__ NormGrad<T> n,
                                                        const __grid_constant__ Before before) {
  constexpr int kVec = kVecWidth<T>, kKept = kNormKept;
  constexpr int kGroups = kNormGradBlock<kLanes> / kLanes;
  using V = Vec<T, kVec>;
  const int lane = int(threadIdx.x) % kLanes;
  const int group = int(threadIdx.x) / kLanes;
  const int vectors = int(n.columns / kVec);
  const int64_t begin = int64_t(blockIdx.x) * n.rowsPerPart;
  const int64_t end = begin + n.rowsPerPart < n.rows ? begin + n.rowsPerPart : n.rows;

  V x[kKept], g[kKept], gw[kKept] = {}, gb[kKept] = {};
  extern __shared__ __align__(16) unsigned char stages[];
  const auto place = [&](int which, int i) {
    return reinterpret_cast<V*>(stages) + (which * kKept + i) * kNormGradBlock<kLanes> +
           threadIdx.x;
  };
  const auto stage = [&](int64_t row, int at) {
#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      const int64_t from = row * n.columns + int64_t(lane + i * kLanes) * kVec;
      copyAsync(place(2 * at, i), n.x + from);
      copyAsync(place(2 * at + 1, i), n.g + from);
    }
  };
  const auto state = before.start();
  int at = 0;
  if (begin + group < end) stage(begin + group, at);

  for (int64_t row = begin + group; row < end; row += kGroups) {
    waitForCopies();  // a thread reads what it has copied itself
#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      x[i] = *place(2 * at, i);
      g[i] = *place(2 * at + 1, i);
    }
    at ^= 1;
    if (row + kGroups < end) stage(row + kGroups, at);
    before(state, row, lane, x, g);

    const T mean = kCentered ? n.mean[row] : T(0), rstd = n.rstd[row];
    T cross = 0, level = 0;
#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      const V w = loadVec<T, kVec>(n.w, lane + i * kLanes);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const T own = g[i].lane[e], u = mulRn(own, w.lane[e]), centered = x[i].lane[e] - mean;
        cross = fma(u, centered, cross);
        level += u;
        gw[i].lane[e] = fma(mulRn(own, centered), rstd, gw[i].lane[e]);
        if (kBias) gb[i].lane[e] += own;
      }
    }
    const auto means =
        meansOf<kLanes, kCentered, Before::kHasBarrier>(mean, rstd, cross, level, n.columns);

#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      if (n.gx) {
        V gx = loadVec<T, kVec>(n.w, lane + i * kLanes);
#pragma unroll
        for (int e = 0; e < kVec; e++)
          gx.lane[e] = means.gradient(x[i].lane[e], mulRn(g[i].lane[e], gx.lane[e]));
        storeVec(n.gx + row * n.columns, lane + i * kLanes, gx);
      }
    }
  }

  // The groups' sums, one kind after the other through the same shared memory.
  T* const part = n.parts + blockIdx.x * n.stride;
  const auto store = [&](V* sums, T* target) {
    if constexpr (kGroups > 1) {
      __shared__ V shared[kGroups][kLanes * kKept];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kKept; i++) shared[group][lane + i * kLanes] = sums[i];
      __syncthreads();
      for (int k = int(threadIdx.x); k < vectors; k += kNormGradBlock<kLanes>) {
        V sum = shared[0][k];
        for (int other = 1; other < kGroups; other++) {
          for (int e = 0; e < kVec; e++) sum.lane[e] += shared[other][k].lane[e];
        }
        storeVec(target, k, sum);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kKept; i++) {
        if (lane + i * kLanes < vectors) storeVec(target, lane + i * kLanes, sums[i]);
      }
    }
  };
  store(gw, part);
  if constexpr (kBias) store(gb, part + n.columns);
  before.finish();
}

// Whether a block of the device may have that much shared memory.
template <int kLanes>
bool hasNormStages(const aq_queue* queue) {
  constexpr int kOther = 1024;
  int most = 0;
  return cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device) ==
             cudaSuccess &&
         kNormStages<kLanes> + kOther <= most;
}

// ---------------------------------------------------------------- parts

// Two blocks on every SM of an H100, and 8 rows a block for 2048 tokens.
inline constexpr int64_t kMostNormParts = 256;

// Cuts the rows into parts of a multiple of `unit` rows, as many as are worked on at once; returns
// how many parts there are.
template <class T>
int64_t cutRows(NormGrad<T>& n, int64_t unit) {
  const int64_t share =
      n.rows > kMostNormParts ? (n.rows + kMostNormParts - 1) / kMostNormParts : 1;
  n.rowsPerPart = (share + unit - 1) / unit * unit;
  return (n.rows + n.rowsPerPart - 1) / n.rowsPerPart;
}

}  // namespace aq::cuda
