// norm_operand_grad.cuh: from what was quantized, through the quantizer and the norm in front of it, in one
// pass. The quantizer is RowQuantizer (row_operand_grad.cuh) or FloatQuantizer (fp4_row.cuh).
//
// norm_grad.cuh's layout, with the quantizer's gradient taken of a row's g while it is in registers. Rows of
// up to 8192 numbers; the rest op by op, through scratch.
#pragma once
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/norm_grad.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

// What is done to a row's g before the norm sees it.
template <int kLanes, bool kCentered, bool kBias, class Quantizer>
struct ThroughQuantizer {
  Quantizer quantizer;
  const float* w;
  const float* b;
  const float* mean;
  const float* rstd;
  int vectors;

  static constexpr bool kHasBarrier = Quantizer::kHasBarrier;
  using State = typename Quantizer::State;
  __device__ State start() const { return quantizer.start(); }
  __device__ void finish() const { quantizer.template finishLast<kNormGradBlock<kLanes>>(); }
  __device__ void operator()(const State& state, int64_t row, int lane,
                             const RowVector (&x)[kNormKept], RowVector (&g)[kNormKept]) const {
    const float scale = rstd[row], middle = kCentered ? mean[row] : 0.0f;
    quantizer.template pass<kLanes>(state, row, lane, vectors, g, [&](int i) {
      const RowVector gain = loadVec<float, kRowVector>(w, lane + i * kLanes);
      RowVector y = {};
      if (kBias) y = loadVec<float, kRowVector>(b, lane + i * kLanes);
#pragma unroll
      for (int e = 0; e < kRowVector; e++)
        y.lane[e] = normed(x[i].lane[e], middle, scale, gain.lane[e], y.lane[e]);
      return y;
    });
  }
};

template <class Quantizer>
struct NormOperandGrad {
  const char* op;
  NormGrad<float> norm;
  Quantizer quantizer;
  const float* b;  // layer_norm has one always
  float* gw;
  float* gb;
};

template <int kLanes, bool kCentered, bool kBias, class Quantizer>
int32_t launchNormGrad(aq_queue* queue, const NormOperandGrad<Quantizer>& call, int64_t parts,
                       aq_error* err) {
  const NormGrad<float>& n = call.norm;
  using Before = ThroughQuantizer<kLanes, kCentered, kBias, Quantizer>;
  const Before before = {call.quantizer, n.w, call.b, n.mean, n.rstd, int(n.columns / kRowVector)};
  const auto kernel = normGradPart<float, kLanes, kCentered, kBias, Before>;
  constexpr int kBytes = kNormStages<kLanes>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<unsigned(parts), kNormGradBlock<kLanes>, kBytes, queue->stream>>>(n, before);
  LAUNCH_CHECK("the gradient of a norm with its quantizer");
  constexpr int kRows = kBias ? 2 : 1;
  ColumnSums<float, kRows> sums = {call.gw};
  if constexpr (kBias) sums.y[1] = call.gb;
  sumColumnParts<float, kRows>
      <<<dim3(columnBlocks(n.columns), kRows), kColumnThreads, 0, queue->stream>>>(n.parts, parts,
                                                                                   n.columns, sums);
  LAUNCH_CHECK("the gradient of a norm with its quantizer (sums)");
  return AQ_OK;
}

template <int kLanes, class Quantizer>
int32_t launchNormGradFor(aq_queue* queue, const NormOperandGrad<Quantizer>& call, int64_t parts,
                          aq_error* err) {
  if (call.norm.mean) return launchNormGrad<kLanes, true, true>(queue, call, parts, err);
  return call.b ? launchNormGrad<kLanes, false, true>(queue, call, parts, err)
                : launchNormGrad<kLanes, false, false>(queue, call, parts, err);
}

template <class Quantizer>
int32_t normGradInOnePass(aq_queue* queue, NormOperandGrad<Quantizer> call, aq_error* err) {
  NormGrad<float>& n = call.norm;
  const int64_t perLane = kNormKept * kRowVector;
  const bool isShort = n.columns <= kWarp * perLane;
  const int64_t parts = cutRows(n, isShort ? kNormThreads / kWarp : 1);
  n.stride = call.b ? 2 * n.columns : n.columns;
  Scratch scratch(queue);
  const uint64_t sums = scratchBytes(uint64_t(parts) * uint64_t(n.stride) * sizeof(float));
  if (const int32_t code = scratch.allocate(sums + call.quantizer.partialBytes(), call.op, err))
    return code;
  n.parts = scratch.at<float>();
  call.quantizer.usePartials(scratch.at<double>(sums));
  if (isShort) return launchNormGradFor<kWarp>(queue, call, parts, err);
  if (n.columns <= kNormThreads * perLane)
    return launchNormGradFor<kNormThreads>(queue, call, parts, err);
  return launchNormGradFor<2 * kNormThreads>(queue, call, parts, err);
}

// Whether rows, and the gradients of what they became, are as normGradInOnePass wants them.
inline bool isNormGradRows(const aq_queue* queue, const aq_view* in, const aq_view& g,
                           const aq_view* out) {
  constexpr int64_t kPerBlock = kNormThreads * kNormKept * kRowVector;
  const int64_t columns = lastDim(in[0]);
  if (in[0].dtype != AQ_F32 || columns % kRowVector != 0 || columns > 2 * kPerBlock ||
      numel(in[0]) == 0)
    return false;
  if (columns > kPerBlock && !hasNormStages<2 * kNormThreads>(queue)) return false;
  return isAligned16(in[0].data) && isAligned16(in[1].data) && isAligned16(in[2].data) &&
         isAligned16(g.data) && isAligned16(out[0].data);
}

// All of NormOperandGrad but the quantizer. in: x, w, b, an input of the quantizer's, and what the norm stored,
// `saved` of rstd, or mean and rstd; g: the gradient.
template <class Quantizer>
NormOperandGrad<Quantizer> normGradOf(const char* op, const aq_view* in, int saved,
                                      const aq_view& g, bool needGx, const aq_view* out) {
  const auto input = [&](int i) { return static_cast<const float*>(in[i].data); };
  const auto output = [&](int i) { return static_cast<float*>(out[i].data); };
  NormOperandGrad<Quantizer> call = {};
  call.op = op;
  call.norm.x = input(0);
  call.norm.w = input(1);
  call.norm.mean = saved > 1 ? input(4) : nullptr;
  call.norm.rstd = input(3 + saved);
  call.norm.g = static_cast<const float*>(g.data);
  call.norm.gx = needGx ? output(0) : nullptr;
  call.norm.columns = lastDim(in[0]);
  call.norm.rows = numel(in[0]) / call.norm.columns;
  call.b = input(2);
  call.gw = output(1);
  call.gb = call.b ? output(2) : nullptr;
  return call;
}

// ---------------------------------------------------------------- op by op

template <class T>
struct NormAgain {
  const T* x;
  const T* w;
  const T* b;     // may be null
  const T* mean;  // may be null
  const T* rstd;
  T* y;
  int64_t count, columns;
};

template <class T>
__global__ __launch_bounds__(kElementThreads) void normAgain(
    const __grid_constant__ NormAgain<T> a) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < a.count; k += stride) {
    const int64_t row = k / a.columns, c = k - row * a.columns;
    const T mean = a.mean ? a.mean[row] : T(0);
    a.y[k] = normed(a.x[k], mean, a.rstd[row], a.w[c], a.b ? a.b[c] : T(0));
  }
}

// The norm's result, made again; in as above.
template <class T>
int32_t makeNormAgain(aq_queue* queue, const aq_view* in, int saved, T* y, aq_error* err) {
  const int64_t count = numel(in[0]);
  if (count == 0) return AQ_OK;
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  const NormAgain<T> rows = {input(0),         input(1), input(2), saved > 1 ? input(4) : nullptr,
                             input(3 + saved), y,        count,    lastDim(in[0])};
  normAgain<T><<<elementBlocks(count), kElementThreads, 0, queue->stream>>>(rows);
  LAUNCH_CHECK("a norm made again");
  return AQ_OK;
}

// From gy, the gradient of the norm's result, to the norm's inputs; spare: a matrix that nobody needs any more.
inline int32_t throughNorm(aq_queue* queue, const aq_view* in, int saved, const aq_view& gy,
                           const aq_view& spare, int32_t needGx, const aq_view* out,
                           aq_error* err) {
  if (saved == 1) {
    const aq_rms_norm_grad_params norm = {needGx, in[2].data ? 1 : 0};
    const aq_view inputs[] = {in[0], in[1], in[4], gy};
    return rms_norm_grad(queue, inputs, 4, out, 3, &norm, err);
  }
  // layer_norm_grad always writes gx.
  const aq_view inputs[] = {in[0], in[1], in[4], in[5], gy};
  const aq_view outputs[] = {needGx ? out[0] : spare, out[1], out[2]};
  return layer_norm_grad(queue, inputs, 5, outputs, 3, nullptr, err);
}

}  // namespace aq::cuda
