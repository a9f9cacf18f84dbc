// rms_norm_grad and layer_norm_grad: to the rows, and to w and b as sums over all rows.
//
// Math      u = g w, n = x rstd (rms_norm) or (x - mean) rstd (layer_norm), both over C channels:
//           gx = rstd (u - mean u - n mean(u n)), where rms_norm has no mean u;
//           gw = sum over rows of g n, gb = sum over rows of g.
// Layout    x, g, gx [M, C] row-major. The rows are cut into at most kMostParts parts, a block
//           each. Its threads own columns: kKept 16-byte vectors each, of which they keep the
//           partial gw and gb in registers while they walk down the part's rows; the next row is on
//           its way while the sums of this one are taken. A row belongs to a warp (C up to 512
//           floats; the warps of a block are then summed in shared memory) or to 256 or 512 threads
//           (4096, 8192). The partial sums go to scratch and a second kernel adds them
//           (reduce.cuh). Other rows, and those that 16-byte accesses do not fit: a row and a
//           column kernel.
// Cost      reads 2 and writes 1 number per element: bandwidth-bound; the parts add 2 C kMostParts.
// Roofline  2048 x 4096 f32: 100 MB -> 30 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1, with a launch for each of gw and gb: on an H100 80GB HBM3, CUDA 13.0, rms_norm_grad
//           41.4 us = 84 % of what a plain copy reaches there (2.89 TB/s), layer_norm_grad 46.2 us
//           = 75 %; 2048 x 512: 8.8 and 11.3 us. v2, one launch for both sums (this).
// Numerics  sums in T over a part, then over the parts, in an order that only the shape decides: no
//           atomics, and the same bytes on any GPU.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kKept = 4;
// Two blocks on every SM of an H100, and 8 rows a block for 2048 tokens.
constexpr int64_t kMostParts = 256;

template <class T>
struct NormGrad {
  const T* x;
  const T* w;
  const T* mean;  // layer_norm only, as gb
  const T* rstd;
  const T* g;
  T* gx;
  T* parts;  // [parts, gw and gb: columns each]
  int64_t rows;
  int64_t columns;
  int64_t rowsPerPart;
  int64_t stride;  // of parts: columns, or twice that
};

// What a row's threads agree on: `slope` = mean(u n), `level` = mean u.
template <class T>
struct RowMeans {
  T mean, rstd, slope, level;

  __device__ T gradient(T x, T u) const { return rstd * (u - level - (x - mean) * rstd * slope); }
};

// Sums of u (x - mean) and, where kCentered, of u; over the threads of the row.
template <int kLanes, bool kCentered, class T>
__device__ RowMeans<T> meansOf(T mean, T rstd, T cross, T level, int64_t columns) {
  if constexpr (kCentered) {
    T sums[2] = {cross, level};
    rowSums<kLanes>(sums);
    return {mean, rstd, sums[0] * rstd / T(columns), sums[1] / T(columns)};
  } else {
    return {mean, rstd, rowSum<kLanes>(cross) * rstd / T(columns), T(0)};
  }
}

// ---------------------------------------------------------------- one pass

template <int kLanes>
inline constexpr int kBlock = kLanes > kThreads ? kLanes : kThreads;

template <class T, int kLanes, bool kCentered>
__global__ __launch_bounds__(kBlock<kLanes>,
                             kLanes > kThreads ? 1 : 2) void normGradPart(NormGrad<T> n) {
  constexpr int kVec = kVecWidth<T>;
  constexpr int kGroups = kBlock<kLanes> / kLanes;
  using V = Vec<T, kVec>;
  const int lane = int(threadIdx.x) % kLanes;
  const int group = int(threadIdx.x) / kLanes;
  const int vectors = int(n.columns / kVec);
  const int64_t begin = int64_t(blockIdx.x) * n.rowsPerPart;
  const int64_t end = begin + n.rowsPerPart < n.rows ? begin + n.rowsPerPart : n.rows;

  V x[kKept], g[kKept], gw[kKept] = {}, gb[kKept] = {};
  const auto load = [&](int64_t row, V* xs, V* gs) {
#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      xs[i] = loadVec<T, kVec>(n.x + row * n.columns, lane + i * kLanes);
      gs[i] = loadVec<T, kVec>(n.g + row * n.columns, lane + i * kLanes);
    }
  };
  if (begin + group < end) load(begin + group, x, g);

  for (int64_t row = begin + group; row < end; row += kGroups) {
    V nextX[kKept], nextG[kKept];
    if (row + kGroups < end) load(row + kGroups, nextX, nextG);

    const T mean = kCentered ? n.mean[row] : T(0), rstd = n.rstd[row];
    T cross = 0, level = 0;
#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      const V w = loadVec<T, kVec>(n.w, lane + i * kLanes);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const T u = g[i].lane[e] * w.lane[e], centered = x[i].lane[e] - mean;
        cross += u * centered;
        level += u;
        gw[i].lane[e] += g[i].lane[e] * centered * rstd;
        if (kCentered) gb[i].lane[e] += g[i].lane[e];
      }
    }
    const auto means = meansOf<kLanes, kCentered>(mean, rstd, cross, level, n.columns);

#pragma unroll
    for (int i = 0; i < kKept; i++) {
      if (lane + i * kLanes >= vectors) continue;
      V gx = loadVec<T, kVec>(n.w, lane + i * kLanes);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        gx.lane[e] = means.gradient(x[i].lane[e], g[i].lane[e] * gx.lane[e]);
      }
      storeVec(n.gx + row * n.columns, lane + i * kLanes, gx);
      x[i] = nextX[i];
      g[i] = nextG[i];
    }
  }

  // The groups' sums, one kind after the other through the same shared memory.
  T* const part = n.parts + blockIdx.x * n.stride;
  const auto store = [&](V* sums, T* target) {
    if constexpr (kGroups > 1) {
      __shared__ V shared[kGroups][kLanes * kKept];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kKept; i++) shared[group][lane + i * kLanes] = sums[i];
      __syncthreads();
      for (int k = int(threadIdx.x); k < vectors; k += kBlock<kLanes>) {
        V sum = shared[0][k];
        for (int other = 1; other < kGroups; other++) {
          for (int e = 0; e < kVec; e++) sum.lane[e] += shared[other][k].lane[e];
        }
        storeVec(target, k, sum);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kKept; i++) {
        if (lane + i * kLanes < vectors) storeVec(target, lane + i * kLanes, sums[i]);
      }
    }
  };
  store(gw, part);
  if constexpr (kCentered) store(gb, part + n.columns);
}

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
  const auto means = meansOf<kThreads, kCentered>(mean, rstd, cross, level, n.columns);
  for (int64_t c = threadIdx.x; c < n.columns; c += kThreads) {
    n.gx[row * n.columns + c] = means.gradient(x[c], g[c] * n.w[c]);
  }
}

template <class T, bool kCentered>
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
  if constexpr (kCentered) part[n.columns + c] = gb;
}

// ---------------------------------------------------------------- launches

template <int kLanes, bool kCentered, class T>
int32_t launchPart(aq_queue* queue, const NormGrad<T>& n, unsigned parts, aq_error* err) {
  normGradPart<T, kLanes, kCentered><<<parts, kBlock<kLanes>, 0, queue->stream>>>(n);
  LAUNCH_CHECK("the gradient of a norm");
  return AQ_OK;
}

template <bool kCentered, class T>
int32_t launchAnyShape(aq_queue* queue, const NormGrad<T>& n, unsigned parts, aq_error* err) {
  normGradRow<T, kCentered><<<unsigned(n.rows), kThreads, 0, queue->stream>>>(n);
  LAUNCH_CHECK("the gradient of a norm (rows)");
  const dim3 grid(unsigned((n.columns + kThreads - 1) / kThreads), parts);
  normGradColumns<T, kCentered><<<grid, kThreads, 0, queue->stream>>>(n);
  LAUNCH_CHECK("the gradient of a norm (columns)");
  return AQ_OK;
}

template <bool kCentered, class T>
int32_t run(aq_queue* queue, NormGrad<T> n, T* gw, T* gb, const char* op, aq_error* err) {
  constexpr int kVec = kVecWidth<T>;
  if (n.columns == 0) return AQ_OK;
  const bool isWide = n.columns % kVec == 0 && isAligned16(n.x) && isAligned16(n.w) &&
                      isAligned16(n.g) && isAligned16(n.gx);
  const int64_t vectors = isWide ? n.columns / kVec : INT64_MAX;
  const bool isShort = vectors <= kWarp * kKept;
  // A part of short rows has one for each of its warps.
  const int64_t unit = isShort ? kThreads / kWarp : 1;
  const int64_t share = std::max<int64_t>(1, (n.rows + kMostParts - 1) / kMostParts);
  n.rowsPerPart = (share + unit - 1) / unit * unit;
  const int64_t parts = (n.rows + n.rowsPerPart - 1) / n.rowsPerPart;
  n.stride = kCentered ? 2 * n.columns : n.columns;

  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(parts) * uint64_t(n.stride) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, op, err)) return code;
  n.parts = scratch.at<T>();
  int32_t code = AQ_OK;
  if (parts > 0) {
    if (isShort) {
      code = launchPart<kWarp, kCentered>(queue, n, unsigned(parts), err);
    } else if (vectors <= kThreads * kKept) {
      code = launchPart<kThreads, kCentered>(queue, n, unsigned(parts), err);
    } else if (vectors <= 2 * kThreads * kKept) {
      code = launchPart<2 * kThreads, kCentered>(queue, n, unsigned(parts), err);
    } else {
      code = launchAnyShape<kCentered>(queue, n, unsigned(parts), err);
    }
  }
  if (code != AQ_OK) return code;
  constexpr int kRows = kCentered ? 2 : 1;
  ColumnSums<T, kRows> sums = {gw};
  if constexpr (kCentered) sums.y[1] = gb;
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
                      const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    const auto n = describe<T>(in[0], in[1], in[2], in[3], out[0]);
    T* const none = nullptr;
    return run<false>(queue, n, static_cast<T*>(out[1].data), none, "rms_norm_grad", err);
  });
}

int32_t layer_norm_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    auto n = describe<T>(in[0], in[1], in[3], in[4], out[0]);
    n.mean = static_cast<const T*>(in[2].data);
    return run<true>(queue, n, static_cast<T*>(out[1].data), static_cast<T*>(out[2].data),
                     "layer_norm_grad", err);
  });
}

}  // namespace aq::cuda
