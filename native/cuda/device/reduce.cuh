// reduce.cuh: sums and maxima over a group of threads that work on one row. The order of additions
// is fixed by the group's size, so results repeat from run to run.
#pragma once
#include <cstdint>

namespace aq::cuda {

inline constexpr int kWarp = 32;

template <class T>
__device__ inline T warpSum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// NaN is ignored beside a number, as fmax does.
template <class T>
__device__ inline T warpMax(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = fmax(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}

// Sum over the kLanes threads of a row, given to all of them. kLanes is 32 (a warp, several rows in
// a block) or the size of the block. Every thread of the group must take part; may be called again.
template <int kLanes, class T>
__device__ inline T rowSum(T value) {
  value = warpSum(value);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T parts[kWarps];
    __syncthreads();  // the last call's readers are done
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < kWarps; w++) value += parts[w];
  }
  return value;
}

// The same for several values, for the price of one in barriers.
template <int kLanes, class T, int N>
__device__ inline void rowSums(T (&values)[N]) {
  for (T& value : values) value = warpSum(value);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T parts[kWarps][N];
    __syncthreads();
    if (threadIdx.x % kWarp == 0) {
      for (int i = 0; i < N; i++) parts[threadIdx.x / kWarp][i] = values[i];
    }
    __syncthreads();
    for (int i = 0; i < N; i++) {
      values[i] = 0;
      for (int w = 0; w < kWarps; w++) values[i] += parts[w][i];
    }
  }
}

// Maximum over a row's threads, given to all of them; under the rules of rowSum.
template <int kLanes, class T>
__device__ inline T rowMax(T value) {
  value = warpMax(value);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T parts[kWarps];
    __syncthreads();
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = parts[0];
    for (int w = 1; w < kWarps; w++) value = fmax(value, parts[w]);
  }
  return value;
}

// Maximum of non-negative numbers into memory that starts at +0: their bits order as integers do,
// so this is exact and does not depend on who comes first. A NaN (sign cleared) wins.
__device__ inline void atomicMaxNonNegative(float* target, float value) {
  atomicMax(reinterpret_cast<unsigned*>(target), __float_as_uint(fabsf(value)));
}
__device__ inline void atomicMaxNonNegative(double* target, double value) {
  atomicMax(reinterpret_cast<unsigned long long*>(target),
            static_cast<unsigned long long>(__double_as_longlong(fabs(value))));
}

// ---------------------------------------------------------------- sums of columns, second stage

// A sum is shared by the kColumnLanes threads of a column; their partial sums meet in shared
// memory.
inline constexpr int kColumnLanes = 8;
inline constexpr int kColumnThreads = kWarp * kColumnLanes;
inline unsigned columnBlocks(int64_t columns) { return unsigned((columns + kWarp - 1) / kWarp); }

template <class T, int kRows>
struct ColumnSums {
  T* y[kRows];
};

// parts [count, kRows, columns] hold partial sums; the sum of row r goes to y[r], in an order that
// follows from `count` alone. A grid of columnBlocks(columns) x kRows blocks.
template <class T, int kRows>
__global__ __launch_bounds__(kColumnThreads) void sumColumnParts(const T* __restrict__ parts,
                                                                 int64_t count, int64_t columns,
                                                                 ColumnSums<T, kRows> sums) {
  __shared__ T shared[kColumnLanes][kWarp];
  const int lane = int(threadIdx.x) / kWarp;
  const int64_t c = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  const T* const own = parts + int64_t(blockIdx.y) * columns + c;
  T sum = 0;
  if (c < columns) {
#pragma unroll 16
    for (int64_t p = lane; p < count; p += kColumnLanes) sum += own[p * kRows * columns];
  }
  shared[lane][threadIdx.x % kWarp] = sum;
  __syncthreads();
  if (lane != 0 || c >= columns) return;
  for (int l = 1; l < kColumnLanes; l++) sum += shared[l][threadIdx.x];
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    if (r == int(blockIdx.y)) sums.y[r][c] = sum;
  }
}

}  // namespace aq::cuda
