// masked_row.cuh: the live part of one row of banded matrices in a step of masked_adam, in whose words
// this is written.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <initializer_list>

#include "native/cuda/device/adam.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// Threads of a block: enough bytes on their way for full bandwidth, and 8 rows of a warp each.
inline constexpr int kRowThreads = 256;
// Vectors of each array that a thread asks for before the kernel in front of this one is over.
inline constexpr int kRowAhead = 2;

template <class T>
struct MaskedMatrices {
  T* p;
  const T* g;
  T* m;
  T* v;
  T* a;                 // or null
  __nv_bfloat16* copy;  // or null
  T sf, floor;
  int32_t count, size, band;  // B, D
};

// What a row's threads learn about it: their part of sum |p_ij| off the diagonal, and |p_ii| (zero
// in all threads but its owner's).
struct RowSums {
  double off = 0, diagonal = 0;
};

template <int kLanes>
__device__ RowSums reduceRow(RowSums mine) {
  return {rowSum<kLanes>(mine.off), rowSum<kLanes>(mine.diagonal)};
}

// A product that is rounded before it goes into a sum, as one that comes from memory is.
__device__ inline float rounded(float x, float y) { return __fmul_rn(x, y); }
__device__ inline double rounded(double x, double y) { return __dmul_rn(x, y); }

__device__ inline __nv_bfloat16 shortened(float x) { return __float2bfloat16_rn(x); }
__device__ inline __nv_bfloat16 shortened(double x) { return __double2bfloat16(x); }

// One of the kLanes threads that share a row sees it so. Vectors are counted from the start of the
// matrices; turn by turn a thread takes the kLanes-th next.
template <class T, int kVec, int kLanes>
struct MaskedRow {
  using V = Vec<T, kVec>;
  const MaskedMatrices<T>& x;
  int64_t start;  // of the row
  int32_t i;
  int32_t low, high;  // first and last live column
  V pk, gk, mk, vk;   // of the turn at hand

  __device__ MaskedRow(const MaskedMatrices<T>& all, int64_t matrix, int32_t row)
      : x(all), start((matrix * all.size + row) * (all.size / kVec)), i(row) {
    low = i > x.band ? i - x.band : 0;
    high = x.size - 1 - i > x.band ? i + x.band : x.size - 1;
  }

  __device__ int32_t first(int lane) const { return low / kVec + lane; }
  __device__ bool has(int32_t k) const { return k <= high / kVec; }
  __device__ bool isLive(int32_t j) const { return j >= low && j <= high; }

  // Brings the first vectors to the L2 cache, where they stay as new as memory is: this is allowed
  // while another kernel still writes them.
  __device__ void announce(int32_t k) const {
#pragma unroll
    for (int s = 0; s < kRowAhead; s++, k += kLanes) {
      if (!has(k)) break;
      for (const T* array : std::initializer_list<const T*>{x.p, x.g, x.m, x.v}) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(array + (start + k) * kVec));
      }
    }
  }

  // The vectors of a turn, if there is one.
  __device__ void load(int32_t k) {
    if (!has(k)) return;
    pk = loadVec<T, kVec>(x.p, start + k);
    gk = loadVec<T, kVec>(x.g, start + k);
    mk = loadVec<T, kVec>(x.m, start + k);
    vk = loadVec<T, kVec>(x.v, start + k);
  }

  // The step of what was loaded.
  __device__ void step(int32_t k, const AdamStep<T>& adam, RowSums& mine) {
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      const int32_t j = k * kVec + e;
      if (!isLive(j)) continue;
      T& p = pk.lane[e];
      adam.apply(p, j == i ? gk.lane[e] : rounded(x.sf, gk.lane[e]), mk.lane[e], vk.lane[e]);
      if (fabs(p) < x.floor && p != 0) p = copysign(x.floor, p);
      (j == i ? mine.diagonal : mine.off) += fabs(double(p));
    }
    storeVec(x.p, start + k, pk);
    storeVec(x.m, start + k, mk);
    storeVec(x.v, start + k, vk);
    show(k, pk);
  }

  // Shrinks what stands beside the diagonal, and returns the thread's part of its new sum. The same
  // threads visit the same entries as in `step`, so they see what they have written.
  __device__ double shrink(int lane, T factor) const {
    double off = 0;
    for (int32_t k = first(lane); has(k); k += kLanes) {
      V row = loadVec<T, kVec>(x.p, start + k);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const int32_t j = k * kVec + e;
        if (!isLive(j) || j == i) continue;
        row.lane[e] *= factor;
        off += fabs(double(row.lane[e]));
      }
      storeVec(x.p, start + k, row);
      show(k, row);
    }
    return off;
  }

  // Writes a and its copy of a vector of p, of which only what is live is touched.
  __device__ void show(int32_t k, const V& p) const {
    if (!x.a && !x.copy) return;
    V a;
    Vec<__nv_bfloat16, kVec> copy;
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      a.lane[e] = k * kVec + e == i ? p.lane[e] : x.sf * p.lane[e];
      copy.lane[e] = shortened(a.lane[e]);
    }
    if (isLive(k * kVec) && isLive(k * kVec + kVec - 1)) {
      if (x.a) storeVec(x.a, start + k, a);
      if (x.copy) storeVec(x.copy, start + k, copy);
      return;
    }
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      if (!isLive(k * kVec + e)) continue;
      const int64_t at = (start + k) * kVec + e;
      if (x.a) x.a[at] = a.lane[e];
      if (x.copy) x.copy[at] = copy.lane[e];
    }
  }
};

}  // namespace aq::cuda
