// lu_pivot.cuh: the search for pivots, and Gauss-Jordan inversion in place with partial pivoting by
// one block, for small matrices that are not inverted without; x stays in memory (the L2 cache).
#pragma once
#include <cstdint>

#include "native/cuda/device/reduce.cuh"

namespace aq::cuda {

// The largest entry of a column, as far as a thread or block saw it: |value| and its row. Of equal
// ones the first row is taken. An index of -1 is none: NaN is never the largest.
template <class T>
struct Pivot {
  T size = -1;
  int32_t index = -1;

  __device__ void join(T otherSize, int32_t otherIndex) {
    if (otherSize > size || (otherSize == size && otherIndex < index)) {
      size = otherSize;
      index = otherIndex;
    }
  }
  // Whether one can divide by it.
  __device__ bool isUsable() const { return size > 0 && isfinite(size); }
};

// The best of a warp's candidates, given to all its threads.
template <class T>
__device__ Pivot<T> joinWarp(Pivot<T> mine) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T size = __shfl_xor_sync(~0u, mine.size, step);
    const int32_t index = __shfl_xor_sync(~0u, mine.index, step);
    mine.join(size, index);
  }
  return mine;
}

// Shared memory of a block that inverts matrices of up to kSize rows.
template <class T, int kSize>
struct PivotShared {
  T column[kSize];
  int32_t order[kSize];  // row k was swapped with order[k]
  Pivot<T> best;
};

// x = a^-1 for [n, n], rows n apart; a and x are different memory. False in some thread where a
// pivot is zero or not finite, or an entry of the result is not.
template <class T, int kThreads, int kSize>
__device__ __noinline__ bool invertPivoting(const T* a, T* x, int32_t n,
                                            PivotShared<T, kSize>& shared) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int32_t at = threadIdx.x; at < n * n; at += kThreads) x[at] = a[at];
  __syncthreads();

  for (int32_t k = 0; k < n; k++) {
    T* const rowK = x + k * n;
    if (warp == 0) {
      Pivot<T> best;
      for (int32_t i = k + lane; i < n; i += kWarp) best.join(fabs(x[i * n + k]), i);
      best = joinWarp(best);
      if (lane == 0) shared.best = best;
    }
    __syncthreads();
    const Pivot<T> best = shared.best;
    if (!best.isUsable()) return false;
    T* const rowP = x + best.index * n;
    const T inverse = T(1) / rowP[k];
    for (int32_t i = threadIdx.x; i < n; i += kThreads) {
      shared.column[i] = i == best.index ? rowK[k] : x[i * n + k];
    }
    __syncthreads();
    for (int32_t j = threadIdx.x; j < n; j += kThreads) {
      const T upper = rowK[j], pivot = rowP[j];
      rowP[j] = upper;
      rowK[j] = j == k ? inverse : pivot * inverse;
    }
    if (threadIdx.x == 0) shared.order[k] = best.index;
    __syncthreads();
    for (int32_t i = warp; i < n; i += kWarps) {
      if (i == k) continue;
      const T factor = shared.column[i];
      T* const row = x + i * n;
      for (int32_t j = lane; j < n; j += kWarp) {
        row[j] = (j == k ? T(0) : row[j]) - factor * rowK[j];
      }
    }
    __syncthreads();
  }

  // Row swaps of a are column swaps of its inverse, undone from the last to the first.
  bool isFinite = true;
  for (int32_t i = threadIdx.x; i < n; i += kThreads) {
    T* const row = x + i * n;
    for (int32_t k = n - 1; k >= 0; k--) {
      const int32_t p = shared.order[k];
      const T held = row[k];
      row[k] = row[p];
      row[p] = held;
    }
    for (int32_t j = 0; j < n; j++) isFinite = isFinite && isfinite(row[j]);
  }
  return isFinite;
}

}  // namespace aq::cuda
