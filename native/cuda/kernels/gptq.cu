// gptq: codes that make up for each other's rounding errors (GPTQ, arXiv 2210.17323) on a given
// grid.
//
// Math      columns from left to right: e = (w_j - q_j) / U_jj, w_k -= e U_jk for k > j, with
//           Ut U = (H + damping mean(diag H) I)^-1. In reverse order of rows and columns U is the
//           inverse of H's Cholesky factor (cholesky.cu).
// Layout    panels of min(block, kPanel) columns. Within a panel kLanes threads hold a row of w in
//           registers and read U through L1; what a panel owes to the columns after it is one
//           product.
// Cost      the factor, I^3 flop in f64; the codes, O I^2 flop; 1.3 I^2 doubles and a copy of w as
//           memory. The panels wait for each other. Measured on an H100 80GB HBM3: 4096 x 4096 in
//           groups of 128 10.1 ms, of which 5.4 ms are the factor.
// Versions  v1 (this).
// Numerics  the factor in f64, the codes in T with the CPU's operations in its order; the products
//           add up in another order. f32 products are never taken in a lower precision.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/cholesky.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kPanel = 128;
constexpr int kLanes = 8;     // threads of a row
constexpr int kThreads = 64;  // of a block: rows are few, and every multiprocessor wants some
constexpr int kScanThreads = 512;

// What the device finds out about h before the factor is taken.
struct Moments {
  double trace;
  int isAnySet;  // whether an element is not zero
};

template <class T>
__global__ __launch_bounds__(kScanThreads) void scanMoments(const T* __restrict__ h, int64_t n,
                                                            Moments* found) {
  int isSet = 0;
  const int64_t stride = int64_t(gridDim.x) * kScanThreads;
  for (int64_t k = int64_t(blockIdx.x) * kScanThreads + threadIdx.x; k < n * n; k += stride) {
    isSet |= h[k] != T(0);
  }
  if (__syncthreads_or(isSet) && threadIdx.x == 0) atomicOr(&found->isAnySet, 1);
  if (blockIdx.x != 0) return;
  double trace = 0;
  for (int64_t i = threadIdx.x; i < n; i += kScanThreads) trace += double(h[i * (n + 1)]);
  trace = rowSum<kScanThreads>(trace);
  if (threadIdx.x == 0) found->trace = trace;
}

// The lower triangle of the damped h in reverse order of rows and columns, zeros above. Where no
// input ever arrived (h is all zero) the identity: then nothing is made up for.
template <class T>
__global__ __launch_bounds__(kElementThreads) void reverseMoments(const T* __restrict__ h,
                                                                  int64_t n, double damping,
                                                                  const Moments* __restrict__ found,
                                                                  double* __restrict__ matrix) {
  const bool isAnySet = found->isAnySet != 0;
  const double added = isAnySet ? damping * found->trace / double(n) : 1.0;
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < n * n; k += stride) {
    const int64_t i = k / n, j = k % n;
    double value = j <= i && isAnySet ? double(h[n * n - 1 - k]) : 0.0;
    if (i == j) value += added;
    matrix[k] = value;
  }
}

// u[j, c] = U[from + j, from + c] for the panel's rows j, with zeros beyond the matrix.
template <class T>
__global__ __launch_bounds__(kElementThreads) void takeFactors(const double* __restrict__ matrix,
                                                               int64_t n, int64_t from, int width,
                                                               int64_t cols, int64_t ld,
                                                               T* __restrict__ u) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < width * cols;
       k += stride) {
    const int64_t j = from + k / cols, c = from + k % cols;
    u[k / cols * ld + k % cols] = c < n ? static_cast<T>(matrix[(n - j) * n - 1 - c]) : T(0);
  }
}

template <class T>
struct PanelRows {
  const T* w;  // with what was made up so far
  const T* scale;
  const T* zero;
  const T* u;
  uint8_t* codes;
  T* errors;  // [rows, kPanel]
  int64_t rows, n, from, ld, group, perRow;
  int width;
  T top;
};

template <class T>
__global__ __launch_bounds__(kThreads) void codePanel(PanelRows<T> a) {
  constexpr int kVec = kVecWidth<T>;
  constexpr int kStep = kLanes * kVec;
  constexpr int kParts = kPanel / kStep;
  constexpr int kRowsPerBlock = kThreads / kLanes;
  const int64_t wanted = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
  const bool isLive = wanted < a.rows;
  const int64_t row = isLive ? wanted : a.rows - 1;  // whole warps, for the shuffles
  const int lane = int(threadIdx.x) % kLanes;
  const T* const w = a.w + row * a.n + a.from;

  // Columns part kStep + lane kVec + e of the panel; after its turn a column holds its error.
  T rest[kParts][kVec];
#pragma unroll
  for (int p = 0; p < kParts; p++) {
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      const int column = p * kStep + lane * kVec + e;
      rest[p][e] = column < a.width ? w[column] : T(0);
    }
  }

  int64_t group = a.from / a.group;
  GridCode<T> grid(a.scale[row * a.perRow + group], a.zero[row * a.perRow + group], a.top);
  int64_t next = (group + 1) * a.group - a.from;  // the first column of the next group
#pragma unroll
  for (int p = 0; p < kParts; p++) {
    for (int owner = 0; owner < kLanes; owner++) {
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const int j = p * kStep + owner * kVec + e;
        if (j >= a.width) break;
        if (j == next) {
          group++;
          next += a.group;
          grid =
              GridCode<T>(a.scale[row * a.perRow + group], a.zero[row * a.perRow + group], a.top);
        }
        const T* const factors = a.u + j * a.ld;
        const T x = __shfl_sync(~0u, rest[p][e], owner, kLanes);
        const T code = grid.code(x);
        const T error = divRn(addRn(x, -grid.value(code)), factors[j]);
#pragma unroll
        for (int q = p; q < kParts; q++) {
          const Vec<T, kVec> factor = loadVec<T, kVec>(factors, q * kLanes + lane);
#pragma unroll
          for (int f = 0; f < kVec; f++) {
            rest[q][f] = addRn(rest[q][f], -mulRn(error, factor.lane[f]));
          }
        }
        if (lane == owner) {
          rest[p][e] = error;
          if (isLive) {
            a.codes[row * a.n + a.from + j] = static_cast<uint8_t>(static_cast<int32_t>(code));
          }
        }
      }
    }
  }
  if (!isLive) return;
#pragma unroll
  for (int p = 0; p < kParts; p++) {
    Vec<T, kVec> error;
#pragma unroll
    for (int e = 0; e < kVec; e++) error.lane[e] = rest[p][e];
    storeVec(a.errors + row * kPanel, p * kLanes + lane, error);
  }
}

// The parts of the scratch, in bytes from its start.
struct Parts {
  uint64_t moments, work, matrix, rest, errors, u, bytes;
  int64_t ld;  // of u

  Parts(int64_t rows, int64_t n, uint64_t size) {
    ld = (n + kPanel - 1) / kPanel * kPanel + kPanel;
    moments = 0;
    work = scratchBytes(sizeof(Moments));
    matrix = work + inverseFactorBytes(n);
    rest = matrix + scratchBytes(uint64_t(n * n) * sizeof(double));
    errors = rest + scratchBytes(uint64_t(rows * n) * size);
    u = errors + scratchBytes(uint64_t(rows * kPanel) * size);
    bytes = u + scratchBytes(uint64_t(kPanel * ld) * size);
  }
};

template <class T>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view& out, const aq_gptq_params& o,
            aq_error* err) {
  const int64_t n = in[0].rank ? in[0].dim[in[0].rank - 1] : 1, rows = numel(in[0]) / n;
  const Groups groups = Groups::of(numel(in[0]), n, o.group);
  const auto* const h = static_cast<const T*>(in[1].data);
  const Parts parts(rows, n, sizeof(T));
  Scratch scratch(queue);
  if (scratch.allocate(parts.bytes, "gptq", err) != AQ_OK) return err->code;
  auto* const moments = scratch.at<Moments>(parts.moments);
  auto* const matrix = scratch.at<double>(parts.matrix);
  T* const rest = scratch.at<T>(parts.rest);
  T* const u = scratch.at<T>(parts.u);

  CUDA_CHECK(cudaMemsetAsync(moments, 0, sizeof(Moments), queue->stream));
  scanMoments<<<elementBlocks(n * n), kScanThreads, 0, queue->stream>>>(h, n, moments);
  LAUNCH_CHECK("gptq (scan)");
  reverseMoments<<<elementBlocks(n * n), kElementThreads, 0, queue->stream>>>(h, n, o.damping,
                                                                              moments, matrix);
  LAUNCH_CHECK("gptq (reverse)");
  if (inverseFactor(queue, matrix, n, scratch.at<double>(parts.work), err) != AQ_OK) {
    return err->code;
  }
  CUDA_CHECK(cudaMemcpyAsync(rest, in[0].data, uint64_t(rows * n) * sizeof(T),
                             cudaMemcpyDeviceToDevice, queue->stream));

  PanelRows<T> a = {};
  a.w = rest;
  a.scale = static_cast<const T*>(in[2].data);
  a.zero = static_cast<const T*>(in[3].data);
  a.u = u;
  a.codes = static_cast<uint8_t*>(out.data);
  a.errors = scratch.at<T>(parts.errors);
  a.rows = rows;
  a.n = n;
  a.ld = parts.ld;
  a.group = groups.group;
  a.perRow = groups.perRow;
  a.top = topCode<T>(o.bits);
  const int64_t step = std::min<int64_t>(o.block, kPanel);
  constexpr int kRowsPerBlock = kThreads / kLanes;
  for (int64_t from = 0; from < n; from += step) {
    const int64_t width = std::min(step, n - from), end = from + width;
    const int64_t cols = std::max<int64_t>(n - from, kPanel);
    takeFactors<<<elementBlocks(width * cols), kElementThreads, 0, queue->stream>>>(
        matrix, n, from, int(width), cols, parts.ld, u);
    LAUNCH_CHECK("gptq (factors)");
    a.from = from;
    a.width = int(width);
    codePanel<<<unsigned((rows + kRowsPerBlock - 1) / kRowsPerBlock), kThreads, 0, queue->stream>>>(
        a);
    LAUNCH_CHECK("gptq (panel)");
    if (end == n) break;
    Gemm owed;  // rest[:, end..] -= errors U[from..end, end..]
    owed.m = rows;
    owed.n = n - end;
    owed.k = width;
    owed.dtype = in[0].dtype;
    owed.a.data = a.errors;
    owed.a.ld = kPanel;
    owed.b.data = u + width;
    owed.b.ld = parts.ld;
    owed.c = rest + end;
    owed.ldc = n;
    owed.alpha = -1;
    owed.beta = 1;
    if (gemm(queue, owed, err) != AQ_OK) return err->code;
  }
  return AQ_OK;
}

}  // namespace

int32_t gptq(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
             const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_gptq_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err, [&]<class T>() { return run<T>(queue, in, out[0], o, err); });
}

}  // namespace aq::cuda
