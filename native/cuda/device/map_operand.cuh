// map_operand.cuh: an elementwise op with the quantizer of its result in the same pass.
//
// A block has a row, whose results stay in registers until what they are quantized by is known: to
// CodeRows (row_operand.cuh) or FloatRows (fp4_row.cuh). Rows of up to 32768 numbers; what does not fit is the caller's.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

template <int kIn, class To>
struct MapRows {
  const float* in[kIn];
  int64_t rows;
  To to;
};

template <class F, int kIn, class To, int kThreads, int kBatch>
__global__ __launch_bounds__(kThreads, 1024 / kThreads) void mapToRows(
    const __grid_constant__ MapRows<kIn, To> a) {
  const int64_t row = blockIdx.x, begin = row * a.to.columns;
  const int vectors = int(a.to.columns / kRowVector), lane = int(threadIdx.x);
  RowVector x[kIn][kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kThreads;
#pragma unroll
    for (int input = 0; input < kIn; input++) x[input][i] = {};
    if (k >= vectors) continue;
#pragma unroll
    for (int input = 0; input < kIn; input++)
      x[input][i] = loadVec<float, kRowVector>(a.in[input] + begin, k);
  }
  const F map;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      float own[kIn];
#pragma unroll
      for (int input = 0; input < kIn; input++) own[input] = x[input][i].lane[e];
      float result[1];
      map(own, result);
      x[0][i].lane[e] = result[0];
    }
  }
  writeRow<kThreads>(a.to, x[0], row, lane);
}

template <class F, int kThreads, int kBatch, int kIn, class To>
int32_t launchMap(aq_queue* queue, const char* what, const MapRows<kIn, To>& a, aq_error* err) {
  mapToRows<F, kIn, To, kThreads, kBatch><<<unsigned(a.rows), kThreads, 0, queue->stream>>>(a);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? int32_t(AQ_OK) : failCuda(err, status, what);
}

// Whether the rows of the inputs, and what they become, are as mapOperand wants them.
inline bool isMapOperand(const aq_view* in, int inputs, const aq_view& y) {
  constexpr int64_t kMostColumns = 1024 * 8 * kRowVector;
  const int64_t columns = lastDim(in[0]);
  return in[0].dtype == AQ_F32 && columns % kRowVector == 0 && columns <= kMostColumns &&
         std::all_of(in, in + inputs, [](const aq_view& x) { return isAligned16(x.data); }) &&
         isAligned16(y.data);
}

// F of the rows of kIn inputs.
template <class F, int kIn, class To>
int32_t mapOperand(aq_queue* queue, const char* what, const aq_view* in, const To& to,
                   aq_error* err) {
  MapRows<kIn, To> a = {};
  for (int i = 0; i < kIn; i++) a.in[i] = static_cast<const float*>(in[i].data);
  a.rows = numel(in[0]) / to.columns;
  a.to = to;
  const int64_t vectors = to.columns / kRowVector;
  if (vectors <= 128 * 4) return launchMap<F, 128, 4>(queue, what, a, err);
  if (vectors <= 256 * 6) return launchMap<F, 256, 6>(queue, what, a, err);
  if (vectors <= 512 * 6) return launchMap<F, 512, 6>(queue, what, a, err);
  if (vectors <= 512 * 7) return launchMap<F, 512, 7>(queue, what, a, err);
  return launchMap<F, 1024, 8>(queue, what, a, err);
}

// The same to codes: the logit behind the inputs; out: scale, zero and codes.
template <class F, int kIn, class Params>
int32_t mapOperandCodes(aq_queue* queue, const char* what, const aq_view* in, const aq_view* out,
                        const Params& o, aq_error* err) {
  const int64_t columns = lastDim(in[0]), rows = numel(in[0]) / columns;
  return mapOperand<F, kIn>(queue, what, in,
                            codeRows(in[kIn], out, {o.floor, o.bits}, rows, columns), err);
}

}  // namespace aq::cuda
