// norm_rows.cuh: rows as the norms read them, and what they make of a number: in one place, so that
// whoever makes the values again gets the same bits.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kNormThreads = 256;  // of a block, unless a row needs more
inline constexpr int kNormKept = 4;       // vectors a thread: enough in flight at any occupancy

// A thread's share of a row: vectors lane, lane + kLanes, ...; the first kNormKept of them in
// registers.
template <class T, int kVec, int kLanes>
struct RowShare {
  const T* x;
  int64_t vectors;
  int lane;
  Vec<T, kVec> kept[kNormKept];

  __device__ RowShare(const T* row, int64_t columns, int ownLane)
      : x(row), vectors(columns / kVec), lane(ownLane) {
#pragma unroll
    for (int i = 0; i < kNormKept; i++) {
      if (lane + i * kLanes < vectors) kept[i] = loadVec<T, kVec>(x, lane + i * kLanes);
    }
  }

  // f(vector, its index), in the order of the indexes.
  template <class F>
  __device__ void each(F&& f) const {
#pragma unroll
    for (int i = 0; i < kNormKept; i++) {
      if (lane + i * kLanes < vectors) f(kept[i], int64_t(lane + i * kLanes));
    }
    for (int64_t k = lane + kNormKept * kLanes; k < vectors; k += kLanes) {
      f(loadVec<T, kVec>(x, k), k);
    }
  }

  // For all lanes.
  __device__ T mean(int64_t columns) const {
    T sum = 0;
    each([&](const Vec<T, kVec>& own, int64_t) {
#pragma unroll
      for (int e = 0; e < kVec; e++) sum += own.lane[e];
    });
    return rowSum<kLanes>(sum) / T(columns);
  }

  // 1 / sqrt(mean (x - mean)^2 + eps), for all lanes.
  __device__ T rstd(T mean, int64_t columns, T eps) const {
    T squares = 0;
    each([&](const Vec<T, kVec>& own, int64_t) {
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const T distance = own.lane[e] - mean;
        squares = fma(distance, distance, squares);
      }
    });
    return T(1) / sqrt(rowSum<kLanes>(squares) / T(columns) + eps);
  }
};

// (x - mean) rstd w + b.
template <class T>
__device__ inline T normed(T x, T mean, T rstd, T w, T b) {
  return fma(mulRn(x - mean, rstd), w, b);
}

}  // namespace aq::cuda
