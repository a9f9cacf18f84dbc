// scaled_grad: fake_quant_grad of y = r x c, a matrix with factors of its rows and columns.
//
// Math      gy as in fake_quant_grad.cu for y; gr_m = sum_k gy x c, gc_k = sum_m gy x r,
//           gx = r gy c.
// Layout    Whole rows go through row_grad.cu in one pass. What does not fit it (groups within a
//           row, offsets, one logit for all, odd widths, f64) has gy made in scratch; one kernel
//           then goes along rows for gr and gx, one along columns for gc, in tiles of rows whose
//           sums a last kernel adds up.
// Cost      that way 18 B an element (f16, bf16) or 24 B (f32), and the gradients written.
// Numerics  y rounds as in quant_grid, so codes are the same. Sums in T, in an order that the shape
//           fixes.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/fake_quant_grad.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kTileRows = 128;  // rows whose terms of gc a thread adds up

template <class S>
struct FactorGrad {
  using T = Wide<S>;
  const S* x;
  const T* gy;
  const T* r;  // null: ones
  const T* c;
  GradientOf<S>* gx;  // or null
  T* gr;              // or null
  T* tileSums;        // [tiles, columns] of gc
  int64_t rows, columns;
};

template <class S>
__global__ __launch_bounds__(kThreads) void alongRows(FactorGrad<S> a) {
  using T = Wide<S>;
  const int64_t row = blockIdx.x, begin = row * a.columns;
  const T r = a.r ? a.r[row] : T(1);
  T sum = 0;
  for (int64_t k = threadIdx.x; k < a.columns; k += kThreads) {
    const T scaled = a.c ? a.gy[begin + k] * a.c[k] : a.gy[begin + k];
    sum += scaled * T(a.x[begin + k]);
    if (a.gx) a.gx[begin + k] = GradientOf<S>(r * scaled);
  }
  if (!a.gr) return;
  sum = rowSum<kThreads>(sum);
  if (threadIdx.x == 0) a.gr[row] = sum;
}

template <class S>
__global__ __launch_bounds__(kThreads) void alongColumns(FactorGrad<S> a) {
  using T = Wide<S>;
  const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= a.columns) return;
  const int64_t first = blockIdx.y * kTileRows;
  const int64_t end = first + kTileRows < a.rows ? first + kTileRows : a.rows;
  T sum = 0;
#pragma unroll 4
  for (int64_t row = first; row < end; row++) {
    const int64_t at = row * a.columns + k;
    const T product = T(a.x[at]) * a.gy[at];
    sum += a.r ? product * a.r[row] : product;
  }
  a.tileSums[blockIdx.y * a.columns + k] = sum;
}

template <class S>
int32_t inSteps(aq_queue* queue, const aq_view* in, const aq_view* out,
                const aq_fake_quant_grad_params& o, aq_error* err) {
  using T = Wide<S>;
  FactorGrad<S> a = {};
  a.columns = in[0].rank ? in[0].dim[in[0].rank - 1] : 1;
  a.rows = a.columns ? numel(in[0]) / a.columns : 0;
  // A grid has at most 65535 blocks in its second dimension.
  const int64_t tiles = (a.rows + kTileRows - 1) / kTileRows;
  if (tiles > 65535) {
    return fail(err, AQ_SHAPE,
                "fake_quant_grad: %lld rows with factors; at most %lld are possible.",
                static_cast<long long>(a.rows), static_cast<long long>(65535 * kTileRows));
  }
  const uint64_t values = scratchBytes(uint64_t(numel(in[0])) * sizeof(T));
  Scratch scratch(queue);
  const uint64_t bytes = values + uint64_t(tiles * a.columns) * sizeof(T);
  if (scratch.allocate(bytes, "fake_quant_grad", err) != AQ_OK) return err->code;
  a.x = static_cast<const S*>(in[0].data);
  a.gy = scratch.at<T>();
  a.r = static_cast<const T*>(in[6].data);
  a.c = static_cast<const T*>(in[7].data);
  a.gx = o.need_gx ? static_cast<GradientOf<S>*>(out[0].data) : nullptr;
  a.gr = a.r ? static_cast<T*>(out[3].data) : nullptr;
  a.tileSums = scratch.at<T>(values);

  aq_fake_quant_grad_params inner = o;
  inner.need_gx = 0;
  if (groupFakeQuantGrad(queue, in, out, scratch.at<T>(), inner, err) != AQ_OK) return err->code;
  if (a.rows == 0) {
    if (a.c) CUDA_CHECK(cudaMemsetAsync(out[4].data, 0, a.columns * sizeof(T), queue->stream));
    return AQ_OK;
  }
  if (a.columns == 0) {
    if (a.r) CUDA_CHECK(cudaMemsetAsync(out[3].data, 0, a.rows * sizeof(T), queue->stream));
    return AQ_OK;
  }
  if (a.gr || a.gx) {
    alongRows<S><<<unsigned(a.rows), kThreads, 0, queue->stream>>>(a);
    LAUNCH_CHECK("fake_quant_grad (rows)");
  }
  if (a.c) {
    const dim3 grid(unsigned((a.columns + kThreads - 1) / kThreads), unsigned(tiles));
    alongColumns<S><<<grid, kThreads, 0, queue->stream>>>(a);
    LAUNCH_CHECK("fake_quant_grad (columns)");
    sumColumnParts<T, 1><<<columnBlocks(a.columns), kColumnThreads, 0, queue->stream>>>(
        a.tileSums, tiles, a.columns, {{static_cast<T*>(out[4].data)}});
    LAUNCH_CHECK("fake_quant_grad (column sums)");
  }
  return AQ_OK;
}

}  // namespace

int32_t scaledFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                            const aq_fake_quant_grad_params& params, aq_error* err) {
  if (isRowFakeQuantGrad(in, out, params)) return rowFakeQuantGrad(queue, in, out, params, err);
  return visitStored(in[0].dtype, err,
                     [&]<class S>() { return inSteps<S>(queue, in, out, params, err); });
}

}  // namespace aq::cuda
