// attention_softmax.cuh: the running softmax of attention's forward pass on the tensor cores, over
// accumulators of 16 rows (attention_mma.cuh): rows g and g + 8 are a thread's, shared by the four
// threads of its quad.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_mma.cuh"
#include "native/cuda/device/attention_shape.cuh"

namespace aq::cuda {

// E: of the packed tensors; T: of the results.
template <class T, class E>
struct Forward {
  const E *q, *k, *v;  // packed
  T *o, *lse;
  AttentionShape shape;
  T power;         // scale log2(e): exponents are taken to the base 2
  bool isPaired;   // rows of o take accesses of two numbers
  int32_t blocks;  // of queries, a head
};

// One row's largest logit so far, unscaled, and this thread's part of the sum of its powers.
struct RowState {
  float top, sum;
};

// Takes out what the 16 rows from row0 on may not see of the keys from key0 on.
template <int kColumns>
__device__ inline void hideKeys(float (&s)[kColumns][4], int row0, int key0) {
  const int lane = int(threadIdx.x) & 31, seen = row0 + lane / 4 - key0 - 2 * (lane & 3);
#pragma unroll
  for (int n = 0; n < kColumns; n++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (n * 8 + (e & 1) > seen + e / 2 * 8) s[n][e] = -INFINITY;
}

// Turns logits into powers relative to the rows' largest so far; what was summed before is to be
// multiplied by `fade`.
template <int kColumns>
__device__ inline void softmaxStep(float (&s)[kColumns][4], RowState (&state)[2], float power,
                                   float (&fade)[2]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    RowState& row = state[half];
    float top = row.top;
#pragma unroll
    for (int n = 0; n < kColumns; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float shift = top * power;
    fade[half] = powerOfTwo(row.top * power - shift);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kColumns; n++)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; e++) {
        s[n][e] = powerOfTwo(s[n][e] * power - shift);
        sum += s[n][e];
      }
    row = {top, row.sum * fade[half] + sum};
  }
}

template <int kOut>
__device__ inline void fadeRows(float (&o)[kOut][4], const float (&fade)[2]) {
#pragma unroll
  for (int d = 0; d < kOut; d++)
#pragma unroll
    for (int e = 0; e < 4; e++) o[d][e] *= fade[e / 2];
}

// Writes the 16 rows of o from row0 on, and their lse.
template <int kD, class E>
__device__ inline void storeRows(const Forward<float, E>& x, const QueryPlace& at, int row0,
                                 const float (&o)[kD / 8][4], const RowState (&state)[2]) {
  const int lane = int(threadIdx.x) & 31;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = state[half].sum;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int row = row0 + 8 * half + lane / 4;
    if (row >= x.shape.tokens) continue;
    const int64_t start = ((at.b * x.shape.tokens + row) * x.shape.heads + at.h) * x.shape.size;
    storeRow<kD>(x.o + start, x.shape.size, x.isPaired, o, half, 1 / sum);
    if ((lane & 3) == 0) {
      x.lse[at.head * x.shape.tokens + row] =
          (state[half].top * x.power + log2f(sum)) * float(1 / kLog2E);
    }
  }
}

}  // namespace aq::cuda
