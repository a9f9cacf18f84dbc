// masked_adam: one AdamW step on the live band of banded matrices, and the dominance projection.
//
// Math      for |i-j| <= band: p, m, v <- AdamW(p, g, m, v) as torch does it; then, for each row of
//           a = p o mask (1 on the diagonal, sf beside it): off = sum over j != i of |a_ij|; where
//           off > limit |a_ii|, p_ij *= limit |a_ii| / off for j != i. margin = 1 - max off / |a_ii|.
// Layout    p, g, m, v [B, D, D] row-major; a row's live part is [i-band, i+band] cut to the matrix.
//           One warp per row while the live part is short, else one block of 256 threads; 16-byte
//           accesses where D and the addresses allow. A vector that straddles the band's edge is
//           written back with its dead lanes unchanged: no other thread touches it.
// Cost      reads 4 and writes 3 numbers per live entry: 28 B (f32), ~12 flop: bandwidth-bound. The
//           cost follows the band: entries outside are not read. The projection's second pass runs
//           only for rows that break the limit, and finds them in L2.
// Roofline  4096 x 4096 f32, full band: 470 MB -> 140 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured there, H100 80GB HBM3, driver 580: 171 us = 2.75 TB/s, 94 % of what a plain
//           copy reaches (2.92 TB/s); band 410: 43 us; band 1: 13 us, three launches; 32 x 128^2:
//           15 us.
// Versions  v1 step, row sums and shrinking as three kernels; v2 fused by row (this).
// Numerics  row sums in double in a fixed order; the maximum over rows by integer comparison of
//           non-negative floats, which no order of blocks changes. A zero diagonal gives margin
//           -infinity.
#include <algorithm>
#include <cmath>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/adam.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

// 256: enough bytes in flight for full bandwidth at 8 blocks an SM, and 8 warp-rows a block.
constexpr int kThreads = 256;
// A row this short leaves most of a block idle; a warp then takes it.
constexpr int64_t kWarpRowLength = 512;

template <class T>
struct Matrices {
  T* p;
  const T* g;
  T* m;
  T* v;
  T* margin;     // [B]; holds max off / |a_ii| until finishMargin
  int64_t rows;  // B D
  int32_t size;  // D
  int32_t band;
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

template <class T, int kVec, int kLanes>
__global__ __launch_bounds__(kThreads) void stepRows(Matrices<T> x, AdamStep<T> step, double sf,
                                                     double limit) {
  constexpr int kRowsPerBlock = kThreads / kLanes;
  const int64_t row = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
  if (row >= x.rows) return;  // whole groups of kLanes, so that the sums below are complete
  const int lane = threadIdx.x % kLanes;

  const int32_t i = int32_t(row % x.size);
  const int32_t low = i > x.band ? i - x.band : 0;
  const int32_t high = x.size - 1 - i > x.band ? i + x.band : x.size - 1;
  T* const __restrict__ p = x.p + row * x.size;
  const T* const __restrict__ g = x.g + row * x.size;
  T* const __restrict__ m = x.m + row * x.size;
  T* const __restrict__ v = x.v + row * x.size;

  RowSums mine;
  for (int32_t k = low / kVec + lane; k <= high / kVec; k += kLanes) {
    Vec<T, kVec> pk = loadVec<T, kVec>(p, k), mk = loadVec<T, kVec>(m, k);
    Vec<T, kVec> vk = loadVec<T, kVec>(v, k);
    const Vec<T, kVec> gk = loadVec<T, kVec>(g, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      const int32_t j = k * kVec + e;
      if (j < low || j > high) continue;
      step.apply(pk.lane[e], gk.lane[e], mk.lane[e], vk.lane[e]);
      (j == i ? mine.diagonal : mine.off) += fabs(double(pk.lane[e]));
    }
    storeVec(p, k, pk);
    storeVec(m, k, mk);
    storeVec(v, k, vk);
  }

  RowSums sums = reduceRow<kLanes>(mine);
  if (limit > 0 && sf * sums.off > limit * sums.diagonal) {
    // The same threads visit the same entries as above, so they see what they have written.
    const T shrink = T(limit * sums.diagonal / (sf * sums.off));
    mine.off = 0;
    for (int32_t k = low / kVec + lane; k <= high / kVec; k += kLanes) {
      Vec<T, kVec> pk = loadVec<T, kVec>(p, k);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const int32_t j = k * kVec + e;
        if (j < low || j > high || j == i) continue;
        pk.lane[e] *= shrink;
        mine.off += fabs(double(pk.lane[e]));
      }
      storeVec(p, k, pk);
    }
    sums.off = rowSum<kLanes>(mine.off);
  }
  if (lane == 0) {
    const double ratio = sums.diagonal == 0 ? INFINITY : sf * sums.off / sums.diagonal;
    atomicMaxNonNegative(x.margin + row / x.size, T(ratio));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void finishMargin(T* margin, int64_t count) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b < count) margin[b] = 1 - margin[b];
}

template <class T, int kVec>
void launchRows(const Matrices<T>& x, const aq_masked_adam_params& params, cudaStream_t stream) {
  const auto step = AdamStep<T>::of(params);
  const double sf = std::fabs(params.sf);
  const int64_t live = std::min<int64_t>(x.size, 2 * int64_t(x.band) + 1);
  if (live <= kWarpRowLength) {
    constexpr int kRowsPerBlock = kThreads / kWarp;
    const unsigned blocks = unsigned((x.rows + kRowsPerBlock - 1) / kRowsPerBlock);
    stepRows<T, kVec, kWarp><<<blocks, kThreads, 0, stream>>>(x, step, sf, params.limit);
  } else {
    stepRows<T, kVec, kThreads>
        <<<unsigned(x.rows), kThreads, 0, stream>>>(x, step, sf, params.limit);
  }
}

template <class T>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view& margin,
            const aq_masked_adam_params& params, aq_error* err) {
  const int64_t count = in[0].dim[0], size = in[0].dim[1];
  if (count == 0) return AQ_OK;
  if (size > INT32_MAX || count * size > INT32_MAX) {
    return fail(err, AQ_SHAPE, "masked_adam: %lld matrices of %lld rows exceed 2^31 - 1 rows.",
                static_cast<long long>(count), static_cast<long long>(size));
  }
  const Matrices<T> x = {static_cast<T*>(in[0].data),
                         static_cast<const T*>(in[1].data),
                         static_cast<T*>(in[2].data),
                         static_cast<T*>(in[3].data),
                         static_cast<T*>(margin.data),
                         count * size,
                         int32_t(size),
                         params.band};
  CUDA_CHECK(cudaMemsetAsync(x.margin, 0, sizeof(T) * size_t(count), queue->stream));
  if (size > 0) {
    const bool isWide = size % kVecWidth<T> == 0 && isAligned16(x.p) && isAligned16(x.g) &&
                        isAligned16(x.m) && isAligned16(x.v);
    if (isWide) {
      launchRows<T, kVecWidth<T>>(x, params, queue->stream);
    } else {
      launchRows<T, 1>(x, params, queue->stream);
    }
    LAUNCH_CHECK("masked_adam");
  }
  const unsigned blocks = unsigned((count + kThreads - 1) / kThreads);
  finishMargin<T><<<blocks, kThreads, 0, queue->stream>>>(x.margin, count);
  LAUNCH_CHECK("masked_adam (margin)");
  return AQ_OK;
}

}  // namespace

int32_t masked_adam(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_masked_adam_params*>(params);
  return visitFloat(in[0].dtype, err, [&]<class T>() { return run<T>(queue, in, out[0], p, err); });
}

}  // namespace aq::cuda
