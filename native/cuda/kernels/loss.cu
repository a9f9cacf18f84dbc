// mse, mse_grad, sq_diff: squared differences of a tensor and one or two others.
//
// Math      mse: mean (y - t)^2, plus mean (y - t2)^2 where there is a t2.  mse_grad: 2 (y - t) g /
//           n plus 2 (y - t2) g / n.  sq_diff: sum (a - b)^2, absent b = 0.
// Layout    flat; 16-byte accesses where the addresses allow. Sums: at most kMostParts blocks, each
//           over a range of its own; the last of them to end adds up theirs.
// Cost      reads 2 or 3 numbers per element, mse_grad also writes one: bandwidth-bound.
// Roofline  2048 x 4096 f32: mse 67 MB -> 20 us, mse_grad 101 MB -> 30 us at 3.35 TB/s (H100 SXM
//           data sheet). Measured on an H100 80GB HBM3, CUDA 13.0: mse 29 us, 39 us with two
//           targets, both 90 % of what a copy of as many bytes reaches there; mse_grad 37 us and 47
//           us, 94 % and 99 %.
// Versions  v1 two launches for a sum; v2 one, and a second target on the way (this).
// Numerics  differences in T, their squares and sums in f64, in an order that only the number of
//           elements decides; the gradient in T, with its factor taken in f64.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostParts = 1024;
// Elements below which another block is not worth its launch.
constexpr int64_t kPartElements = 4096;

// What is compared: x with the first kOthers of `others`.
template <class T>
struct Compared {
  const T* x;
  const T* others[2];

  bool isAligned() const {
    return isAligned16(x) && isAligned16(others[0]) && isAligned16(others[1]);
  }
  int count() const { return others[1] ? 2 : (others[0] ? 1 : 0); }
};

// Block k sums the vectors k kThreads .. of every round of all blocks; block 0 also the elements
// behind the last whole vector. *y = the sum of all / divisor.
template <class T, int kVec, int kOthers, class Y>
__global__ __launch_bounds__(kThreads) void sumSquares(Compared<T> c, int64_t n, double divisor,
                                                       double* __restrict__ parts, Y* y,
                                                       uint32_t* ticket) {
  constexpr int kUnroll = 4, kMost = kOthers > 0 ? kOthers : 1;
  using V = Vec<T, kVec>;
  const int64_t vectors = n / kVec;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  double sum = 0;
  const auto add = [&](T d) { sum += double(d) * double(d); };
  for (int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x; k < vectors;
       k += kUnroll * stride) {
    V x[kUnroll] = {}, other[kMost][kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (k + u * stride >= vectors) continue;
      x[u] = loadVec<T, kVec>(c.x, k + u * stride);
#pragma unroll
      for (int o = 0; o < kOthers; o++) {
        other[o][u] = loadVec<T, kVec>(c.others[o], k + u * stride);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
#pragma unroll
      for (int o = 0; o < kMost; o++) {
#pragma unroll
        for (int e = 0; e < kVec; e++) add(x[u].lane[e] - other[o][u].lane[e]);
      }
    }
  }
  if (blockIdx.x == 0) {
    for (int64_t i = vectors * kVec + threadIdx.x; i < n; i += kThreads) {
#pragma unroll
      for (int o = 0; o < kMost; o++) add(c.x[i] - (kOthers > 0 ? c.others[o][i] : T(0)));
    }
  }
  sum = rowSum<kThreads>(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
  if (!isLastBlock(ticket)) return;
  sum = 0;
  for (uint32_t part = threadIdx.x; part < gridDim.x; part += kThreads) sum += __ldcg(parts + part);
  sum = rowSum<kThreads>(sum);
  if (threadIdx.x == 0) *y = static_cast<Y>(sum / divisor);
}

template <class T, int kOthers, class Y>
int32_t launchSum(aq_queue* queue, const Compared<T>& c, int64_t n, double divisor, Y* y,
                  const char* op, aq_error* err) {
  const int64_t parts = std::clamp<int64_t>(n / kPartElements, 1, kMostParts);
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(uint64_t(parts) * sizeof(double), op, err)) return code;
  const auto kernel =
      c.isAligned() ? sumSquares<T, kVecWidth<T>, kOthers, Y> : sumSquares<T, 1, kOthers, Y>;
  kernel<<<unsigned(parts), kThreads, 0, queue->stream>>>(c, n, divisor, scratch.at<double>(), y,
                                                          queue->ticket);
  LAUNCH_CHECK("a sum of squares");
  return AQ_OK;
}

// Vectors of kVec entries, where that is more than one, and then single entries.
template <class T, int kVec, int kOthers>
__global__ __launch_bounds__(kElementThreads) void differences(Compared<T> c,
                                                               const T* __restrict__ g,
                                                               T* __restrict__ gy, int64_t vectors,
                                                               int64_t n) {
  const T factor = static_cast<T>(2.0 * double(*g) / double(n));
  const int64_t first = int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = first; k < vectors; k += stride) {
    const Vec<T, kVec> x = loadVec<T, kVec>(c.x, k);
    Vec<T, kVec> sum = {};
#pragma unroll
    for (int o = 0; o < kOthers; o++) {
      const Vec<T, kVec> other = loadVec<T, kVec>(c.others[o], k);
#pragma unroll
      for (int e = 0; e < kVec; e++) sum.lane[e] += x.lane[e] - other.lane[e];
    }
#pragma unroll
    for (int e = 0; e < kVec; e++) sum.lane[e] *= factor;
    storeVec(gy, k, sum);
  }
  for (int64_t k = vectors * kVec + first; k < n; k += stride) {
    T sum = 0;
#pragma unroll
    for (int o = 0; o < kOthers; o++) sum += c.x[k] - c.others[o][k];
    gy[k] = factor * sum;
  }
}

template <class T, int kOthers>
int32_t launchGradient(aq_queue* queue, const Compared<T>& c, const T* g, T* gy, int64_t n,
                       aq_error* err) {
  const int64_t vectors = c.isAligned() && isAligned16(gy) ? n / kVecWidth<T> : 0;
  const unsigned blocks =
      vectors > 0 ? unsigned((vectors + kElementThreads - 1) / kElementThreads) : elementBlocks(n);
  differences<T, kVecWidth<T>, kOthers>
      <<<blocks, kElementThreads, 0, queue->stream>>>(c, g, gy, vectors, n);
  LAUNCH_CHECK("mse_grad");
  return AQ_OK;
}

template <class T>
const T* dataOf(const aq_view& x) {
  return static_cast<const T*>(x.data);
}

}  // namespace

int32_t mse(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
            aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    const int64_t n = numel(in[0]);
    const Compared<T> c = {dataOf<T>(in[0]), {dataOf<T>(in[1]), dataOf<T>(in[2])}};
    T* const loss = static_cast<T*>(out[0].data);
    return c.count() == 2 ? launchSum<T, 2>(queue, c, n, double(n), loss, "mse", err)
                          : launchSum<T, 1>(queue, c, n, double(n), loss, "mse", err);
  });
}

int32_t mse_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t n = numel(in[0]);
  if (n == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    const Compared<T> c = {dataOf<T>(in[0]), {dataOf<T>(in[1]), dataOf<T>(in[3])}};
    T* const gy = static_cast<T*>(out[0].data);
    return c.count() == 2 ? launchGradient<T, 2>(queue, c, dataOf<T>(in[2]), gy, n, err)
                          : launchGradient<T, 1>(queue, c, dataOf<T>(in[2]), gy, n, err);
  });
}

int32_t sq_diff(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    const int64_t n = numel(in[0]);
    const Compared<T> c = {dataOf<T>(in[0]), {dataOf<T>(in[1]), nullptr}};
    double* const sum = static_cast<double*>(out[0].data);
    return c.count() == 1 ? launchSum<T, 1>(queue, c, n, 1.0, sum, "sq_diff", err)
                          : launchSum<T, 0>(queue, c, n, 1.0, sum, "sq_diff", err);
  });
}

}  // namespace aq::cuda
