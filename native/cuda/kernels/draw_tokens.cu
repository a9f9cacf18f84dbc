// draw_tokens: the next token of each sequence, drawn from the softmax of its logits.
//
// Math      params.h: weights w_i = e^((l_i - max l) / t); the first i whose w_0 + .. + w_i is above u times
//           the sum of all.
// Layout    logits [M, V]; a block a row. Each warp has a part of the row, a multiple of 32 long, which it
//           reads in order: once for the largest logit, once for its part of the sum. The warp that has the
//           place that was drawn goes through its part a third time.
// Cost      the row is read twice, the second time from L2, and an eighth of it again; two exponentials an
//           element at most.
// Roofline  128 x 32000 f32: 16.4 MB -> 5 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, in calls from JavaScript: 70 us, one row 58 us, 32 x 8192 18 us; bound by the latency of a
//           block's passes.
// Versions  v1 (this).
// Numerics  weights in T, sums in f64 in an order that V alone fixes: what is drawn does not depend on the rows
//           beside it. The CPU's sums may differ from these in their last bits, and so may a draw that falls
//           there.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The first of the largest numbers of a row.
template <class T>
struct Best {
  T top;
  int64_t at;  // -1: none yet

  __device__ void take(T value, int64_t place) {
    if (place < 0) return;
    if (at < 0 || value > top || (value == top && place < at)) {
      top = value;
      at = place;
    }
  }
};

template <class T>
__device__ Best<T> bestOf(const T* l, int64_t columns) {
  Best<T> best = {T(0), -1};
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
    if (l[i] > T(-INFINITY)) best.take(l[i], i);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T top = __shfl_xor_sync(~0u, best.top, step);
    const int64_t at = __shfl_xor_sync(~0u, best.at, step);
    best.take(top, at);
  }
  __shared__ Best<T> parts[kWarps];
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = best;
  __syncthreads();
  for (const Best<T>& part : parts) best.take(part.top, part.at);
  return best;
}

template <class T>
__global__ __launch_bounds__(kThreads) void drawRows(const T* __restrict__ logits,
                                                     const double* __restrict__ draws,
                                                     int64_t columns, int32_t* __restrict__ ids) {
  const int64_t row = blockIdx.x;
  const T* const l = logits + row * columns;
  const double temperature = draws[2 * row], place = draws[2 * row + 1];
  const Best<T> best = bestOf(l, columns);
  if (threadIdx.x == 0) ids[row] = int32_t(best.at);
  if (best.at < 0 || !(temperature > 0)) return;

  const auto weightAt = [&](int64_t i, int64_t end) {
    const T w = i < end ? ::exp((l[i] - best.top) / T(temperature)) : T(0);
    return double(w > T(0) ? w : T(0));
  };
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int64_t part = (columns + kThreads - 1) / kThreads * kWarp;
  const int64_t first = part * warp < columns ? part * warp : columns;
  const int64_t end = first + part < columns ? first + part : columns;
  double sum = 0;
  for (int64_t i = first; i < end; i += kWarp) sum += weightAt(i + lane, end);
  sum = warpSum(sum);
  __shared__ double sums[kWarps];
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  double total = 0, before = 0;
  for (int w = 0; w < kWarps; w++) {
    if (w == warp) before = total;
    total += sums[w];
  }
  const double target = place * total;
  if (target < before || target >= before + sum) return;

  for (int64_t i = first; i < end; i += kWarp) {
    const double own = weightAt(i + lane, end);
    double upTo = own;
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0u, upTo, step);
      if (lane >= step) upTo += other;
    }
    const unsigned above = __ballot_sync(~0u, own > 0 && before + upTo > target);
    if (above != 0) {
      if (lane == 0) ids[row] = int32_t(i + __ffs(int(above)) - 1);
      return;
    }
    before += __shfl_sync(~0u, upTo, kWarp - 1);
  }
}

}  // namespace

int32_t draw_tokens(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t rows = numel(out[0]), columns = lastDim(in[0]);
  if (rows == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    drawRows<T><<<unsigned(rows), kThreads, 0, queue->stream>>>(
        static_cast<const T*>(in[0].data), static_cast<const double*>(in[1].data), columns,
        static_cast<int32_t*>(out[0].data));
    LAUNCH_CHECK("draw_tokens");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
