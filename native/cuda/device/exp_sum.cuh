// exp_sum.cuh: sums of exponentials of a row of logits in one pass: what was summed is rescaled
// where a larger value turns up. `::exp`, because the op of that name would hide it.
#pragma once
#include <cstdint>

#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// Elements that a thread takes at a time: one test for a new maximum, and one addition in f64,
// each.
inline constexpr int kPiece = 8;

template <class T>
__device__ T lowest() {
  return -static_cast<T>(INFINITY);
}

// Sum of e^(x - high) over what was seen, and the maximum of that.
template <class T>
struct ExpSum {
  T high = lowest<T>();
  double sum = 0;

  // Makes room for a value; returns by how much the maximum rose (0 at first).
  __device__ double raise(T value) {
    if (value <= high) return 0;
    const double step = sum == 0 ? 0 : double(value) - double(high);
    sum *= ::exp(-step);
    high = value;
    return step;
  }
};

template <class T>
__device__ T largestOf(const T (&x)[kPiece], int count) {
  T high = lowest<T>();
#pragma unroll
  for (int i = 0; i < kPiece; i++) {
    if (i < count) high = fmax(high, x[i]);
  }
  return high;
}

// The block's ExpSum from its threads', given to all of them.
template <int kBlock, class T>
__device__ ExpSum<T> combine(ExpSum<T> mine) {
  ExpSum<T> all;
  all.high = rowMax<kBlock>(mine.high);
  const double scaled = mine.sum == 0 ? 0 : mine.sum * ::exp(double(mine.high) - double(all.high));
  all.sum = rowSum<kBlock>(scaled);
  return all;
}

// Calls f(first index, count) for the thread's pieces of a row of V elements; `load` reads a piece:
// vectors of kVec neighbours, kBlock kVec apart, so that every access of a warp is one range.
template <class T, int kVec, int kBlock>
struct Pieces {
  static constexpr int kVectors = kPiece / kVec;

  template <class F>
  __device__ static void each(int64_t columns, F&& f) {
    for (int64_t base = int64_t(threadIdx.x) * kVec; base < columns;
         base += int64_t(kBlock) * kPiece) {
      int count = 0;
#pragma unroll
      for (int i = 0; i < kVectors; i++) {
        if (base + int64_t(i) * kBlock * kVec < columns) count = (i + 1) * kVec;
      }
      f(base, count);
    }
  }
  __device__ static void load(const T* row, int64_t base, int count, T (&x)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kVectors; i++) {
      Vec<T, kVec> v = {};
      if (i * kVec < count) v = loadVec<T, kVec>(row + base + int64_t(i) * kBlock * kVec, 0);
#pragma unroll
      for (int e = 0; e < kVec; e++) x[i * kVec + e] = v.lane[e];
    }
  }
};

// Takes a piece of a row into the sum.
template <class T>
__device__ void takePiece(ExpSum<T>& into, const T (&x)[kPiece], int count) {
  into.raise(largestOf(x, count));
  T sum = 0;
#pragma unroll
  for (int i = 0; i < kPiece; i++) {
    if (i < count) sum += ::exp(x[i] - into.high);
  }
  into.sum += double(sum);
}

// The ExpSum of a row, given to all threads.
template <class T, int kVec, int kBlock>
__device__ ExpSum<T> expSumOf(const T* row, int64_t columns) {
  using P = Pieces<T, kVec, kBlock>;
  ExpSum<T> mine;
  P::each(columns, [&](int64_t base, int count) {
    T x[kPiece];
    P::load(row, base, count, x);
    takePiece(mine, x, count);
  });
  return combine<kBlock>(mine);
}

}  // namespace aq::cuda
