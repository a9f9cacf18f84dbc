// norm_rounded, silu_mul_joined: what stands between the products of a decoding step, in the type
// that these read.
//
// Math      norm_rounded: rms_norm or layer_norm, y rounded. silu_mul_joined: silu_mul of a row's
//           halves.
// Layout    norms: a block per row, whose vectors its threads keep in registers. The others: a
//           thread a vector. All may start before the kernel in front of them has ended, and let
//           the one behind them start at once where that is a product of few rows, else when the one
//           in front has ended: a product then brings its first weights.
// Cost      a few KB a row. What counts is how long one row takes from start to end.
// Roofline  none: the time is that of two trips to L2 and a sum over a block. Measured on an H100,
//           back to back: norm of 4096 1.4 us, silu_mul_joined of 2 x 11008 1.2 us.
// Versions  v1 let the kernel behind them start at once, while the product in front of them still
//           ran: the blocks of the product behind then sat where there was room first, several
//           together, and each norm cost a 7B-shaped block 3 us more. v2 when that had ended. v3
//           (this) at once again, since blocks of products for few rows do not sit together any more.
// Numerics  as the ops that they stand for; one rounding at the end.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_rows.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 128;  // of silu_mul_joined

template <class To, class T, int kVec>
__device__ void storeRounded(void* y, int64_t k, const Vec<T, kVec>& value) {
  Vec<To, kVec> rounded;
#pragma unroll
  for (int e = 0; e < kVec; e++) rounded.lane[e] = To(value.lane[e]);
  storeVec(static_cast<To*>(y), k, rounded);
}

// Vector k of y, in T or rounded.
template <class T, int kVec>
__device__ void store(void* y, int32_t round, int64_t k, const Vec<T, kVec>& value) {
  if constexpr (std::is_same_v<T, float>) {
    if (round == AQ_BF16) return storeRounded<__nv_bfloat16>(y, k, value);
    if (round == AQ_F16) return storeRounded<__half>(y, k, value);
  }
  storeVec(static_cast<T*>(y), k, value);
}

// Whether the kernel behind may start at once: the product of few rows, in the type that it rounds to,
// whose blocks each have a multiprocessor of their own (device/int4_small.cuh).
bool startsSoon(int64_t rows, int32_t round) { return rows <= 8 && round != 0; }

template <class T>
struct NormCall {
  const T* x;
  const T* w;
  const T* b;  // may be null
  void* y;
  int64_t columns;
  T eps;
  int32_t centred, round;
  bool isSoon;
};

template <class T, int kVec, int kLanes>
__global__ __launch_bounds__(kLanes) void normRounded(NormCall<T> n) {
  const int lane = int(threadIdx.x);
  constexpr int kLine = 128 / int(sizeof(T));
  for (int64_t i = int64_t(lane) * kLine; i < n.columns; i += kLanes * kLine) prefetchL2(n.w + i);
  if (n.isSoon) letNextKernelStart();
  waitForKernelBefore();
  if (!n.isSoon) letNextKernelStart();
  const int64_t row = blockIdx.x;
  const RowShare<T, kVec, kLanes> share(n.x + row * n.columns, n.columns, lane),
      gain(n.w, n.columns, lane);
  T mean = 0;
  if (n.centred) {
    share.each([&](const Vec<T, kVec>& x, int64_t) {
#pragma unroll
      for (int e = 0; e < kVec; e++) mean += x.lane[e];
    });
    mean = rowSum<kLanes>(mean) / T(n.columns);
  }
  const T rstd = share.rstd(mean, n.columns, n.eps);
  const auto finish = [&](const Vec<T, kVec>& x, const Vec<T, kVec>& w, int64_t k) {
    Vec<T, kVec> y = {};
    if (n.b) y = loadVec<T, kVec>(n.b, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) y.lane[e] = normed(x.lane[e], mean, rstd, w.lane[e], y.lane[e]);
    store(n.y, n.round, row * (n.columns / kVec) + k, y);
  };
#pragma unroll
  for (int i = 0; i < kNormKept; i++) {
    const int64_t k = lane + i * kLanes;
    if (k < share.vectors) finish(share.kept[i], gain.kept[i], k);
  }
  for (int64_t k = lane + kNormKept * kLanes; k < share.vectors; k += kLanes)
    finish(loadVec<T, kVec>(n.x + row * n.columns, k), loadVec<T, kVec>(n.w, k), k);
}

template <class T, int kVec, int kLanes>
int32_t launchNorm(aq_queue* queue, const NormCall<T>& n, int64_t rows, aq_error* err) {
  const EarlyLaunch shape(queue, dim3(unsigned(rows)), kLanes);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, normRounded<T, kVec, kLanes>, n));
  return AQ_OK;
}

// The halves of the rows of x, `half` vectors each.
template <class T, int kVec>
__global__ __launch_bounds__(kThreads) void siluMulJoined(const T* x, void* y, int64_t vectors,
                                                          int64_t half, int32_t round,
                                                          bool isSoon) {
  if (isSoon) letNextKernelStart();
  waitForKernelBefore();
  if (!isSoon) letNextKernelStart();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= vectors) return;
  const int64_t row = i / half, gateAt = i + row * half;
  const Vec<T, kVec> gate = loadVec<T, kVec>(x, gateAt), up = loadVec<T, kVec>(x, gateAt + half);
  Vec<T, kVec> result;
#pragma unroll
  for (int e = 0; e < kVec; e++) {
    const T both[2] = {gate.lane[e], up.lane[e]};
    T one[1];
    SiluMul<T>()(both, one);
    result.lane[e] = one[0];
  }
  store(y, round, i, result);
}

template <class T, int kVec>
int32_t launchSilu(aq_queue* queue, const aq_view& x, const aq_view& y, int32_t round,
                   aq_error* err) {
  const int64_t vectors = numel(y) / kVec;
  const EarlyLaunch shape(queue, dim3(unsigned((vectors + kThreads - 1) / kThreads)), kThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, siluMulJoined<T, kVec>,
                                static_cast<const T*>(x.data), y.data, vectors, lastDim(y) / kVec,
                                round, startsSoon(numel(y) / lastDim(y), round)));
  return AQ_OK;
}

}  // namespace

int32_t norm_rounded(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                     const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_norm_rounded_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    constexpr int kVec = kVecWidth<T>;
    const int64_t rows = numel(in[0]) / lastDim(in[0]);
    const NormCall<T> n = {static_cast<const T*>(in[0].data),
                           static_cast<const T*>(in[1].data),
                           static_cast<const T*>(in[2].data),
                           out[0].data,
                           lastDim(in[0]),
                           T(p.eps),
                           p.centred,
                           p.round,
                           startsSoon(rows, p.round)};
    const bool isWide = n.columns % kVec == 0 && isAligned16(n.x) && isAligned16(n.w) &&
                        isAligned16(n.y) && (!n.b || isAligned16(n.b));
    if (!isWide) return launchNorm<T, 1, 256>(queue, n, rows, err);
    if (n.columns / kVec <= 128 * kNormKept) return launchNorm<T, kVec, 128>(queue, n, rows, err);
    return launchNorm<T, kVec, 512>(queue, n, rows, err);
  });
}

int32_t silu_mul_joined(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int32_t round = static_cast<const aq_silu_mul_joined_params*>(params)->round;
  if (numel(out[0]) == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    constexpr int kVec = kVecWidth<T>;
    const bool isWide =
        lastDim(out[0]) % kVec == 0 && isAligned16(in[0].data) && isAligned16(out[0].data);
    return isWide ? launchSilu<T, kVec>(queue, in[0], out[0], round, err)
                  : launchSilu<T, 1>(queue, in[0], out[0], round, err);
  });
}

}  // namespace aq::cuda
