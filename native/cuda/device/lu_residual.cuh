// lu_residual.cuh: how far A X is from I, without the product: for random vectors v of ones and
// minus ones the mean of |A (X v) - v|^2 is |I - A X|_F^2. The vectors are fixed, so results
// repeat.
#pragma once
#include <cstdint>

#include "native/cuda/device/reduce.cuh"

namespace aq::cuda {

// Signs of entry `index` of up to 32 probe vectors, one a bit.
__device__ inline uint32_t probeSigns(uint32_t index) {
  uint32_t h = (index + 1) * 0x9e3779b1u;
  h = (h ^ (h >> 15)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// value or -value, by the sign of probe `probe`.
__device__ inline float probed(float value, uint32_t signs, int probe) {
  return __uint_as_float(__float_as_uint(value) ^ (signs << (31 - probe) & 0x80000000u));
}

// The check of large matrices: three phases, each run by all blocks of a grid of 256 threads a
// block, with a barrier of the grid or the end of a launch between them.
struct LuCheck {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarp;
  static constexpr int kProbes = 4;

  const float* a;         // [count, n, n]
  const float* w;         // the inverses to check: [count, pitch, pitch], of which n x n count
  float* x;               // [count, n, n]: where they are copied to, if that is not w itself
  float4* image;          // [count, n]: X v of the probes
  float* error;           // [count, n]: squares of the rows of A (X v) - v, summed over probes
  int32_t* state;         // [count]: becomes 1 where the residual is too large
  const int32_t* wanted;  // [count], or null: a matrix with 0 there is left alone
  int64_t count;
  int32_t n, pitch;

  __device__ bool isWanted(int64_t b) const { return !wanted || __ldcg(wanted + b) != 0; }

  // X v, a warp a row.
  __device__ void apply() const {
    const int lane = threadIdx.x % kWarp;
    const int64_t first = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const bool isCopied = w != x;
    for (int64_t at = first; at < count * n; at += int64_t(gridDim.x) * kWarps) {
      if (!isWanted(at / n)) continue;
      const float* const row = w + (at / n * pitch + at % n) * pitch;
      float* const to = x + at * n;
      float sum[kProbes] = {};
#pragma unroll 8
      for (int32_t j = lane; j < n; j += kWarp) {
        const float value = __ldcg(row + j);
        if (isCopied) to[j] = value;
        const uint32_t signs = probeSigns(j);
#pragma unroll
        for (int s = 0; s < kProbes; s++) sum[s] += probed(value, signs, s);
      }
      for (float& value : sum) value = warpSum(value);
      if (lane == 0) image[at] = {sum[0], sum[1], sum[2], sum[3]};
    }
  }

  // The squares of A (X v) - v, a warp two rows.
  __device__ void compare() const {
    constexpr int kRows = 2;
    const int lane = threadIdx.x % kWarp;
    const int64_t first = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const int64_t perMatrix = (n + kRows - 1) / kRows;
    for (int64_t at = first; at < count * perMatrix; at += int64_t(gridDim.x) * kWarps) {
      const int64_t b = at / perMatrix;
      if (!isWanted(b)) continue;
      const int32_t i = int32_t(at % perMatrix) * kRows;
      const int32_t second = i + 1 < n ? n : 0;
      const float* const rows = a + (b * n + i) * n;
      const float4* const u = image + b * n;
      float sum[kRows][kProbes] = {};
#pragma unroll 4
      for (int32_t j = lane; j < n; j += kWarp) {
        const float4 four = __ldcg(u + j);
#pragma unroll
        for (int r = 0; r < kRows; r++) {
          const float value = rows[j + r * second];
          sum[r][0] = fmaf(value, four.x, sum[r][0]);
          sum[r][1] = fmaf(value, four.y, sum[r][1]);
          sum[r][2] = fmaf(value, four.z, sum[r][2]);
          sum[r][3] = fmaf(value, four.w, sum[r][3]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        float square = 0;
#pragma unroll
        for (int s = 0; s < kProbes; s++) {
          const float residual = warpSum(sum[r][s]) - probed(1.f, probeSigns(i + r), s);
          square = fmaf(residual, residual, square);
        }
        if (lane == 0 && i + r < n) error[b * n + i + r] = square;
      }
    }
  }

  // Marks what is off by more than `limit`, as |I - A X|_F / sqrt(n); a block a matrix.
  __device__ void judge(float limit) const {
    for (int64_t b = blockIdx.x; b < count; b += gridDim.x) {
      if (!isWanted(b)) continue;
      float sum = 0;
      for (int32_t i = threadIdx.x; i < n; i += kThreads) sum += __ldcg(error + b * n + i);
      sum = rowSum<kThreads>(sum);
      // NaN is off.
      if (threadIdx.x == 0 && !(sum <= limit * limit * kProbes * float(n))) state[b] = 1;
    }
  }
};

}  // namespace aq::cuda
