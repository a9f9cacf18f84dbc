// fp4_flat_grad.cuh: fp4_grad of a matrix without factors and offsets: of groups' logits, or of the
// matrix, or of both.
#pragma once
#include <cstdint>

#include "native/cuda/device/fp4_flat.cuh"

namespace aq::cuda {

template <class S>
struct FlatGrad {
  using G = GradientOf<S>;
  const S* x;
  const float* scale;
  const float* g;  // null: 1
  const G* grad;
  const float* clip;  // null: none
  FlatShape shape;
  bool isSpent;     // nothing looks at grad afterwards
  G* gx;            // or null
  float* clipGrad;  // with clip
  bool isBeside;    // the pass in front (passes.h)
};

// What a product wrote last is in L2 alone: where it has been read for the last time, it need not go to
// memory. Lines that a warp has read whole are given up, without a word on what they hold then.
template <class S, int kLanes>
__device__ inline void discardRuns(const FlatGrad<S>& a, const FlatPlace<kLanes>& place) {
  constexpr unsigned kEach = kLineRuns<GradientOf<S>>;
  __syncwarp();
  if (threadIdx.x % kEach != 0) return;
#pragma unroll
  for (int j = 0; j < kLanes; j++) {
    if (place.run(j) + kEach <= a.shape.runs) discardLine(a.grad + size_t(place.run(j)) * kRun);
  }
}

template <class S, int kFormat, bool kMatrix>
__global__ __launch_bounds__(kFlatThreads) void gradFlat(const __grid_constant__ FlatGrad<S> a) {
  using G = GradientOf<S>;
  constexpr int kLanes = kGroupLanes<kFormat>;
  const auto add = [](float p, float q) { return p + q; };
  // The first blocks have what a product wrote last.
  const FlatPlace<kLanes> place(gridDim.x - 1 - blockIdx.x);
  const bool hasGroup = place.group() < a.shape.groups;
  startPass(a.isBeside);
  FlatRun<S> x[kLanes];
  FlatRun<G> grad[kLanes];
#pragma unroll
  for (int j = 0; j < kLanes; j++) {
    if (place.run(j) >= a.shape.runs) continue;
    x[j].load(a.x, place.run(j));
    grad[j].load(a.grad, place.run(j));
  }
  const float s = hasGroup ? a.scale[place.group()] : 1.0f;
  const float logit = hasGroup && a.clip ? a.clip[place.group()] : 0.0f;
  const float g = fp4Global(a.g);

  float largest[kLanes], sums[kLanes];
#pragma unroll
  for (int j = 0; j < kLanes; j++) largest[j] = x[j].largest();
  const float most =
      joinNeighbours<kLanes>(largest, [](float p, float q) { return maxOrNaN(p, q); });
  const float divisor = a.clip ? clipDivisor(logit) : 1.0f;
  const FlatGroup<kFormat, true> group(divisor, most, g, s);
  const float f = group.factor;

  // sums: of what flows to the groups' scales. Numbers count as positive here, and gradients have their
  // signs; what is not to pass is cleared.
#pragma unroll
  for (int j = 0; j < kLanes; j++) {
    const float k = ofNeighbour<kLanes>(group.inverse, j);
    sums[j] = 0;
#pragma unroll
    for (int w = 0; w < kRun / 2; w++) {
      const float2 from = x[j].pair(w);
      grad[j].turn(w, x[j].signs(w));
      float2 flow = grad[j].pair(w);
      flow.x = passing(flow.x, mulRn(fabsf(from.x), k), sums[j]);
      flow.y = passing(flow.y, mulRn(fabsf(from.y), k), sums[j]);
      if constexpr (kMatrix) grad[j].set(w, flow);
    }
  }
  if (a.isSpent) discardRuns(a, place);
  const float toClipped = group.toClipped(joinNeighbours<kLanes>(sums, add), s);
  if (a.clip && hasGroup) a.clipGrad[place.group()] = toClipped * most * (f * (1.0f - f));

  if constexpr (kMatrix) {
    float counts[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; j++) counts[j] = x[j].countOf(ofNeighbour<kLanes>(most, j));
    const float share = sharedBy(toClipped * f, joinNeighbours<kLanes>(counts, add));
#pragma unroll
    for (int j = 0; j < kLanes; j++) {
      const float top = ofNeighbour<kLanes>(most, j), each = ofNeighbour<kLanes>(share, j);
      FlatRun<G> gx;
#pragma unroll
      for (int w = 0; w < kRun / 2; w++) {
        const float2 from = x[j].pair(w);
        float2 flow = grad[j].pair(w);
        if (fabsf(from.x) == top) flow.x += each;
        if (fabsf(from.y) == top) flow.y += each;
        gx.set(w, flow);
        gx.turn(w, x[j].signs(w));
      }
      if (place.run(j) < a.shape.runs) gx.store(a.gx, place.run(j));
    }
  }
  endPass(a.isBeside);
}

}  // namespace aq::cuda
