// mse, mse_grad, sq_diff: squared differences of two tensors.
//
// Math      mse: mean (y - t)^2.  mse_grad: 2 (y - t) g / n.  sq_diff: sum (a - b)^2, absent b = 0.
// Layout    flat; 16-byte accesses where the addresses allow. Sums: at most kMostParts blocks, each
//           over a range of its own, then one block over theirs (mean.cuh).
// Cost      reads 2 numbers per element, mse_grad also writes one: bandwidth-bound.
// Roofline  2048 x 4096 f32: mse 67 MB -> 20 us, mse_grad 101 MB -> 30 us at 3.35 TB/s (H100 SXM
//           data sheet). Measured on an H100 80GB HBM3, CUDA 13.0: mse and sq_diff 25.1 us = 93 %
//           of what a plain copy reaches there (2.89 TB/s), mse_grad 35.5 us = 98 %.
// Versions  v1 (this).
// Numerics  sums in f64, in an order that only the number of elements decides; the gradient in T,
//           with its factor taken in f64.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/mean.cuh"
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

// Block k sums the vectors k kThreads .. of every round of all blocks; block 0 also the elements
// behind the last whole vector.
template <class T, int kVec, bool kPair>
__global__ __launch_bounds__(kThreads) void squaresPart(const T* __restrict__ a,
                                                        const T* __restrict__ b, int64_t n,
                                                        double* __restrict__ parts) {
  constexpr int kUnroll = 4;
  using V = Vec<T, kVec>;
  const int64_t vectors = n / kVec;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  double sum = 0;
  const auto add = [&](T x, T y) {
    const double d = double(x) - double(y);
    sum += d * d;
  };
  for (int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x; k < vectors;
       k += kUnroll * stride) {
    V x[kUnroll] = {}, y[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (k + u * stride >= vectors) continue;
      x[u] = loadVec<T, kVec>(a, k + u * stride);
      if (kPair) y[u] = loadVec<T, kVec>(b, k + u * stride);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
#pragma unroll
      for (int e = 0; e < kVec; e++) add(x[u].lane[e], y[u].lane[e]);
    }
  }
  if (blockIdx.x == 0) {
    for (int64_t i = vectors * kVec + threadIdx.x; i < n; i += kThreads) {
      add(a[i], kPair ? b[i] : T(0));
    }
  }
  sum = rowSum<kThreads>(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// *y = sum (a - b)^2 / divisor, with b null for zeros.
template <class T, class Y>
int32_t sumSquares(aq_queue* queue, const T* a, const T* b, int64_t n, double divisor, Y* y,
                   const char* op, aq_error* err) {
  const int64_t parts = std::clamp<int64_t>(n / kPartElements, 1, kMostParts);
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(uint64_t(parts) * sizeof(double), op, err)) return code;
  double* const sums = scratch.at<double>();
  const auto launch = [&](auto kernel) {
    kernel<<<unsigned(parts), kThreads, 0, queue->stream>>>(a, b, n, sums);
  };
  const bool isWide = isAligned16(a) && isAligned16(b);
  constexpr int kVec = kVecWidth<T>;
  if (b) {
    launch(isWide ? squaresPart<T, kVec, true> : squaresPart<T, 1, true>);
  } else {
    launch(isWide ? squaresPart<T, kVec, false> : squaresPart<T, 1, false>);
  }
  LAUNCH_CHECK("a sum of squares");
  totalOf<Y><<<1, kTotalThreads, 0, queue->stream>>>(sums, parts, divisor, y);
  LAUNCH_CHECK("a sum of squares (total)");
  return AQ_OK;
}

template <class T, int kVec>
__global__ __launch_bounds__(kElementThreads) void differences(const T* __restrict__ y,
                                                               const T* __restrict__ t,
                                                               const T* __restrict__ g,
                                                               T* __restrict__ gy, int64_t begin,
                                                               int64_t end, double n) {
  // begin and end count vectors of kVec entries.
  const T factor = static_cast<T>(2.0 * double(*g) / n);
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = begin + int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < end;
       k += stride) {
    Vec<T, kVec> yk = loadVec<T, kVec>(y, k);
    const Vec<T, kVec> tk = loadVec<T, kVec>(t, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) yk.lane[e] = factor * (yk.lane[e] - tk.lane[e]);
    storeVec(gy, k, yk);
  }
}

template <class T>
int32_t runGradient(aq_queue* queue, const aq_view* in, const aq_view& out, aq_error* err) {
  constexpr int kVec = kVecWidth<T>;
  const int64_t n = numel(in[0]);
  const T* const y = static_cast<const T*>(in[0].data);
  const T* const t = static_cast<const T*>(in[1].data);
  const T* const g = static_cast<const T*>(in[2].data);
  T* const gy = static_cast<T*>(out.data);
  const bool isWide = isAligned16(y) && isAligned16(t) && isAligned16(gy);
  const int64_t vectors = isWide ? n / kVec : 0;
  if (vectors > 0) {
    differences<T, kVec><<<elementBlocks(vectors), kElementThreads, 0, queue->stream>>>(
        y, t, g, gy, 0, vectors, double(n));
    LAUNCH_CHECK("mse_grad");
  }
  const int64_t done = vectors * kVec;
  if (done < n) {
    differences<T, 1><<<elementBlocks(n - done), kElementThreads, 0, queue->stream>>>(
        y, t, g, gy, done, n, double(n));
    LAUNCH_CHECK("mse_grad (tail)");
  }
  return AQ_OK;
}

}  // namespace

int32_t mse(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
            aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    const int64_t n = numel(in[0]);
    return sumSquares(queue, static_cast<const T*>(in[0].data), static_cast<const T*>(in[1].data),
                      n, double(n), static_cast<T*>(out[0].data), "mse", err);
  });
}

int32_t mse_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return runGradient<T>(queue, in, out[0], err); });
}

int32_t sq_diff(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return sumSquares(queue, static_cast<const T*>(in[0].data), static_cast<const T*>(in[1].data),
                      numel(in[0]), 1.0, static_cast<double*>(out[0].data), "sq_diff", err);
  });
}

}  // namespace aq::cuda
