// attention_go.cuh: the gradient of attention's result where a quantizer of whole rows stands behind it,
// made ready for attention's tiles in the pass that takes it through the quantizer.
//
// A block has the row of a token, all heads: o stays in shared memory and g in registers, fake_quant_grad
// makes g the gradient of o, and go is packed as packHeads would pack it, with the sums of go o. Heads of
// 32, 64 or 128 channels.
// Cost: reads 8 and writes 2 bytes per number, where fake_quant_grad moves 12 and packHeads 10.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "native/cuda/device/async_copy.cuh"
#include "native/cuda/device/attention_shape.cuh"
#include "native/cuda/device/logit_sum.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/row_operand_grad.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace {

constexpr int kGoThreads = 256;     // of a row
constexpr int kMostGoVectors = 10;  // of a thread

struct GoRows {
  const float *o, *g;
  __nv_bfloat16* y;  // packed
  const float* lse;
  float *lse2, *delta;
  AttentionShape shape;
  RowQuantizer quantizer;
};

// kBlocks: on a multiprocessor, which the registers are to leave room for.
template <int kD, int kBatch, int kBlocks>
__global__ __launch_bounds__(kGoThreads, kBlocks) void packGo(const __grid_constant__ GoRows a) {
  constexpr int kLanes = kD / kRowVector;  // of a head
  extern __shared__ RowVector held[];      // o
  const AttentionShape& shape = a.shape;
  const int lane = int(threadIdx.x), vectors = shape.heads * kLanes;
  const int64_t b = blockIdx.x / unsigned(shape.padded);
  const int t = int(blockIdx.x % unsigned(shape.padded));
  const int64_t row = b * shape.tokens + t, begin = row * vectors;
  const bool isReal = t < shape.tokens;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kGoThreads;
    if (lane % 8 != 0 || !isReal || k >= vectors) break;
    prefetchL2(a.o + (begin + k) * kRowVector);
  }
  waitForKernelBefore();
  RowVector g[kBatch] = {};
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kGoThreads;
    if (!isReal || k >= vectors) continue;
    copyAsync(held + k, a.o + (begin + k) * kRowVector);
    g[i] = loadVec<float, kRowVector>(a.g, begin + k);
  }
  // Not before everything in front is over: what comes next writes where kernels in front of this one had
  // their scratch, and does not wait.
  letNextKernelStart();
  waitForCopies();  // a thread reads what it has copied itself
  const auto o = [&](int i) { return held[lane + i * kGoThreads]; };
  const ClipFactors<float> factors(a.quantizer.clip, 0);
  if (isReal) a.quantizer.template pass<kGoThreads>(factors, row, lane, vectors, g, o);

#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kGoThreads, head = k / kLanes, channel = k % kLanes * kRowVector;
    float sum = 0;
    if (isReal && k < vectors) {
      const RowVector own = o(i);
#pragma unroll
      for (int e = 0; e < kRowVector; e++) sum += g[i].lane[e] * own.lane[e];
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (k >= vectors) continue;
    const int64_t index = b * shape.heads + head;
    if (channel == 0) {
      const int64_t at = index * shape.padded + t;
      a.delta[at] = sum;
      a.lse2[at] = isReal ? a.lse[index * shape.tokens + t] * float(kLog2E) : 0.0f;
    }
    const int panel = channel / kPanelColumns<kD>, column = channel % kPanelColumns<kD>;
    __nv_bfloat16* const y = a.y + (index * kD + int64_t(panel) * kPanelColumns<kD>)*shape.padded +
                             chunkOffset<kD>(t, column / 8) / 2 + column % 8;
    storeVec(y, 0, narrow<__nv_bfloat16>(g[i]));
  }
}

template <int kBatch, int kBlocks>
int32_t launchGo(aq_queue* queue, const GoRows& a, aq_error* err) {
  const int bytes = a.shape.heads * a.shape.size * int(sizeof(float));
  const EarlyLaunch launch(queue, dim3(unsigned(a.shape.batch * a.shape.padded)), kGoThreads,
                           bytes);
  const auto kernel = a.shape.size == 128  ? packGo<128, kBatch, kBlocks>
                      : a.shape.size == 64 ? packGo<64, kBatch, kBlocks>
                                           : packGo<32, kBatch, kBlocks>;
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, a));
  return launchLogitSum(queue, a.quantizer, err);
}

bool canPackGo(const AttentionShape& shape, const aq_view& o, const aq_view& g) {
  const int64_t vectors = int64_t(shape.heads) * shape.size / kRowVector;
  return (shape.size == 32 || shape.size == 64 || shape.size == 128) &&
         vectors <= kMostGoVectors * kGoThreads && isAligned16(o.data) && isAligned16(g.data) &&
         shape.batch * shape.padded <= INT32_MAX;
}

int32_t packGoRows(aq_queue* queue, const GoRows& a, aq_error* err) {
  const int64_t vectors = int64_t(a.shape.heads) * a.shape.size / kRowVector;
  if (vectors <= 4 * kGoThreads) return launchGo<4, 5>(queue, a, err);
  return launchGo<kMostGoVectors, 2>(queue, a, err);
}

}  // namespace

}  // namespace aq::cuda
