// mean.cuh: the second stage of a loss: partial sums in f64, one a block of the first stage, added
// by one block in an order that only their number decides.
#pragma once
#include <cstdint>

#include "native/cuda/device/reduce.cuh"

namespace aq::cuda {

inline constexpr int kTotalThreads = 512;

// *y = sum of parts[0 .. count) / divisor. One block of kTotalThreads.
template <class T>
__global__ __launch_bounds__(kTotalThreads) void totalOf(const double* __restrict__ parts,
                                                         int64_t count, double divisor, T* y) {
  double sum = 0;
  for (int64_t p = threadIdx.x; p < count; p += kTotalThreads) sum += parts[p];
  sum = rowSum<kTotalThreads>(sum);
  if (threadIdx.x == 0) *y = static_cast<T>(sum / divisor);
}

}  // namespace aq::cuda
