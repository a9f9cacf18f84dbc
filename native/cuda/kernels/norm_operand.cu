// rms_norm_operand and layer_norm_operand: a norm with the quantizer of its result in the same pass.
//
// Math      the norm's y = (x - mean) rstd w + b, where rms_norm has no mean, and quant_operand's scale,
//           zero and code - zero of its rows.
// Layout    norm.cu's: a row belongs to a warp or a block, and its y stays in registers until the row's
//           extremes are known, so that only codes are written. Rows of up to 16384 numbers; longer
//           ones, f64 and what 16-byte accesses do not fit go through scratch, op by op.
// Cost      reads 4 B and writes 1 B a number, where the two ops move 13 B.
// Roofline  2048 x 4096: 42 MB -> 12.5 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, CUDA 13.0, from Node.js: 24.5 us, one op after the other 41.5; layer_norm 26.1, 41.0.
// Versions  v1 (this). No quicker: five blocks on a multiprocessor. Slower: rows brought to L2 ahead.
// Numerics  the sums are taken as in norm.cu, so that y, and with it all, has the same bits.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_rows.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

struct NormCodes {
  const float* x;
  const float* w;
  const float* b;  // may be null
  float* mean;     // layer_norm only
  float* rstd;
  int64_t rows;
  float eps;
  CodeRows to;
};

template <int kLanes, bool kCentered>
__global__ __launch_bounds__(kLanes > kNormThreads ? kLanes : kNormThreads) void normCodes(
    const __grid_constant__ NormCodes n) {
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

template <int kLanes>
int32_t launch(aq_queue* queue, const NormCodes& n, aq_error* err) {
  constexpr int kBlock = kLanes > kNormThreads ? kLanes : kNormThreads;
  constexpr int kRowsPerBlock = kBlock / kLanes;
  const unsigned blocks = unsigned((n.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  const auto kernel = n.mean ? normCodes<kLanes, true> : normCodes<kLanes, false>;
  kernel<<<blocks, kBlock, 0, queue->stream>>>(n);
  LAUNCH_CHECK("a norm with its quantizer");
  return AQ_OK;
}

// Lanes that norm.cu gives a row are what its sums depend on.
int32_t inOnePass(aq_queue* queue, const NormCodes& n, aq_error* err) {
  const int64_t vectors = n.to.columns / kRowVector;
  if (vectors <= kWarp * kNormKept) return launch<kWarp>(queue, n, err);
  if (vectors <= kNormThreads * kNormKept) return launch<kNormThreads>(queue, n, err);
  if (vectors <= 2 * kNormThreads * kNormKept) return launch<2 * kNormThreads>(queue, n, err);
  return launch<1024>(queue, n, err);
}

// An op: the norm alone, and how many numbers it stores of every row (rstd, or mean and rstd).
struct Op {
  const char* name;
  aq_kernel norm;
  int saved;
};

template <class T, class Params>
int32_t throughScratch(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out,
                       const Params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, op.name, err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>());
  const aq_rms_norm_params eps = {o.eps};  // layer_norm's have the same form
  static_assert(sizeof(aq_layer_norm_params) == sizeof(aq_rms_norm_params));
  const aq_view normed[] = {y, out[0], out[1]};
  if (const int32_t code = op.norm(queue, in, 3, normed, 1 + op.saved, &eps, err)) return code;
  return quantizeRows(queue, y, in[3], o.bits, o.floor, out + op.saved, err);
}

template <class Params>
int32_t run(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out, const Params& o,
            aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  if (numel(in[0]) == 0) return AQ_OK;
  const int64_t columns = lastDim(in[0]), rows = numel(in[0]) / columns;
  const aq_view* const codes = out + op.saved;  // scale, zero, y
  const bool isWide = columns % kRowVector == 0 && columns <= 1024 * kNormKept * kRowVector &&
                      isAligned16(in[0].data) && isAligned16(in[1].data) &&
                      isAligned16(in[2].data) && isAligned16(codes[2].data);
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    if constexpr (sizeof(T) == 4) {
      if (isWide) {
        const auto output = [&](int i) { return static_cast<T*>(out[i].data); };
        NormCodes n = {};
        n.x = static_cast<const T*>(in[0].data);
        n.w = static_cast<const T*>(in[1].data);
        n.b = static_cast<const T*>(in[2].data);
        n.mean = op.saved > 1 ? output(0) : nullptr;
        n.rstd = output(op.saved - 1);
        n.rows = rows;
        n.eps = T(o.eps);
        n.to = {{static_cast<const T*>(in[3].data), rows, true},
                GridRule<T>::of(RowRule{o.floor, o.bits}, false),
                output(op.saved),
                output(op.saved + 1),
                static_cast<int8_t*>(codes[2].data),
                columns};
        return inOnePass(queue, n, err);
      }
    }
    return throughScratch<T>(queue, op, in, out, o, err);
  });
}

}  // namespace

int32_t rms_norm_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  return run(queue, {"rms_norm_operand", rms_norm, 1}, in, out,
             *static_cast<const aq_rms_norm_operand_params*>(params), err);
}

int32_t layer_norm_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  return run(queue, {"layer_norm_operand", layer_norm, 2}, in, out,
             *static_cast<const aq_layer_norm_operand_params*>(params), err);
}

}  // namespace aq::cuda
