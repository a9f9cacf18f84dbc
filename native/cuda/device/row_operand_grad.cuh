// row_operand_grad.cuh: the gradient of the quantizer of rows that are made again where it is wanted: in
// the registers of the threads that have the row's gradient.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/row_grad.cuh"
#include "native/cuda/device/row_operand.cuh"

namespace aq::cuda {

// The sums over the lanes of a row, given to all of them, with one barrier of the block where a row has
// more than a warp. What the threads of the block did before it can be seen behind it.
template <int kLanes>
__device__ inline void rowTotals(GroupSums<float>& sums) {
  const int lane = int(threadIdx.x) % kWarp;
  // Two sums at once: even lanes keep one and give the other away.
  const bool isOdd = lane & 1;
  float sum = isOdd ? sums.outside : sums.steps;
  sum += __shfl_xor_sync(~0u, isOdd ? sums.steps : sums.outside, 1);
#pragma unroll
  for (int step = 2; step < kWarp; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  sums.low = floatOf(__reduce_min_sync(~0u, orderOf(sums.low)));
  sums.high = floatOf(__reduce_max_sync(~0u, orderOf(sums.high)));
  if constexpr (kLanes == kWarp) {
    sums.steps = __shfl_sync(~0u, sum, 0);
    sums.outside = __shfl_sync(~0u, sum, 1);
  } else {
    constexpr int kWarps = kLanes / kWarp, kKinds = 4;
    __shared__ float parts[kWarps][kKinds];
    const int kind = lane % kKinds;
    if (lane < kKinds)
      parts[threadIdx.x / kWarp][lane] = lane < 2 ? sum : (lane == 2 ? sums.low : sums.high);
    __syncthreads();
    const auto join = [&](float a, float b) {
      return kind < 2 ? a + b : (kind == 2 ? fminf(a, b) : fmaxf(a, b));
    };
    float value = parts[lane / kKinds][kind];
#pragma unroll
    for (int w = kWarp / kKinds; w < kWarps; w += kWarp / kKinds)
      value = join(value, parts[lane / kKinds + w][kind]);
#pragma unroll
    for (int step = kKinds; step < kWarp; step *= 2)
      value = join(value, __shfl_xor_sync(~0u, value, step));
    sums.steps = __shfl_sync(~0u, value, 0);
    sums.outside = __shfl_sync(~0u, value, 1);
    sums.low = __shfl_sync(~0u, value, 2);
    sums.high = __shfl_sync(~0u, value, 3);
  }
}

// The quantizer of the rows of a matrix.
struct RowQuantizer {
  ClipLogits<float> clip;
  GridRule<float> rule;
  const float* scale;
  const float* zero;
  double* partials;  // of the logit's gradient, one a row; null where there is no logit
  float* clipGrad;
  uint32_t* ticket;  // the queue's
  int64_t rows;

  // What pass() finds out once for all rows of a thread.
  using State = ClipFactors<float>;
  __device__ State start() const { return State(clip, 0); }
  static constexpr bool kHasBarrier = true;  // of the block, in every pass()

  uint64_t partialBytes() const { return clipGrad ? uint64_t(rows) * sizeof(double) : 0; }
  void usePartials(double* memory) { partials = clipGrad ? memory : nullptr; }

  // fake_quant_grad of a row: g, the gradient of its quantized numbers, becomes that of the numbers
  // themselves. value(i) gives vector i of the row, lane + i kLanes of `vectors`. All lanes of the row call
  // it; in a loop, with a barrier of the block behind each call.
  template <int kLanes, int kBatch, class Value>
  __device__ void pass(const State& factors, int64_t row, int lane, int vectors,
                       RowVector (&g)[kBatch], Value&& value) const {
    __shared__ int lows, highs;  // elements that attain the extremes of a row of the whole block
    const GradGrid<float> grid(scale[row], zero[row], rule.top);
    const float none[kRowVector] = {};
    GroupSums<float> sums(0.0f);
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (lane + i * kLanes >= vectors) break;
      const RowVector y = value(i);
      grid.take<false>(y.lane, g[i].lane, none, sums);
    }
    const GroupSums<float> mine = sums;
    if (kLanes > kWarp && threadIdx.x == 0) lows = highs = 0;
    rowTotals<kLanes>(sums);
    ExtremeCounts counts;
    if (mine.low == sums.low || mine.high == sums.high) {
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        if (lane + i * kLanes >= vectors) break;
        const RowVector y = value(i);
#pragma unroll
        for (int e = 0; e < kRowVector; e++) counts.take(y.lane[e], sums);
      }
    }
    const bool isExtreme = counts.low > 0 || counts.high > 0;
    if constexpr (kLanes > kWarp) {
      if (counts.low > 0) atomicAdd(&lows, counts.low);
      if (counts.high > 0) atomicAdd(&highs, counts.high);
      __syncthreads();
      counts.low = lows;
      counts.high = highs;
    } else {
      groupCounts<kLanes>(counts);
    }
    if (!isExtreme && lane != 0) return;
    const ExtremeGrads<float> grads = extremeGrads(sums, rule, grid.s, factors.high, factors.low);
    if (isExtreme) {
      const ExtremeShares<float> shares(sums, counts, grads.low * factors.low,
                                        grads.high * factors.high);
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        if (lane + i * kLanes >= vectors) break;
        const RowVector y = value(i);
#pragma unroll
        for (int e = 0; e < kRowVector; e++) g[i].lane[e] += shares.of(y.lane[e]);
      }
    }
    if (partials && lane == 0) {
      partials[row] = double(grads.high) * double(sums.high) + double(grads.low) * double(sums.low);
    }
  }

  // From the partial sums of all rows to the logit's gradient; by a block of kThreads.
  template <int kThreads>
  __device__ void finish() const {
    double sum = 0;
    for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += partials[row];
    sum = rowSum<kThreads>(sum);
    const double f = clipFactor(clip.logits[0]);
    if (threadIdx.x == 0) clipGrad[0] = static_cast<float>(sum * (f * (1 - f)));
  }

  // The same by the last of few blocks, each of which calls it with all threads when its rows are done.
  template <int kThreads>
  __device__ void finishLast() const {
    if (!partials) return;
    __syncthreads();
    if (isLastBlock(ticket)) finish<kThreads>();
  }
};

}  // namespace aq::cuda
