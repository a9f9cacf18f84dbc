// norm_operand.cuh: norms whose result is quantized in the pass that makes it: CodeRows (row_operand.cuh) or
// FloatRows (fp4_row.cuh) say to what.
//
// norm.cu's layout: a row belongs to a warp or a block, and its y stays in registers until what it is
// quantized by is known.
#pragma once
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/norm_rows.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Rows of x, and where what is made of them goes.
template <class To>
struct NormRows {
  const float* x;
  const float* w;
  const float* b;  // may be null
  float* mean;     // layer_norm only
  float* rstd;
  int64_t rows;
  float eps;
  To to;
};

template <int kLanes, bool kCentered, class To>
__global__ __launch_bounds__(kLanes > kNormThreads ? kLanes : kNormThreads) void normToRows(
    const __grid_constant__ NormRows<To> n) {
  constexpr int kRowsPerBlock = kLanes < kNormThreads ? kNormThreads / kLanes : 1;
  const int64_t columns = n.to.columns;
  const int64_t row = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
  if (row >= n.rows) return;  // whole groups of kLanes, which find out things together
  const int lane = int(threadIdx.x) % kLanes;
  const RowShare<float, kRowVector, kLanes> share(n.x + row * columns, columns, lane);
  const float mean = kCentered ? share.mean(columns) : 0.0f;
  const float rstd = share.rstd(mean, columns, n.eps);
  RowVector y[kNormKept];
#pragma unroll
  for (int i = 0; i < kNormKept; i++) {
    y[i] = {};
    const int k = lane + i * kLanes;
    if (k >= share.vectors) continue;
    const RowVector w = loadVec<float, kRowVector>(n.w, k);
    if (n.b) y[i] = loadVec<float, kRowVector>(n.b, k);
#pragma unroll
    for (int e = 0; e < kRowVector; e++)
      y[i].lane[e] = normed(share.kept[i].lane[e], mean, rstd, w.lane[e], y[i].lane[e]);
  }
  if (lane == 0) {
    n.rstd[row] = rstd;
    if constexpr (kCentered) n.mean[row] = mean;
  }
  writeRow<kLanes>(n.to, y, row, lane);
}

template <int kLanes, class To>
int32_t launchNorm(aq_queue* queue, const NormRows<To>& n, aq_error* err) {
  constexpr int kBlock = kLanes > kNormThreads ? kLanes : kNormThreads;
  constexpr int kRowsPerBlock = kBlock / kLanes;
  const unsigned blocks = unsigned((n.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  const auto kernel = n.mean ? normToRows<kLanes, true, To> : normToRows<kLanes, false, To>;
  kernel<<<blocks, kBlock, 0, queue->stream>>>(n);
  LAUNCH_CHECK("a norm with its quantizer");
  return AQ_OK;
}

// Lanes that norm.cu gives a row are what its sums depend on.
template <class To>
int32_t normInOnePass(aq_queue* queue, const NormRows<To>& n, aq_error* err) {
  const int64_t vectors = n.to.columns / kRowVector;
  if (vectors <= kWarp * kNormKept) return launchNorm<kWarp>(queue, n, err);
  if (vectors <= kNormThreads * kNormKept) return launchNorm<kNormThreads>(queue, n, err);
  if (vectors <= 2 * kNormThreads * kNormKept) return launchNorm<2 * kNormThreads>(queue, n, err);
  return launchNorm<1024>(queue, n, err);
}

// Whether rows of f32 and what is made of them are as normInOnePass wants them; in: x, w, b.
inline bool isNormRows(const aq_view* in, const aq_view& y) {
  const int64_t columns = lastDim(in[0]);
  return in[0].dtype == AQ_F32 && columns % kRowVector == 0 &&
         columns <= 1024 * kNormKept * kRowVector && isAligned16(in[0].data) &&
         isAligned16(in[1].data) && isAligned16(in[2].data) && isAligned16(y.data);
}

// All of NormRows but `to`. out: rstd, or mean and rstd where `saved` is 2.
template <class To>
NormRows<To> normRowsOf(const aq_view* in, const aq_view* out, int saved, double eps) {
  const auto input = [&](int i) { return static_cast<const float*>(in[i].data); };
  const auto output = [&](int i) { return static_cast<float*>(out[i].data); };
  NormRows<To> n = {};
  n.x = input(0);
  n.w = input(1);
  n.b = input(2);
  n.mean = saved > 1 ? output(0) : nullptr;
  n.rstd = output(saved - 1);
  n.rows = numel(in[0]) / lastDim(in[0]);
  n.eps = float(eps);
  return n;
}

// An op's norm alone, and how many numbers it stores of every row (rstd, or mean and rstd).
struct NormOp {
  const char* name;
  aq_kernel norm;
  int saved;
};

// The norm alone, to y in scratch.
inline int32_t normAlone(aq_queue* queue, const NormOp& op, const aq_view* in, const aq_view& y,
                         const aq_view* out, double eps, aq_error* err) {
  const aq_rms_norm_params params = {eps};  // layer_norm's have the same form
  static_assert(sizeof(aq_layer_norm_params) == sizeof(aq_rms_norm_params));
  const aq_view normed[] = {y, out[0], out[1]};
  return op.norm(queue, in, 3, normed, 1 + op.saved, &params, err);
}

}  // namespace aq::cuda
