// group.cuh: the threads that share one group of a grid, and what they find out together.
//
// A group belongs to kLanes threads: 2 to 32 neighbours of a warp, or a whole block. Lanes take
// neighbouring vectors. Few lanes for short groups: what is done once per group (reductions, its
// scale) is paid by every warp, so a warp should hold several groups.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/device/reduce.cuh"

namespace aq::cuda {

inline constexpr int kGroupThreads = 256;  // of a block whose warps have groups of their own
inline constexpr int kBlock = 0;           // lanes of a group: all of a block of any size

// Threads of a block: a group of more than a warp has it to itself.
template <int kLanes>
inline constexpr int kGroupBlock = kLanes > kWarp ? kLanes : kGroupThreads;

// Calls f.operator()<kLanes>() with the lanes for groups of `vectors` vectors.
template <class F>
int32_t visitGroupLanes(int64_t vectors, F&& f) {
  if (vectors <= 8) return f.template operator()<2>();
  if (vectors <= 32) return f.template operator()<8>();
  if (vectors <= 256) return f.template operator()<kWarp>();
  return f.template operator()<kGroupThreads>();
}

template <int kLanes>
inline unsigned groupBlocks(int64_t groups) {
  constexpr int64_t kPerBlock = kGroupBlock<kLanes> / kLanes;
  return unsigned((groups + kPerBlock - 1) / kPerBlock);
}

// The thread's place. Threads beyond the last group repeat it, so that warps stay whole, and must
// not write.
template <int kLanes>
struct GroupLane {
  int64_t group;
  int lane;
  bool live;

  __device__ explicit GroupLane(int64_t groups)
      : group(int64_t(blockIdx.x) * (kGroupBlock<kLanes> / kLanes) + threadIdx.x / kLanes),
        lane(int(threadIdx.x) % kLanes),
        live(group < groups) {
    if (!live) group = groups - 1;
  }
};

// Smallest and largest over kLanes neighbours of a warp, given to all of them. NaN is ignored
// beside a number.
template <int kLanes, class T>
__device__ inline void neighbourExtremes(T& low, T& high) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    low = fmin(low, __shfl_xor_sync(~0u, low, step));
    high = fmax(high, __shfl_xor_sync(~0u, high, step));
  }
}

// Over the lanes of a group. Called at most once by a kernel.
template <int kLanes, class T>
__device__ inline void groupExtremes(T& low, T& high) {
  neighbourExtremes<(kLanes < kWarp ? kLanes : kWarp)>(low, high);
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ T lows[kWarps], highs[kWarps];
    if (threadIdx.x % kWarp == 0) {
      lows[threadIdx.x / kWarp] = low;
      highs[threadIdx.x / kWarp] = high;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; w++) {
      low = fmin(low, lows[w]);
      high = fmax(high, highs[w]);
    }
  }
}

}  // namespace aq::cuda
