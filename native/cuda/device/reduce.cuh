// reduce.cuh: sums and maxima over a group of threads that work on one row. The order of additions
// is fixed by the group's size, so results repeat from run to run.
#pragma once

namespace aq::cuda {

inline constexpr int kWarp = 32;

template <class T>
__device__ inline T warpSum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
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

// Maximum of non-negative numbers into memory that starts at +0: their bits order as integers do,
// so this is exact and does not depend on who comes first. A NaN (sign cleared) wins.
__device__ inline void atomicMaxNonNegative(float* target, float value) {
  atomicMax(reinterpret_cast<unsigned*>(target), __float_as_uint(fabsf(value)));
}
__device__ inline void atomicMaxNonNegative(double* target, double value) {
  atomicMax(reinterpret_cast<unsigned long long*>(target),
            static_cast<unsigned long long>(__double_as_longlong(fabs(value))));
}

}  // namespace aq::cuda
