// silu_mul_operand_grad: from what was quantized, through the quantizer and the gate, in one pass.
//
// Math      fake_quant_grad of y = gate sigmoid(gate) up, which is made again, and silu_mul_grad of that.
// Layout    a block of 256 threads a row. g stays in registers and gate and up in shared memory, each
//           thread's own vectors, so that all are read once; y is made again whenever it is needed. Rows
//           of up to 14336 numbers, as far as shared memory takes them; others, f64 and what 16-byte
//           accesses do not fit go through scratch, op by op.
// Cost      reads 12 B and writes 4 B (bf16) or 8 B a number, where the two ops move 28 B or 32 B and y
//           has to be there.
// Roofline  2048 x 11008, bf16: 361 MB -> 108 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100
//           80GB HBM3, CUDA 13.0, from Node.js: 152 to 158 us, one op after the other 223.
// Versions  v1 (this). Slower: the row that comes next in a block's place brought to L2 ahead (211 us).
// Numerics  codes and what passes are fake_quant_grad's; sums are taken in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/async_copy.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/row_operand_grad.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;  // of a row
constexpr int kLogitThreads = 512;

template <class G>
struct GateGrad {
  const float* gate;
  const float* up;
  const float* g;
  G* gateGrad;
  G* upGrad;
  int64_t rows;
  int vectors;  // of a row
  RowQuantizer quantizer;
};

template <class G, int kBatch>
__global__ __launch_bounds__(kThreads, 2) void gateGradRow(const __grid_constant__ GateGrad<G> a) {
  extern __shared__ RowVector held[];  // gate, then up
  RowVector* const gate = held;
  RowVector* const up = held + a.vectors;
  const int lane = int(threadIdx.x);
  const int64_t row = blockIdx.x, begin = row * a.vectors;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    if (k >= a.vectors) break;
    copyAsync(gate + k, a.gate + (begin + k) * kRowVector);
    copyAsync(up + k, a.up + (begin + k) * kRowVector);
  }
  RowVector g[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    if (k >= a.vectors) break;
    g[i] = loadVec<float, kRowVector>(a.g, begin + k);
  }
  waitForCopies();  // a thread reads what it has copied itself

  const SiluMul<float> silu;
  const ClipFactors<float> factors(a.quantizer.clip, 0);
  a.quantizer.template pass<kThreads>(factors, row, lane, a.vectors, g, [&](int i) {
    const RowVector x = gate[lane + i * kThreads], factor = up[lane + i * kThreads];
    RowVector y;
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      const float both[2] = {x.lane[e], factor.lane[e]};
      float result[1];
      silu(both, result);
      y.lane[e] = result[0];
    }
    return y;
  });

  const SiluMulGrad<float> gradient;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    if (k >= a.vectors) break;
    const RowVector x = gate[k], factor = up[k];
    RowVector own, other;
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      const float all[3] = {x.lane[e], factor.lane[e], g[i].lane[e]};
      float both[2];
      gradient(all, both);
      own.lane[e] = both[0];
      other.lane[e] = both[1];
    }
    if constexpr (kIsShort<G>) {
      storeVec(a.gateGrad, begin + k, narrow<G>(own));
      storeVec(a.upGrad, begin + k, narrow<G>(other));
    } else {
      storeVec(a.gateGrad, begin + k, own);
      storeVec(a.upGrad, begin + k, other);
    }
  }
}

// The sum of many blocks: it would hold up each of them at its end.
__global__ __launch_bounds__(kLogitThreads) void finishLogit(
    const __grid_constant__ RowQuantizer quantizer) {
  waitForKernelBefore();
  quantizer.finish<kLogitThreads>();
}

constexpr int kMostBatch = 14;

template <class G, int kBatch>
int32_t launch(aq_queue* queue, const GateGrad<G>& a, aq_error* err) {
  const int bytes = 2 * a.vectors * int(sizeof(RowVector));
  CUDA_CHECK(cudaFuncSetAttribute(gateGradRow<G, kBatch>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  gateGradRow<G, kBatch><<<unsigned(a.rows), kThreads, bytes, queue->stream>>>(a);
  LAUNCH_CHECK("silu_mul_operand_grad");
  if (!a.quantizer.partials) return AQ_OK;
  const EarlyLaunch last(queue, dim3(1), kLogitThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&last.config, finishLogit, a.quantizer));
  return AQ_OK;
}

template <class G>
int32_t inOnePass(aq_queue* queue, const aq_view* in, const aq_view* out,
                  const aq_silu_mul_operand_grad_params& o, aq_error* err) {
  const auto input = [&](int i) { return static_cast<const float*>(in[i].data); };
  const int64_t columns = lastDim(in[0]), rows = numel(in[0]) / columns;
  float* const clipGrad = input(2) ? static_cast<float*>(out[2].data) : nullptr;
  Scratch scratch(queue);
  if (clipGrad) {
    const uint64_t bytes = uint64_t(rows) * sizeof(double);
    if (const int32_t code = scratch.allocate(bytes, "silu_mul_operand_grad", err)) return code;
  }
  const GateGrad<G> a = {input(0),
                         input(1),
                         input(5),
                         static_cast<G*>(out[0].data),
                         static_cast<G*>(out[1].data),
                         rows,
                         int(columns / kRowVector),
                         {{input(2), rows, true},
                          GridRule<float>::of(RowRule{o.floor, o.bits}, false),
                          input(3),
                          input(4),
                          clipGrad ? scratch.at<double>() : nullptr,
                          clipGrad,
                          queue->ticket,
                          rows}};
  if (a.vectors <= 4 * kThreads) return launch<G, 4>(queue, a, err);
  if (a.vectors <= 11 * kThreads) return launch<G, 11>(queue, a, err);
  return launch<G, kMostBatch>(queue, a, err);
}

template <class T>
int32_t throughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const aq_silu_mul_operand_grad_params& o, aq_error* err) {
  const uint64_t bytes = scratchBytes(uint64_t(numel(in[0])) * sizeof(T));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(2 * bytes, "silu_mul_operand_grad", err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>()), gy = viewOf(in[0], scratch.at<T>(bytes));
  if (const int32_t code = silu_mul(queue, in, 2, &y, 1, nullptr, err)) return code;
  if (const int32_t code =
          quantizeRowsGrad(queue, y, in[2], in + 3, in[5], o.bits, o.floor, gy, out[2], err))
    return code;
  const aq_silu_mul_grad_params gate = {o.bf16, 0};
  const aq_view inputs[] = {in[0], in[1], gy};
  return silu_mul_grad(queue, inputs, 3, out, 2, &gate, err);
}

bool isOnePass(const aq_queue* queue, const aq_view* in, const aq_view* out) {
  const int64_t columns = lastDim(in[0]);
  if (columns % kRowVector != 0 || columns <= 512 || columns > kMostBatch * kThreads * kRowVector ||
      numel(in[0]) == 0)
    return false;
  int most = 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device) !=
          cudaSuccess ||
      2 * columns * int64_t(sizeof(float)) > most - 1024)
    return false;
  return isAligned16(in[0].data) && isAligned16(in[1].data) && isAligned16(in[5].data) &&
         isAligned16(out[0].data) && isAligned16(out[1].data);
}

}  // namespace

int32_t silu_mul_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                              int32_t, const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_silu_mul_operand_grad_params*>(params);
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    if constexpr (sizeof(T) == 4) {
      if (isOnePass(queue, in, out)) {
        return o.bf16 ? inOnePass<__nv_bfloat16>(queue, in, out, o, err)
                      : inOnePass<float>(queue, in, out, o, err);
      }
    }
    return throughScratch<T>(queue, in, out, o, err);
  });
}

}  // namespace aq::cuda
