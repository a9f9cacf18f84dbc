// logit_sum.cuh: the quantizer of rows as the inputs of a gradient op give it, and the sum of its logit's
// gradient over them.
#pragma once
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/row_operand_grad.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kLogitThreads = 512;

// The sum of many blocks: it would hold up each of them at its end.
__global__ __launch_bounds__(kLogitThreads) void finishLogit(
    const __grid_constant__ RowQuantizer quantizer) {
  letNextKernelStart();
  waitForKernelBefore();
  quantizer.finish<kLogitThreads>();
}

// Behind the kernel that has left the partial sums.
int32_t launchLogitSum(aq_queue* queue, const RowQuantizer& quantizer, aq_error* err) {
  if (!quantizer.partials) return AQ_OK;
  const EarlyLaunch last(queue, dim3(1), kLogitThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&last.config, finishLogit, quantizer));
  return AQ_OK;
}

// Bytes of the partial sums of the logit's gradient; none without a logit.
uint64_t logitSumBytes(const aq_view& clip, int64_t rows) {
  return clip.data ? uint64_t(rows) * sizeof(double) : 0;
}

// grid: scale and zero of the rows.
RowQuantizer rowQuantizer(aq_queue* queue, const aq_view& clip, const aq_view* grid, RowRule rule,
                          int64_t rows, double* partials, const aq_view& clipGrad) {
  const auto* const logits = static_cast<const float*>(clip.data);
  return {{logits, rows, true},
          GridRule<float>::of(rule, false),
          static_cast<const float*>(grid[0].data),
          static_cast<const float*>(grid[1].data),
          logits ? partials : nullptr,
          logits ? static_cast<float*>(clipGrad.data) : nullptr,
          queue->ticket,
          rows};
}

}  // namespace

}  // namespace aq::cuda
