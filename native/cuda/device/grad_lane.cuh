// grad_lane.cuh: eight numbers of a row of a quantized matrix as a lane takes them, with their
// gradients, through the gradient of the quantizer (device/grad_rows.cuh).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/grad_product.h"

namespace aq::cuda {

inline constexpr int kGradLane = 8;  // numbers of a row that a lane has

// Two of a lane's eight short numbers.
__device__ inline float2 widenPair(uint32_t bits, bool isHalf) {
  if (!isHalf) return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  __half2 both;
  memcpy(&both, &bits, 4);
  return __half22float2(both);
}

// What a lane has of a row, and where the same of the rows to come lies. Outside of the matrix all is
// zero, which adds nothing to what is gathered.
template <GradKind kKind>
struct GradLane {
  static constexpr bool kOffset = kKind == GradKind::kOffset, kAdded = kKind == GradKind::kAdded;
  static constexpr bool kWide = kKind == GradKind::kWide || kAdded;
  using Numbers = Vec<float, 4>;

  Vec<uint32_t, 4> packed;                   // short numbers
  Numbers wide[kWide ? 2 : 1];               // others
  Numbers extra[kOffset || kAdded ? 2 : 1];  // offsets, or what is added
  float scale, zero;

  // Numbers `at` of the matrix, of the group `grid`.
  __device__ void load(const MatrixGrad& a, bool isInside, int64_t at, int64_t grid) {
    if constexpr (kWide) {
      loadNumbers(wide, isInside, static_cast<const float*>(a.x) + at);
    } else {
      packed = {};
      if (isInside) packed = loadVec<uint32_t, 4>(static_cast<const uint32_t*>(a.x) + at / 2, 0);
    }
    if constexpr (kOffset) loadNumbers(extra, isInside, a.v + at);
    if constexpr (kAdded) loadNumbers(extra, isInside, a.added + at);
    scale = isInside ? a.scale[grid] : 1.0f;
    zero = isInside ? a.zero[grid] : 0.0f;
  }

 private:
  __device__ void loadNumbers(Numbers (&to)[2], bool isInside, const float* from) const {
    to[0] = to[1] = {};
    if (!isInside) return;
    to[0] = loadVec<float, 4>(from, 0);
    to[1] = loadVec<float, 4>(from, 1);
  }
};

// The smallest and largest of eight short numbers, compared in pairs.
template <class Pair>
__device__ inline void pairExtremes(const Vec<uint32_t, 4>& packed, float& low, float& high) {
  Vec<Pair, 4> pairs;
  memcpy(&pairs, &packed, sizeof pairs);
  const Pair least =
      __hmin2(__hmin2(pairs.lane[0], pairs.lane[1]), __hmin2(pairs.lane[2], pairs.lane[3]));
  const Pair most =
      __hmax2(__hmax2(pairs.lane[0], pairs.lane[1]), __hmax2(pairs.lane[2], pairs.lane[3]));
  low = fminf(low, fminf(float(least.x), float(least.y)));
  high = fmaxf(high, fmaxf(float(most.x), float(most.y)));
}

struct RowSums {
  float low = 0, high = 0, steps = 0, outside = 0;
};

// A lane's eight numbers of a row with their gradients, as floats.
template <GradKind kKind>
struct GradNumbers : RowSums {
  using Lane = GradLane<kKind>;
  float x[kGradLane], g[kGradLane], v[kGradLane], passing[kGradLane];

  __device__ void open(const MatrixGrad& a, const Lane& own, const Vec<uint32_t, 4>& product,
                       bool isInside) {
#pragma unroll
    for (int e = 0; e < kGradLane / 2; e++) {
      const float2 sums = widenPair(isInside ? product.lane[e] : 0, false);
      g[2 * e] = sums.x;
      g[2 * e + 1] = sums.y;
      if constexpr (Lane::kWide) continue;
      const float2 pair = widenPair(own.packed.lane[e], a.isHalf);
      x[2 * e] = pair.x;
      x[2 * e + 1] = pair.y;
    }
#pragma unroll
    for (int e = 0; e < kGradLane; e++) {
      if constexpr (Lane::kWide) x[e] = own.wide[e / 4].lane[e % 4];
      if constexpr (Lane::kAdded) g[e] += own.extra[e / 4].lane[e % 4];
      v[e] = Lane::kOffset ? own.extra[Lane::kOffset ? e / 4 : 0].lane[e % 4] : 0.0f;
    }
    if constexpr (Lane::kWide) {
#pragma unroll
      for (int e = 0; e < kGradLane; e++) {
        low = fminf(low, x[e]);
        high = fmaxf(high, x[e]);
      }
    } else if (a.isHalf) {
      pairExtremes<__half2>(own.packed, low, high);
    } else {
      pairExtremes<__nv_bfloat162>(own.packed, low, high);
    }
  }

  __device__ bool addSure(const GradGrid<float>& codes) {
    return codes.template addSure<Lane::kOffset>(x, g, v, steps, outside, passing);
  }
  __device__ void addExactly(const GradGrid<float>& codes) {
    steps = outside = 0;
    codes.template addExactly<Lane::kOffset>(x, g, v, steps, outside, passing);
  }

  // gv, or gx.
  __device__ void write(const MatrixGrad& a, int64_t at, float scale) const {
    if constexpr (Lane::kOffset) {
      Vec<float, kGradLane> gv;
#pragma unroll
      for (int e = 0; e < kGradLane; e++) gv.lane[e] = passing[e] * scale;
      storeVec(static_cast<__nv_bfloat16*>(a.gv) + at, 0, narrow<__nv_bfloat16>(gv));
    } else if constexpr (Lane::kWide) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        storeVec(a.gx + at, half,
                 Vec<float, 4>{passing[4 * half], passing[4 * half + 1], passing[4 * half + 2],
                               passing[4 * half + 3]});
      }
    }
  }
};

}  // namespace aq::cuda
