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

template <class G, int kIn>
struct MapRowGrad {
  const float* in[kIn];
  const float* g;
  G* out[kIn];
  int64_t rows;
  int vectors;  // of a row
  RowQuantizer quantizer;
};

// F: the op, from its inputs; Gradient: from the inputs and the gradient of F to theirs.
template <class F, class Gradient, class G, int kIn, int kBatch>
__global__ __launch_bounds__(kMapGradThreads,
                             2) void mapGradRow(const __grid_constant__ MapRowGrad<G, kIn> a) {
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
  const ClipFactors<float> factors(a.quantizer.clip, 0);
  a.quantizer.template pass<kThreads>(factors, row, lane, a.vectors, g, [&](int i) {
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

template <class F, class Gradient, class G, int kIn, int kBatch>
int32_t launchMapGrad(aq_queue* queue, const char* what, const MapRowGrad<G, kIn>& a,
                      aq_error* err) {
  const auto kernel = mapGradRow<F, Gradient, G, kIn, kBatch>;
  const int bytes = kIn * a.vectors * int(sizeof(RowVector));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<unsigned(a.rows), kMapGradThreads, bytes, queue->stream>>>(a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return failCuda(err, status, what);
  return launchLogitSum(queue, a.quantizer, err);
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

// in: the kIn inputs, the logit, scale, zero and the gradient of what was quantized; out: gradients of the
// inputs in G, and of the logit.
template <class F, class Gradient, class G, int kIn, class Params>
int32_t mapOperandGrad(aq_queue* queue, const char* what, const aq_view* in, const aq_view* out,
                       const Params& o, aq_error* err) {
  const auto input = [&](int i) { return static_cast<const float*>(in[i].data); };
  const int64_t columns = lastDim(in[0]), rows = numel(in[0]) / columns;
  MapRowGrad<G, kIn> a = {};
  for (int i = 0; i < kIn; i++) {
    a.in[i] = input(i);
    a.out[i] = static_cast<G*>(out[i].data);
  }
  a.g = input(kIn + 3);
  a.rows = rows;
  a.vectors = int(columns / kRowVector);
  Scratch scratch(queue);
  const aq_view& clip = in[kIn];
  if (clip.data) {
    const uint64_t bytes = logitSumBytes(clip, rows);
    if (const int32_t code = scratch.allocate(bytes, what, err)) return code;
  }
  a.quantizer = rowQuantizer(queue, clip, in + kIn + 1, {o.floor, o.bits}, rows,
                             scratch.at<double>(), out[kIn]);
  if (a.vectors <= 4 * kMapGradThreads)
    return launchMapGrad<F, Gradient, G, kIn, 4>(queue, what, a, err);
  if (a.vectors <= 11 * kMapGradThreads)
    return launchMapGrad<F, Gradient, G, kIn, 11>(queue, what, a, err);
  return launchMapGrad<F, Gradient, G, kIn, kMostMapGradBatch<kIn>>(queue, what, a, err);
}

}  // namespace aq::cuda
