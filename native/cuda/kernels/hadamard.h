// hadamard.h: what the transforms of kernels/hadamard*.cu share: the problem, its butterflies, and
// the two fast paths. A fast path refuses what does not suit it; hadamard.cu takes everything.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Runs of `features` = 2^power odd numbers, each times H (x) Q / sqrt(2^power) or its transpose.
template <class T>
struct HadamardRuns {
  const T* x;
  const T* signs;  // [features]: on the input, or, for the inverse, on the output
  const T* q;      // [odd, odd]; null where odd is 1
  T* y;
  int64_t runs;
  int64_t features, odd;
  int power;
  bool inverse;
  T scale;  // 1 / sqrt(2^power)
};

// Each of these enqueues the whole transform and sets *taken, or leaves it false.
//
// Features 4 .. 16384, a power of two: in registers, with one exchange through shared memory.
int32_t hadamardPowers(aq_queue* queue, const HadamardRuns<float>& h, bool* taken, aq_error* err);
// An odd factor 3 .. 63, and runs that fit into a block's shared memory.
int32_t hadamardOdd(aq_queue* queue, const HadamardRuns<float>& h, bool* taken, aq_error* err);

#ifdef __CUDACC__
template <int N>
__device__ inline Vec<float, N> operator+(Vec<float, N> a, const Vec<float, N>& b) {
#pragma unroll
  for (int e = 0; e < N; e++) a.lane[e] += b.lane[e];
  return a;
}
template <int N>
__device__ inline Vec<float, N> operator-(Vec<float, N> a, const Vec<float, N>& b) {
#pragma unroll
  for (int e = 0; e < N; e++) a.lane[e] -= b.lane[e];
  return a;
}

// x [2^kBits] times Sylvester's H, in registers; V is a number or a vector of columns.
template <int kBits, class V>
__device__ inline void hadamardButterflies(V (&x)[1 << kBits]) {
#pragma unroll
  for (int bit = 0; bit < kBits; bit++) {
#pragma unroll
    for (int i = 0; i < (1 << kBits); i++) {
      if (i >> bit & 1) continue;
      const V a = x[i], b = x[i | 1 << bit];
      x[i] = a + b;
      x[i | 1 << bit] = a - b;
    }
  }
}
#endif

}  // namespace aq::cuda
