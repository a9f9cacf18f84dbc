// fp4_flat_operand.cuh: fp4_operand of a matrix without factors and offsets, as bf16.
#pragma once
#include <cstdint>

#include "native/cuda/device/fp4_flat.cuh"

namespace aq::cuda {

template <class S>
struct FlatOperand {
  const S* x;
  const float* g;     // null: 1
  const float* clip;  // null: none
  bool isOneLogit;
  FlatShape shape;
  float* scale;
  float* factor;
  __nv_bfloat16* y;
  bool isBeside;  // the pass in front (passes.h)
};

template <class S, int kFormat>
__global__ __launch_bounds__(kFlatThreads) void quantizeFlat(
    const __grid_constant__ FlatOperand<S> a) {
  constexpr int kLanes = kGroupLanes<kFormat>;
  const FlatPlace<kLanes> place(blockIdx.x);
  const bool hasGroup = place.group() < a.shape.groups;
  startPass(a.isBeside);
  FlatRun<S> x[kLanes];
  float largest[kLanes], logit = 0;
#pragma unroll
  for (int j = 0; j < kLanes; j++) {
    if (place.run(j) < a.shape.runs) x[j].load(a.x, place.run(j));
  }
  if (a.clip && hasGroup) logit = a.clip[a.isOneLogit ? 0 : place.group()];
  const float g = fp4Global(a.g);
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.factor = divRn(1.0f, g);

#pragma unroll
  for (int j = 0; j < kLanes; j++) largest[j] = x[j].largest();
  const float most =
      joinNeighbours<kLanes>(largest, [](float p, float q) { return maxOrNaN(p, q); });
  const float divisor = a.clip ? clipDivisor(logit) : 1.0f;
  const FlatGroup<kFormat, false> group(divisor, most, g);
  if (hasGroup) a.scale[place.group()] = group.scale;
  const uint32_t pair = bitsAs<uint32_t>(__float2bfloat162_rn(group.scale));
#pragma unroll
  for (int j = 0; j < kLanes; j++) {
    const float k = ofNeighbour<kLanes>(group.inverse, j);
    const uint32_t scales = ofNeighbour<kLanes>(pair, j);
    const auto rounded = [&](float number) {
      return roundE2m1(atMost(mulRn(fabsf(number), k), kFp4Most<float>));
    };
    FlatRun<__nv_bfloat16> y;
#pragma unroll
    for (int w = 0; w < kRun / 2; w++) {
      const float2 from = x[j].pair(w);
      y.word[w] = scaledPair({rounded(from.x), rounded(from.y)}, x[j].signs(w), scales);
    }
    if (place.run(j) < a.shape.runs) y.store(a.y, place.run(j));
  }
  endPass(a.isBeside);
}

}  // namespace aq::cuda
