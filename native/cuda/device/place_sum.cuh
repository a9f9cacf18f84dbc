// place_sum.cuh: softmax(q k^T) v over some places of one head, by the warps of a cluster's blocks: each
// has a running maximum, a sum of weights and sums of weighted values, which meet at the end.
#pragma once
#include <cooperative_groups.h>

#include <cstring>

#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kSplitWarps = 8, kSplitThreads = kSplitWarps * kWarp;
inline constexpr int kMostSplits = 4;  // blocks of a token and head
inline constexpr int kSplitAhead = 4;  // places of a lane that are added at once

// Tells the other blocks of a cluster that this one's shared memory is there.
__device__ inline void meetClusterEarly(int blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void waitForCluster(int blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// What the threads of all blocks have written to each other's shared memory is there.
__device__ inline void meetCluster(int blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

// A warp's sums. kLanes lanes hold the channels of a place; a step are kSplitAhead places of every lane.
template <class K, int kLanes>
struct PlaceSum {
  static constexpr int kChannels = 16 / int(sizeof(K)), kPlaces = kWarp / kLanes;
  static constexpr int kSize = kLanes * kChannels, kStep = kPlaces * kSplitAhead;
  // A lane's channels of a place, as they come: the compiler would hold 16-bit lanes a register each.
  using Run = uint4;

  static __device__ Vec<K, kChannels> numbersOf(const Run& run) {
    Vec<K, kChannels> numbers;
    memcpy(&numbers, &run, sizeof run);
    return numbers;
  }

  float q[kChannels];
  float most = -INFINITY, total = 0;
  float sum[kChannels] = {};

  // Keys and values of kSplitAhead places of this lane, kPlaces apart, of which those below `end` exist.
  __device__ void add(const Run* keys, const Run* values, int end) {
    float dot[kSplitAhead], highest = -INFINITY;
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      const Vec<K, kChannels> key = numbersOf(keys[a]);
      dot[a] = 0;
#pragma unroll
      for (int e = 0; e < kChannels; e++) dot[a] += q[e] * float(key.lane[e]);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) dot[a] += __shfl_xor_sync(~0u, dot[a], step);
      if (a * kPlaces >= end) dot[a] = -INFINITY;
      highest = fmaxf(highest, dot[a]);
    }
#pragma unroll
    for (int step = kLanes; step < kWarp; step *= 2)
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
    const float higher = fmaxf(most, highest), shrink = exp2f(most - higher);
    most = higher;
    total *= shrink;
#pragma unroll
    for (int e = 0; e < kChannels; e++) sum[e] *= shrink;
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      const bool isSeen = a * kPlaces < end;
      const float weight = isSeen ? exp2f(dot[a] - higher) : 0.0f;
      total += weight;
      const Vec<K, kChannels> value = numbersOf(values[a]);
#pragma unroll
      for (int e = 0; e < kChannels; e++) sum[e] += weight * (isSeen ? float(value.lane[e]) : 0.0f);
    }
  }

  // Where the warps of all blocks meet: in each block for its share of the channels, kSize / splits
  // of each warp, so that the rows of all take as much whatever the splits are.
  static constexpr int kMostParts = kMostSplits * kSplitWarps, kPad = 4;
  struct Meeting {
    float most[kMostParts], total[kMostParts];
    __align__(16) float sum[kSplitWarps * kSize + kMostParts * kPad];
  };

  // Sums over the warp's places, to the blocks that finish them.
  __device__ void put(Meeting& meeting, int splits, int rank, int lane, int warp) {
#pragma unroll
    for (int step = kLanes; step < kWarp; step *= 2) {
      total += __shfl_xor_sync(~0u, total, step);
#pragma unroll
      for (int e = 0; e < kChannels; e++) sum[e] += __shfl_xor_sync(~0u, sum[e], step);
    }
    waitForCluster(splits);
    const auto of = [&](int block) -> Meeting& {
#if __CUDA_ARCH__ >= 900
      if (splits > 1) return *cooperative_groups::this_cluster().map_shared_rank(&meeting, block);
#endif
      return meeting;
    };
    const int share = kSize / splits, row = rank * kSplitWarps + warp;
    if (lane < splits) {
      Meeting& to = of(lane);
      to.most[row] = most;
      to.total[row] = total;
    }
    const int part = lane % kLanes, own = lane / kLanes;
#pragma unroll
    for (int e = 0; e < kChannels; e += 4) {
      if (e / 4 % kPlaces != own) continue;
      const int d = part * kChannels + e;
      const Vec<float, 4> four = {{sum[e], sum[e + 1], sum[e + 2], sum[e + 3]}};
      storeVec(of(d / share).sum + row * (share + kPad) + d % share, 0, four);
    }
  }

  // The quotient at a channel of the block's share, which is returned, or -1. The lanes that have the
  // same channel each add some of the parts.
  static __device__ int finish(const Meeting& meeting, int splits, float* quotient) {
    const int share = kSize / splits, parts = kSplitWarps * splits;
    constexpr int kPer = kSize / kWarp;  // parts of a lane
    const int helpers = parts / kPer, channels = kWarp / helpers;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int helper = lane / channels, d = warp * channels + lane % channels;
    float most[kPer], highest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPer; i++) {
      most[i] = meeting.most[i * helpers + helper];
      highest = fmaxf(highest, most[i]);
    }
    for (int step = channels; step < kWarp; step *= 2)
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
    float total = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; i++) {
      const int row = i * helpers + helper;
      // A part without a place has the maximum -inf and nothing to add.
      const float factor = most[i] == -INFINITY ? 0.0f : exp2f(most[i] - highest);
      total += meeting.total[row] * factor;
      sum += meeting.sum[row * (share + kPad) + d] * factor;
    }
    for (int step = channels; step < kWarp; step *= 2) {
      total += __shfl_xor_sync(~0u, total, step);
      sum += __shfl_xor_sync(~0u, sum, step);
    }
    *quotient = sum / total;
    return helper == 0 && d < share ? d : -1;
  }
};

}  // namespace aq::cuda
