// rms_norm and layer_norm: rows scaled to unit size, and, for layer_norm, moved to mean zero
// before.
//
// Math      rms_norm: rstd = 1/sqrt(mean x^2 + eps), y = x rstd w + b.
//           layer_norm: rstd = 1/sqrt(mean (x - mean)^2 + eps), y = (x - mean) rstd w + b.
// Layout    x, y [M, C] row-major. A row belongs to a warp (short rows) or a block of 256, 512 or
//           1024 threads. Each thread keeps kKept 16-byte vectors of its row in registers, so a row of
//           up to 512, 4096, 8192 or 16384 floats is read once; what is longer is read again, from L2.
//           Rows that 16-byte accesses do not fit go by elements.
// Cost      reads and writes M C numbers, 4 (8) flop each: bandwidth-bound. w and b stay in L1.
// Roofline  2048 x 4096 f32: 67 MB -> 20 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100
//           80GB HBM3, CUDA 13.0, by kernel_check --time: rms_norm 25.3 us = 92 % of what a plain
//           copy reaches there (2.89 TB/s), layer_norm 25.9 us = 90 %; 2048 x 512: 5.4 us.
// Versions  v1; v2 has blocks of 512 (this): two at a time on a multiprocessor, where one of 1024 waits
//           for its own sums.
// Numerics  sums in T: at most a few dozen terms a thread, then a tree. The variance is taken
//           around the mean, from registers: E[x^2] - mean^2 would cancel where the mean is far
//           from zero.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_rows.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = kNormThreads, kKept = kNormKept;

template <class T>
struct Norm {
  const T* x;
  const T* w;
  const T* b;  // may be null
  T* y;
  T* mean;  // layer_norm only
  T* rstd;
  int64_t rows;
  int64_t columns;
  T eps;
};

template <class T, int kVec, int kLanes, bool kCentered>
__global__ __launch_bounds__(kLanes > kThreads ? kLanes : kThreads) void normRows(Norm<T> n) {
  constexpr int kRowsPerBlock = kLanes < kThreads ? kThreads / kLanes : 1;
  const int64_t row = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
  if (row >= n.rows) return;  // whole groups of kLanes, so that the sums below are complete
  const int lane = int(threadIdx.x) % kLanes;
  const RowShare<T, kVec, kLanes> share(n.x + row * n.columns, n.columns, lane);

  const T mean = kCentered ? share.mean(n.columns) : T(0);
  const T rstd = share.rstd(mean, n.columns, n.eps);

  T* const y = n.y + row * n.columns;
  share.each([&](const Vec<T, kVec>& x, int64_t k) {
    const Vec<T, kVec> w = loadVec<T, kVec>(n.w, k);
    Vec<T, kVec> b = {};
    if (n.b) b = loadVec<T, kVec>(n.b, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) b.lane[e] = normed(x.lane[e], mean, rstd, w.lane[e], b.lane[e]);
    storeVec(y, k, b);
  });
  if (lane == 0) {
    n.rstd[row] = rstd;
    if constexpr (kCentered) n.mean[row] = mean;
  }
}

template <class T, int kVec, int kLanes, bool kCentered>
int32_t launch(aq_queue* queue, const Norm<T>& n, aq_error* err) {
  constexpr int kBlock = kLanes > kThreads ? kLanes : kThreads;
  constexpr int kRowsPerBlock = kBlock / kLanes;
  const unsigned blocks = unsigned((n.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  normRows<T, kVec, kLanes, kCentered><<<blocks, kBlock, 0, queue->stream>>>(n);
  LAUNCH_CHECK("a norm");
  return AQ_OK;
}

template <class T, bool kCentered>
int32_t run(aq_queue* queue, const Norm<T>& n, aq_error* err) {
  constexpr int kVec = kVecWidth<T>;
  if (n.rows == 0 || n.columns == 0) return AQ_OK;
  const bool isWide = n.columns % kVec == 0 && isAligned16(n.x) && isAligned16(n.w) &&
                      isAligned16(n.y) && (!n.b || isAligned16(n.b));
  if (!isWide) return launch<T, 1, kThreads, kCentered>(queue, n, err);
  const int64_t vectors = n.columns / kVec;
  if (vectors <= kWarp * kKept) return launch<T, kVec, kWarp, kCentered>(queue, n, err);
  if (vectors <= kThreads * kKept) return launch<T, kVec, kThreads, kCentered>(queue, n, err);
  if (vectors <= 2 * kThreads * kKept) {
    return launch<T, kVec, 2 * kThreads, kCentered>(queue, n, err);
  }
  return launch<T, kVec, 1024, kCentered>(queue, n, err);
}

// x, w, b, y of either op. An empty last dimension leaves no rows to count.
template <class T>
Norm<T> describe(const aq_view* in, const aq_view* out, double eps) {
  Norm<T> n = {};
  n.x = static_cast<const T*>(in[0].data);
  n.w = static_cast<const T*>(in[1].data);
  n.b = static_cast<const T*>(in[2].data);
  n.y = static_cast<T*>(out[0].data);
  n.columns = in[0].rank ? in[0].dim[in[0].rank - 1] : 1;
  n.rows = n.columns ? numel(in[0]) / n.columns : 0;
  n.eps = static_cast<T>(eps);
  return n;
}

}  // namespace

int32_t rms_norm(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double eps = static_cast<const aq_rms_norm_params*>(params)->eps;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    Norm<T> n = describe<T>(in, out, eps);
    n.rstd = static_cast<T*>(out[1].data);
    return run<T, false>(queue, n, err);
  });
}

int32_t layer_norm(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const double eps = static_cast<const aq_layer_norm_params*>(params)->eps;
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    Norm<T> n = describe<T>(in, out, eps);
    n.mean = static_cast<T*>(out[1].data);
    n.rstd = static_cast<T*>(out[2].data);
    return run<T, true>(queue, n, err);
  });
}

}  // namespace aq::cuda
