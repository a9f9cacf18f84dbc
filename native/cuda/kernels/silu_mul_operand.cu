// silu_mul_operand: silu_mul with the quantizer of its result in the same pass.
//
// Math      y = gate sigmoid(gate) up, and quant_operand's scale, zero and code - zero of its rows.
// Layout    a block a row, whose y stays in registers until the row's extremes are known, so that only
//           codes are written. Rows of up to 32768 numbers; longer ones, f64 and what 16-byte accesses
//           do not fit go through scratch, op by op.
// Cost      reads 8 B and writes 1 B a number, where the two ops move 17 B.
// Roofline  2048 x 11008: 203 MB -> 61 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, CUDA 13.0, from Node.js: 75.5 us, one op after the other 131.
// Versions  v1 (this).
// Numerics  y has the bits of silu_mul, and so has all that follows from it.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

struct GateCodes {
  const float* gate;
  const float* up;
  int64_t rows;
  CodeRows to;
};

template <int kThreads, int kBatch>
__global__ __launch_bounds__(kThreads,
                             1024 / kThreads) void gateCodes(const __grid_constant__ GateCodes a) {
  const int64_t row = blockIdx.x, begin = row * a.to.columns;
  const int vectors = int(a.to.columns / kRowVector), lane = int(threadIdx.x);
  RowVector y[kBatch], up[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    y[i] = up[i] = {};
    if (k >= vectors) continue;
    y[i] = loadVec<float, kRowVector>(a.gate + begin, k);
    up[i] = loadVec<float, kRowVector>(a.up + begin, k);
  }
  const SiluMul<float> silu;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      const float x[2] = {y[i].lane[e], up[i].lane[e]};
      float result[1];
      silu(x, result);
      y[i].lane[e] = result[0];
    }
  }
  writeRow<kThreads>(a.to, y, row, lane);
}

template <int kThreads, int kBatch>
int32_t launch(aq_queue* queue, const GateCodes& a, aq_error* err) {
  gateCodes<kThreads, kBatch><<<unsigned(a.rows), kThreads, 0, queue->stream>>>(a);
  LAUNCH_CHECK("silu_mul_operand");
  return AQ_OK;
}

constexpr int64_t kMostColumns = 1024 * 8 * kRowVector;

int32_t inOnePass(aq_queue* queue, const GateCodes& a, aq_error* err) {
  const int64_t vectors = a.to.columns / kRowVector;
  if (vectors <= 128 * 4) return launch<128, 4>(queue, a, err);
  if (vectors <= 256 * 6) return launch<256, 6>(queue, a, err);
  if (vectors <= 512 * 6) return launch<512, 6>(queue, a, err);
  if (vectors <= 512 * 7) return launch<512, 7>(queue, a, err);
  return launch<1024, 8>(queue, a, err);
}

template <class T>
int32_t throughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const aq_silu_mul_operand_params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, "silu_mul_operand", err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>());
  if (const int32_t code = silu_mul(queue, in, 2, &y, 1, nullptr, err)) return code;
  return quantizeRows(queue, y, in[2], o.bits, o.floor, out, err);
}

}  // namespace

int32_t silu_mul_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_silu_mul_operand_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  const int64_t columns = lastDim(in[0]), rows = numel(in[0]) / columns;
  const bool isWide = columns % kRowVector == 0 && columns <= kMostColumns &&
                      isAligned16(in[0].data) && isAligned16(in[1].data) &&
                      isAligned16(out[2].data);
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    if constexpr (sizeof(T) == 4) {
      if (isWide) {
        const GateCodes a = {static_cast<const T*>(in[0].data),
                             static_cast<const T*>(in[1].data),
                             rows,
                             {{static_cast<const T*>(in[2].data), rows, true},
                              GridRule<T>::of(RowRule{o.floor, o.bits}, false),
                              static_cast<T*>(out[0].data),
                              static_cast<T*>(out[1].data),
                              static_cast<int8_t*>(out[2].data),
                              columns}};
        return inOnePass(queue, a, err);
      }
    }
    return throughScratch<T>(queue, in, out, o, err);
  });
}

}  // namespace aq::cuda
