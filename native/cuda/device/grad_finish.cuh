// grad_finish.cuh: what is left of the gradient of a fake-quantized matrix after its products: the
// parts of every group are added up, which says what clipping logits and extreme elements get.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/grad_product.h"

namespace aq::cuda {

struct GradFinish {
  MatrixGrad grad;
  int64_t rowParts, groupParts, groups;  // parts of a row and of a group, groups of the matrix
  ClipLogits<float> clip;
  float* clipGrad;   // [2, groups], where every group has its own logits
  double* partials;  // [groups] of the one logit's gradient, or null
  GridRule<float> rule;
};

// A group as kLanes threads of a warp finish it.
template <int kLanes>
struct GroupFinish {
  const GradFinish& a;
  int64_t group, row;
  const GradPart* parts;
  int count;  // of them
  int lane;
  GroupSums<float> sums{0.0f};

  __device__ GroupFinish(const GradFinish& all, int64_t index)
      : a(all), group(index), row(index / all.grad.perRow), lane(int(threadIdx.x) % kLanes) {
    const int64_t first = group % a.grad.perRow * a.groupParts, rest = a.rowParts - first;
    parts = a.grad.parts + row * a.rowParts + first;
    count = int(rest < a.groupParts ? rest : a.groupParts);
  }

  // With all lanes of a warp.
  __device__ void add() {
    for (int i = lane; i < count; i += kLanes) {
      const GradPart part = parts[i];
      sums.steps += part.steps;
      sums.outside += part.outside;
      sums.low = fminf(sums.low, part.low);
      sums.high = fmaxf(sums.high, -part.minusHigh);
    }
    addNeighbours<kLanes>(sums);
  }

  // The gradients of the extremes times their factors; writes those of the logits.
  __device__ ExtremeGrads<float> logits(bool isLive) const {
    const float f1 = a.clip.factor(a.clip.high(group)), f2 = a.clip.factor(a.clip.low(group));
    const ExtremeGrads<float> grads = extremeGrads(sums, a.rule, a.grad.scale[group], f1, f2);
    if (lane == 0 && isLive) {
      if (a.partials) {
        a.partials[group] =
            double(grads.high) * double(sums.high) + double(grads.low) * double(sums.low);
      } else if (a.clipGrad) {
        a.clipGrad[group] = grads.high * sums.high * (f1 * (1 - f1));
        a.clipGrad[a.groups + group] = grads.low * sums.low * (f2 * (1 - f2));
      }
    }
    return {grads.high * f1, grads.low * f2};
  }

  // Adds to gx what flows through the extremes of a whole row. With all lanes of a warp.
  __device__ void addAtExtremes(const ExtremeGrads<float>& grads) const {
    static_assert(kLanes == kWarp);
    int lows = 0, highs = 0;
    visitExtremes([&](float x, float*) {
      lows += __popc(__ballot_sync(~0u, x == sums.low));
      highs += __popc(__ballot_sync(~0u, x == sums.high));
    });
    ExtremeCounts counts;
    counts.low = lows;
    counts.high = highs;
    const ExtremeShares<float> shares(sums, counts, grads.low, grads.high);
    visitExtremes([&](float x, float* gx) {
      const float share = shares.of(x);
      if (gx && share != 0) *gx += share;
    });
  }

 private:
  // Calls f(x, gx) with all lanes together for the columns of the parts that attain an extreme; gx is
  // null, and x no number, beyond the row's end.
  template <class F>
  __device__ void visitExtremes(F&& f) const {
    const float* const x = static_cast<const float*>(a.grad.x) + row * a.grad.cols;
    for (int base = 0; base < count; base += kWarp) {
      const GradPart part = parts[base + lane < count ? base + lane : 0];
      const bool isOwn = base + lane < count;
      const bool attains = isOwn && (part.low == sums.low || -part.minusHigh == sums.high);
      for (uint32_t left = __ballot_sync(~0u, attains); left != 0; left &= left - 1) {
        const int64_t first = int64_t(base + __ffs(int(left)) - 1) * a.grad.partCols;
        for (int i = lane; i < a.grad.partCols; i += kWarp) {
          const int64_t col = first + i;
          const bool isInside = col < a.grad.cols;
          f(isInside ? x[col] : nanf(""), isInside ? a.grad.gx + row * a.grad.cols + col : nullptr);
        }
      }
    }
  }
};

}  // namespace aq::cuda
