// int8.cuh: what the kernels of int8_small.cu share: a tile's codes in a warp,
// their grids, codes as numbers, and the end of a block.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "native/cuda/device/packed.cuh"
#include "native/cuda/int8.h"

namespace aq::cuda::int8 {

inline constexpr int kWarps = 8, kThreads = 32 * kWarps;
inline constexpr int kStepColumns = 32,
                     kOwnColumns = 8;  // of a thread in a step

struct Task {
  Weights w;
  Activations x;
  Result y;
};

// Two bytes of `word` minus z, exactly.
template <class E>
__device__ inline uint32_t twoNumbers(uint32_t word, int pair, float z) {
  // A byte behind the exponent of 2^23.
  const auto number = [&](int byte) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650u + byte)) - (8388608.0f + z);
  };
  const float low = number(2 * pair), high = number(2 * pair + 1);
  if constexpr (std::is_same_v<E, __half>) {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(both);
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(both);
  }
}

// 1 in every byte of a word of columns from `column` on that are columns of the
// matrix.
__device__ inline uint32_t onesAt(int column, int inputs) {
  const int live = inputs - column;
  return live >= 4 ? 0x01010101u : live <= 0 ? 0u : 0x01010101u >> (8 * (4 - live));
}

// A tile's codes in a thread: of rows g and g + 8, columns 8 t and the next in
// both steps.
template <int kTiles>
struct TileCodes {
  uint2 row[kTiles][2][2];  // [tile row][step][g, g + 8]

  __device__ void load(const Weights& w, int tileRow, int tile, int g, int t) {
#pragma unroll
    for (int i = 0; i < kTiles; i++) {
      const int64_t at = int64_t(min(tileRow + i, w.tileRows - 1)) * w.tiles + tile;
      const uint8_t* const from = w.codes + at * kTileBytes + g * kTileColumns + t * kOwnColumns;
#pragma unroll
      for (int step = 0; step < 2; step++) {
#pragma unroll
        for (int half = 0; half < 2; half++)
          row[i][step][half] = __ldcs(
              reinterpret_cast<const uint2*>(from + half * 8 * kTileColumns + step * kStepColumns));
      }
    }
  }
};

// The grids of a thread's rows in a step.
struct RowGrids {
  float scale[2], zero[2];

  __device__ void load(const Weights& w, int tileRow, int column, int g) {
    const int group = min(column / w.group, w.groups - 1);
    const int64_t at = (int64_t(min(tileRow, w.tileRows - 1)) * w.groups + group) * kTileRows + g;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      scale[half] = __half2float(__ushort_as_half(w.scale[at + 8 * half]));
      zero[half] = float(w.zero[at + 8 * half]);
    }
  }
};

// Sums of every warp, in shared memory, to y; for each output and row of x.
template <int kRows, int kColumns, class Finish>
__device__ void finishSums(const Task& task, const Finish& finish) {
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int64_t row = int64_t(blockIdx.x) * kRows + i % kRows;
    const int64_t m = int64_t(blockIdx.y) * kColumns + i / kRows;
    if (row >= task.w.outputs || m >= task.x.rows) continue;
    float y = finish(i % kRows, i / kRows, row, m);
    const int64_t at = m * task.w.outputs + row;
    if (task.y.bias) y += loadAs(task.y.dtype, task.y.bias, row);
    storeAs(task.y.dtype, task.y.y, at, y);
  }
}

}  // namespace aq::cuda::int8
