// map_operand_grad.cuh: from what was quantized, through the quantizer and the elementwise op in front of
// it, in one pass.
//
// A block of 256 threads has a row. g stays in registers and the inputs in shared memory, each thread's own
// vectors, so that all are read once; the op's result is made again whenever it is needed. Rows as far as
// shared memory takes their inputs, of up to 16384 numbers, or 14336 of two inputs.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/async_copy.cuh"
#include "native/cuda/device/logit_sum.cuh"
#include "native/cuda/device/row_operand_grad.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

inline constexpr int kMapGradThreads = 256;  // of a row
// Vectors of a row in a thread, as many as registers take beside what the op needs.
template <int kIn>
inline constexpr int kMostMapGradBatch = kIn == 1 ? 16 : 14;

template <class G, int kIn, class Quantizer>
struct MapRowGrad {
  const float* in[kIn];
  const float* g;
  G* out[kIn];
  int64_t rows;
  int vectors;  // of a row
  Quantizer quantizer;
};

// F: the op, from its inputs; Gradient: from the inputs and the gradient of F to theirs.
template <class F, class Gradient, class G, int kIn, class Quantizer, int kBatch>
__global__ __launch_bounds__(kMapGradThreads, 2) void mapGradRow(
    const __grid_constant__ MapRowGrad<G, kIn, Quantizer> a) {
  constexpr int kThreads = kMapGradThreads;
  extern __shared__ RowVector held[];  // input by input
  const int lane = int(threadIdx.x);
  const int64_t row = blockIdx.x, begin = row * a.vectors;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    if (k >= a.vectors) break;
#pragma unroll
    for (int input = 0; input < kIn; input++)
      copyAsync(held + input * a.vectors + k, a.in[input] + (begin + k) * kRowVector);
  }
  RowVector g[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    if (k >= a.vectors) break;
    g[i] = loadVec<float, kRowVector>(a.g, begin + k);
  }
  waitForCopies();  // a thread reads what it has copied itself

  const F map;
  const auto state = a.quantizer.start();
  a.quantizer.template pass<kThreads>(state, row, lane, a.vectors, g, [&](int i) {
    RowVector x[kIn], y;
#pragma unroll
    for (int input = 0; input < kIn; input++)
      x[input] = held[input * a.vectors + lane + i * kThreads];
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      float own[kIn], result[1];
#pragma unroll
      for (int input = 0; input < kIn; input++) own[input] = x[input].lane[e];
      map(own, result);
      y.lane[e] = result[0];
    }
    return y;
  });

  const Gradient gradient;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
    if (k >= a.vectors) break;
    RowVector x[kIn], result[kIn];
#pragma unroll
    for (int input = 0; input < kIn; input++) x[input] = held[input * a.vectors + k];
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      float own[kIn + 1], all[kIn];
#pragma unroll
      for (int input = 0; input < kIn; input++) own[input] = x[input].lane[e];
      own[kIn] = g[i].lane[e];
      gradient(own, all);
#pragma unroll
      for (int input = 0; input < kIn; input++) result[input].lane[e] = all[input];
    }
#pragma unroll
    for (int input = 0; input < kIn; input++) {
      if constexpr (kIsShort<G>) {
        storeVec(a.out[input], begin + k, narrow<G>(result[input]));
      } else {
        storeVec(a.out[input], begin + k, result[input]);
      }
    }
  }
}

template <class F, class Gradient, int kBatch, class G, int kIn, class Quantizer>
int32_t launchMapGrad(aq_queue* queue, const char* what, const MapRowGrad<G, kIn, Quantizer>& a,
                      aq_error* err) {
  const auto kernel = mapGradRow<F, Gradient, G, kIn, Quantizer, kBatch>;
  const int bytes = kIn * a.vectors * int(sizeof(RowVector));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<unsigned(a.rows), kMapGradThreads, bytes, queue->stream>>>(a);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? int32_t(AQ_OK) : failCuda(err, status, what);
}

// Whether rows, inputs, gradients and outputs are as mapOperandGrad wants them.
template <int kIn>
bool isMapOperandGrad(const aq_queue* queue, const aq_view* in, const aq_view& g,
                      const aq_view* out) {
  const int64_t columns = lastDim(in[0]);
  if (in[0].dtype != AQ_F32 || columns % kRowVector != 0 || columns <= 512 ||
      columns > kMostMapGradBatch<kIn> * kMapGradThreads * kRowVector || numel(in[0]) == 0)
    return false;
  int most = 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device) !=
          cudaSuccess ||
      kIn * columns * int64_t(sizeof(float)) > most - 1024)
    return false;
  const auto isWide = [](const aq_view& x) { return isAligned16(x.data); };
  return std::all_of(in, in + kIn, isWide) && std::all_of(out, out + kIn, isWide) && isWide(g);
}

// in: the kIn inputs; g: the gradient of what was quantized; out: gradients of the inputs in G.
template <class F, class Gradient, class G, int kIn, class Quantizer>
int32_t mapOperandGrad(aq_queue* queue, const char* what, const aq_view* in, const aq_view& g,
                       const aq_view* out, const Quantizer& quantizer, aq_error* err) {
  MapRowGrad<G, kIn, Quantizer> a = {};
  for (int i = 0; i < kIn; i++) {
    a.in[i] = static_cast<const float*>(in[i].data);
    a.out[i] = static_cast<G*>(out[i].data);
  }
  a.g = static_cast<const float*>(g.data);
  a.rows = numel(in[0]) / lastDim(in[0]);
  a.vectors = int(lastDim(in[0]) / kRowVector);
  a.quantizer = quantizer;
  if (a.vectors <= 4 * kMapGradThreads) return launchMapGrad<F, Gradient, 4>(queue, what, a, err);
  if (a.vectors <= 11 * kMapGradThreads) return launchMapGrad<F, Gradient, 11>(queue, what, a, err);
  return launchMapGrad<F, Gradient, kMostMapGradBatch<kIn>>(queue, what, a, err);
}

// The same of codes. in: the kIn inputs, the logit, scale, zero and the gradient; the logit's gradient
// behind those of the inputs.
template <class F, class Gradient, class G, int kIn, class Params>
int32_t mapOperandCodesGrad(aq_queue* queue, const char* what, const aq_view* in,
                            const aq_view* out, const Params& o, aq_error* err) {
  const int64_t rows = numel(in[0]) / lastDim(in[0]);
  const aq_view& clip = in[kIn];
  Scratch scratch(queue);
  if (clip.data) {
    const uint64_t bytes = logitSumBytes(clip, rows);
    if (const int32_t code = scratch.allocate(bytes, what, err)) return code;
  }
  const RowQuantizer quantizer = rowQuantizer(queue, clip, in + kIn + 1, {o.floor, o.bits}, rows,
                                              scratch.at<double>(), out[kIn]);
  const int32_t code =
      mapOperandGrad<F, Gradient, G, kIn>(queue, what, in, in[kIn + 3], out, quantizer, err);
  return code != AQ_OK ? code : launchLogitSum(queue, quantizer, err);
}

}  // namespace aq::cuda
