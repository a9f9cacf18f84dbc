// fp4_row.cuh: rows that become 4-bit floats where they are made, before they exist in memory, as fp4_operand
// writes them; and the gradient of that.
//
// A thread has vectors of 4 numbers, kLanes vectors apart, so that a group belongs to 4 (NVFP4) or 8 (MXFP4)
// neighbours of a warp, all of them within the row or all beyond it. Each does what is done once for a group.
#pragma once
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/fp4_flat.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

// Neighbours that share a group.
template <int kFormat>
inline constexpr int kGroupVectors = kFp4Group<kFormat> / kRowVector;

// What `join` makes of the values of a group's threads, given to all of them; called by whole warps.
template <int kFormat, class Join>
__device__ inline float overGroup(float value, Join&& join) {
#pragma unroll
  for (int step = 1; step < kGroupVectors<kFormat>; step *= 2)
    value = join(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// The largest magnitude of a group, NaN where it has one.
template <int kFormat>
__device__ inline float groupLargest(const RowVector& y) {
  float largest = fabsf(y.lane[0]);
#pragma unroll
  for (int e = 1; e < kRowVector; e++) largest = maxOrNaN(largest, fabsf(y.lane[e]));
  return overGroup<kFormat>(largest, [](float p, float q) { return maxOrNaN(p, q); });
}

// ---------------------------------------------------------------- forward

// Rows of which nothing is left but the largest magnitude of all, as bits, where zero is to begin with.
struct LargestRows {
  uint32_t* largest;
  int64_t columns;
};

// Bits of numbers that are not negative lie in the order of the numbers, and a NaN's above them all.
template <int kLanes, int kBatch>
__device__ inline void writeRow(const LargestRows& to, const RowVector (&y)[kBatch], int64_t, int) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
#pragma unroll
    for (int e = 0; e < kRowVector; e++) largest = maxOrNaN(largest, fabsf(y[i].lane[e]));
  }
  const uint32_t most = __reduce_max_sync(kAllLanes, __float_as_uint(largest));
  if (threadIdx.x % kWarp == 0) atomicMax(to.largest, most);
}

// Where the rows of a matrix go.
template <int kFormat>
struct FloatRows {
  const float* g;           // null: 1
  const uint32_t* largest;  // of all rows, where it is what g comes from, else null
  float* global;
  float* scale;
  float* factor;
  __nv_bfloat16* y;
  int64_t columns;  // a multiple of the group

  // out: global, scale, factor and y, as bf16.
  static FloatRows of(const aq_view& g, const uint32_t* largest, const aq_view* out,
                      int64_t columns) {
    return {static_cast<const float*>(g.data),
            largest,
            static_cast<float*>(out[0].data),
            static_cast<float*>(out[1].data),
            static_cast<float*>(out[2].data),
            static_cast<__nv_bfloat16*>(out[3].data),
            columns};
  }

  // What `global` is to be.
  __device__ float given() const {
    if (largest) return divRn(kE4m3Most<float> * kFp4Most<float>, __uint_as_float(*largest));
    return g ? *g : 1.0f;
  }
};

// Writes a row whose vectors lane, lane + kLanes, ... are in y. Called by all lanes of the row.
template <int kLanes, int kBatch, int kFormat>
__device__ inline void writeRow(const FloatRows<kFormat>& to, const RowVector (&y)[kBatch],
                                int64_t row, int lane) {
  constexpr int kEach = kGroupVectors<kFormat>;
  const int vectors = int(to.columns / kRowVector);
  const int64_t first = row * vectors;
  const float given = to.given(), g = isfinite(given) ? given : 1.0f;
  if (row == 0 && lane == 0) {
    *to.global = given;
    *to.factor = divRn(1.0f, g);
  }
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    const int k = lane + i * kLanes;
    const float largest = groupLargest<kFormat>(y[i]);
    if (k >= vectors) continue;
    const FlatGroup<kFormat, false> group(1.0f, largest, g);
    if (k % kEach == 0) to.scale[(first + k) / kEach] = group.scale;
    const uint32_t scales = bitsAs<uint32_t>(__float2bfloat162_rn(group.scale));
    const auto rounded = [&](float number) {
      return roundE2m1(atMost(mulRn(fabsf(number), group.inverse), kFp4Most<float>));
    };
    uint32_t word[kRowVector / 2];
#pragma unroll
    for (int w = 0; w < kRowVector / 2; w++) {
      const float low = y[i].lane[2 * w], high = y[i].lane[2 * w + 1];
      const uint32_t signs = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
      word[w] = scaledPair({rounded(low), rounded(high)}, signs, scales);
    }
    reinterpret_cast<uint2*>(to.y)[first + k] = make_uint2(word[0], word[1]);
  }
}

// Calls write(largest) where rows are to be written, and find(LargestRows) in front of it where what they
// have in common is to be looked for: `largest` is null elsewhere.
template <class Find, class Write>
int32_t withLargest(aq_queue* queue, const char* op, bool isOwn, int64_t columns, aq_error* err,
                    Find&& find, Write&& write) {
  if (!isOwn) return write(static_cast<const uint32_t*>(nullptr));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(sizeof(uint32_t), op, err)) return code;
  uint32_t* const largest = scratch.at<uint32_t>();
  CUDA_CHECK(cudaMemsetAsync(largest, 0, sizeof(uint32_t), queue->stream));
  if (const int32_t code = find(LargestRows{largest, columns})) return code;
  return write(static_cast<const uint32_t*>(largest));
}

// ---------------------------------------------------------------- gradient

// The quantizer of the rows of a matrix.
template <int kFormat>
struct FloatQuantizer {
  const float* g;  // null: 1
  const float* scale;

  static FloatQuantizer of(const aq_view& g, const aq_view& scale) {
    return {static_cast<const float*>(g.data), static_cast<const float*>(scale.data)};
  }

  // What pass() finds out once for all rows of a thread: g.
  using State = float;
  __device__ State start() const { return fp4Global(g); }
  static constexpr bool kHasBarrier = false;

  uint64_t partialBytes() const { return 0; }
  void usePartials(double*) {}
  template <int kThreads>
  __device__ void finishLast() const {}

  // fp4_grad of a row: grad, the gradient of its quantized numbers, becomes that of the numbers themselves.
  // value(i) gives vector i of the row, lane + i kLanes of `vectors`. All lanes of the row call it.
  template <int kLanes, int kBatch, class Value>
  __device__ void pass(float global, int64_t row, int lane, int vectors, RowVector (&grad)[kBatch],
                       Value&& value) const {
    constexpr int kEach = kGroupVectors<kFormat>;
    const auto add = [](float p, float q) { return p + q; };
    const int64_t first = row * vectors;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int k = lane + i * kLanes;
      const bool isInside = k < vectors;
      RowVector y = {}, flow = {};
      if (isInside) y = value(i), flow = grad[i];
      const float s = isInside ? scale[(first + k) / kEach] : 1.0f;
      const float most = groupLargest<kFormat>(y);
      const FlatGroup<kFormat, true> group(1.0f, most, global, s);
      // Numbers count as positive here, and gradients have their signs.
      float sum = 0, ties = 0;
#pragma unroll
      for (int e = 0; e < kRowVector; e++) {
        const float size = fabsf(y.lane[e]);
        flow.lane[e] = passing(withSign(flow.lane[e], y.lane[e]), mulRn(size, group.inverse), sum);
        ties += size == most ? 1.0f : 0.0f;
      }
      const float toClipped = group.toClipped(overGroup<kFormat>(sum, add), s);
      const float share = sharedBy(toClipped, overGroup<kFormat>(ties, add));
      if (!isInside) continue;
#pragma unroll
      for (int e = 0; e < kRowVector; e++) {
        if (fabsf(y.lane[e]) == most) flow.lane[e] += share;
        grad[i].lane[e] = withSign(flow.lane[e], y.lane[e]);
      }
    }
  }
};

}  // namespace aq::cuda
