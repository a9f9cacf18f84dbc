// rms_norm_grad and layer_norm_grad: to the rows, and to w and b as sums over all rows.
//
// Math      u = g w, n = x rstd (rms_norm) or (x - mean) rstd (layer_norm), both over C channels:
//           gx = rstd (u - mean u - n mean(u n)), where rms_norm has no mean u;
//           gw = sum over rows of g n, gb = sum over rows of g (rms_norm: where it is asked for).
// Layout    x, g, gx [M, C] row-major. The rows are cut into at most kMostNormParts parts, a block
//           each (device/norm_grad.cuh). Its threads own columns: kKept 16-byte vectors each, of which
//           they keep the partial gw and gb in registers while they walk down the part's rows; the
//           next row is on its way to shared memory while the sums of this one are taken. A row
//           belongs to a warp (C up to 512 floats; the warps of a block are then summed in shared
//           memory) or to 256 or 512 threads (4096, 8192). The partial sums go to scratch and a second
//           kernel adds them (reduce.cuh). Other rows, and those that 16-byte accesses do not fit: a
//           row and a column kernel.
// Cost      reads 2 and writes 1 number per element: bandwidth-bound; the parts add 2 C kMostNormParts.
// Roofline  2048 x 4096 f32: 100 MB -> 30 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1, with a launch for each of gw and gb: on an H100 80GB HBM3, CUDA 13.0, rms_norm_grad
//           41.4 us = 84 % of what a plain copy reaches there (2.89 TB/s), layer_norm_grad 46.2 us
//           = 75 %; 2048 x 512: 8.8 and 11.3 us. v2, one launch for both sums;
//           v3, the next row waits in shared memory, so that nothing spills (this).
// Numerics  sums in T over a part, then over the parts, in an order that only the shape decides: no
//           atomics, and the same bytes on any GPU.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_grad.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = kNormThreads, kKept = kNormKept;

// ---------------------------------------------------------------- any shape: rows, then columns

template <class T, bool kCentered>
__global__ __launch_bounds__(kThreads) void normGradRow(NormGrad<T> n) {
  const int64_t row = blockIdx.x;
  const T* const x = n.x + row * n.columns;
  const T* const g = n.g + row * n.columns;
  const T mean = kCentered ? n.mean[row] : T(0), rstd = n.rstd[row];
  T cross = 0, level = 0;
  for (int64_t c = threadIdx.x; c < n.columns; c += kThreads) {
    const T u = g[c] * n.w[c];
    cross += u * (x[c] - mean);
    level += u;
  }
  const auto means = meansOf<kThreads, kCentered, false>(mean, rstd, cross, level, n.columns);
  for (int64_t c = threadIdx.x; c < n.columns; c += kThreads) {
    n.gx[row * n.columns + c] = means.gradient(x[c], g[c] * n.w[c]);
  }
}

template <class T, bool kCentered, bool kBias>
__global__ __launch_bounds__(kThreads) void normGradColumns(NormGrad<T> n) {
  const int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= n.columns) return;
  const int64_t begin = int64_t(blockIdx.y) * n.rowsPerPart;
  const int64_t end = begin + n.rowsPerPart < n.rows ? begin + n.rowsPerPart : n.rows;
  T gw = 0, gb = 0;
  for (int64_t row = begin; row < end; row++) {
    const T g = n.g[row * n.columns + c];
    gw += g * (n.x[row * n.columns + c] - (kCentered ? n.mean[row] : T(0))) * n.rstd[row];
    gb += g;
  }
  T* const part = n.parts + blockIdx.y * n.stride;
  part[c] = gw;
  if constexpr (kBias) part[n.columns + c] = gb;
}

// ---------------------------------------------------------------- launches

template <int kLanes, bool kCentered, bool kBias, class T>
int32_t launchPart(aq_queue* queue, const NormGrad<T>& n, unsigned parts, aq_error* err) {
  const auto kernel = normGradPart<T, kLanes, kCentered, kBias, NothingBefore>;
  constexpr int kBytes = kNormStages<kLanes>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<parts, kNormGradBlock<kLanes>, kBytes, queue->stream>>>(n, NothingBefore{});
  LAUNCH_CHECK("the gradient of a norm");
  return AQ_OK;
}

template <bool kCentered, bool kBias, class T>
int32_t launchAnyShape(aq_queue* queue, const NormGrad<T>& n, unsigned parts, aq_error* err) {
  if (n.gx) {
    normGradRow<T, kCentered><<<unsigned(n.rows), kThreads, 0, queue->stream>>>(n);
    LAUNCH_CHECK("the gradient of a norm (rows)");
  }
  const dim3 grid(unsigned((n.columns + kThreads - 1) / kThreads), parts);
  normGradColumns<T, kCentered, kBias><<<grid, kThreads, 0, queue->stream>>>(n);
  LAUNCH_CHECK("the gradient of a norm (columns)");
  return AQ_OK;
}

// gb is wanted where kBias.
template <bool kCentered, bool kBias, class T>
int32_t run(aq_queue* queue, NormGrad<T> n, T* gw, T* gb, const char* op, aq_error* err) {
  constexpr int kVec = kVecWidth<T>;
  if (n.columns == 0) return AQ_OK;
  const bool isWide = n.columns % kVec == 0 && isAligned16(n.x) && isAligned16(n.w) &&
                      isAligned16(n.g) && isAligned16(n.gx);
  const int64_t vectors = isWide ? n.columns / kVec : INT64_MAX;
  const bool isShort = vectors <= kWarp * kKept;
  // A part of short rows has one for each of its warps.
  const int64_t parts = cutRows(n, isShort ? kThreads / kWarp : 1);
  n.stride = kBias ? 2 * n.columns : n.columns;

  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(parts) * uint64_t(n.stride) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, op, err)) return code;
  n.parts = scratch.at<T>();
  int32_t code = AQ_OK;
  if (parts > 0) {
    if (isShort) {
      code = launchPart<kWarp, kCentered, kBias>(queue, n, unsigned(parts), err);
    } else if (vectors <= kThreads * kKept) {
      code = launchPart<kThreads, kCentered, kBias>(queue, n, unsigned(parts), err);
    } else if (vectors <= 2 * kThreads * kKept && hasNormStages<2 * kThreads>(queue)) {
      code = launchPart<2 * kThreads, kCentered, kBias>(queue, n, unsigned(parts), err);
    } else {
      code = launchAnyShape<kCentered, kBias>(queue, n, unsigned(parts), err);
    }
  }
  if (code != AQ_OK) return code;
  constexpr int kRows = kBias ? 2 : 1;
  ColumnSums<T, kRows> sums = {gw};
  if constexpr (kBias) sums.y[1] = gb;
  const dim3 grid(columnBlocks(n.columns), kRows);
  sumColumnParts<T, kRows>
      <<<grid, kColumnThreads, 0, queue->stream>>>(n.parts, parts, n.columns, sums);
  LAUNCH_CHECK("the gradient of a norm (sums)");
  return AQ_OK;
}

template <class T>
NormGrad<T> describe(const aq_view& x, const aq_view& w, const aq_view& rstd, const aq_view& g,
                     const aq_view& gx) {
  NormGrad<T> n = {};
  n.x = static_cast<const T*>(x.data);
  n.w = static_cast<const T*>(w.data);
  n.rstd = static_cast<const T*>(rstd.data);
  n.g = static_cast<const T*>(g.data);
  n.gx = static_cast<T*>(gx.data);
  n.columns = x.rank ? x.dim[x.rank - 1] : 1;
  n.rows = n.columns ? numel(x) / n.columns : 0;
  return n;
}

}  // namespace

int32_t rms_norm_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                      const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_rms_norm_grad_params*>(params);
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    auto n = describe<T>(in[0], in[1], in[2], in[3], out[0]);
    if (!o.need_gx) n.gx = nullptr;
    T* const gw = static_cast<T*>(out[1].data);
    T* const gb = static_cast<T*>(out[2].data);
    return o.need_gb ? run<false, true>(queue, n, gw, gb, "rms_norm_grad", err)
                     : run<false, false>(queue, n, gw, gb, "rms_norm_grad", err);
  });
}

int32_t layer_norm_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    auto n = describe<T>(in[0], in[1], in[3], in[4], out[0]);
    n.mean = static_cast<const T*>(in[2].data);
    return run<true, true>(queue, n, static_cast<T*>(out[1].data), static_cast<T*>(out[2].data),
                           "layer_norm_grad", err);
  });
}

}  // namespace aq::cuda
