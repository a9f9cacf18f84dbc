// cached_split.cuh: the attention of cached_attention for heads whose channels fill whole 16-byte
// accesses of some lanes of a warp: places are cut among the blocks of a cluster, so that one token
// has all multiprocessors at work.
#pragma once
#include <cooperative_groups.h>

#include "native/cuda/device/cached_attention.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kSplitWarps = 8, kSplitThreads = kSplitWarps * kWarp;
inline constexpr int kMostSplits = 4;  // more cost more than they save
inline constexpr int kSplitAhead = 4;  // loads of keys, and of values, that a lane has in flight

// What a block knows of the places that it has seen: the sum of weighted values, over exp2(most).
template <int kSize>
struct PartSum {
  float most, total;
  float sum[kSize];
};

// kLanes lanes hold the channels of a place.
template <class K, int kLanes>
struct PlaceSum {
  static constexpr int kChannels = 16 / int(sizeof(K)), kPlaces = kWarp / kLanes;
  static constexpr int kSize = kLanes * kChannels, kStep = kPlaces * kSplitAhead;
  using Run = Vec<K, kChannels>;

  float q[kChannels];
  float most = -INFINITY, total = 0;
  float sum[kChannels] = {};

  // Keys and values of kSplitAhead places of this lane; what is not `seen` counts nothing.
  __device__ void add(const Run* keys, const Run* values, const bool* seen) {
    float dot[kSplitAhead], highest = -INFINITY;
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      dot[a] = 0;
#pragma unroll
      for (int e = 0; e < kChannels; e++) dot[a] += q[e] * float(keys[a].lane[e]);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) dot[a] += __shfl_xor_sync(~0u, dot[a], step);
      if (!seen[a]) dot[a] = -INFINITY;
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
      const float weight = seen[a] ? exp2f(dot[a] - higher) : 0.0f;
      total += weight;
#pragma unroll
      for (int e = 0; e < kChannels; e++) {
        const float value = seen[a] ? float(values[a].lane[e]) : 0.0f;
        sum[e] += weight * value;
      }
    }
  }

  // Sums over the warp's places.
  __device__ void finish() {
#pragma unroll
    for (int step = kLanes; step < kWarp; step *= 2) {
      total += __shfl_xor_sync(~0u, total, step);
#pragma unroll
      for (int e = 0; e < kChannels; e++) sum[e] += __shfl_xor_sync(~0u, sum[e], step);
    }
  }
};

// Sum of parts at channel d, in their order, and what it is to be divided by. What there is of
// kMost parts is read before any of it is used, since it may lie in another multiprocessor.
template <int kMost, int kSize, class PartAt>
__device__ PartSum<1> sumParts(const PartAt& partAt, int count, int d) {
  float most[kMost], total[kMost], sum[kMost];
#pragma unroll
  for (int i = 0; i < kMost; i++) {
    // A part without a place has the maximum -inf and nothing to add.
    most[i] = -INFINITY;
    total[i] = sum[i] = 0;
    if (i >= count) continue;
    const PartSum<kSize>& part = partAt(i);
    most[i] = part.most;
    total[i] = part.total;
    sum[i] = part.sum[d];
  }
  PartSum<1> all = {-INFINITY, 0, {0}};
#pragma unroll
  for (int i = 0; i < kMost; i++) all.most = fmaxf(all.most, most[i]);
#pragma unroll
  for (int i = 0; i < kMost; i++) {
    const float factor = total[i] == 0 ? 0 : exp2f(most[i] - all.most);
    all.total += total[i] * factor;
    all.sum[0] += sum[i] * factor;
  }
  return all;
}

// A cluster of c.splits blocks per token and query head; each has a share of the places, its warps
// take them kStep at a time.
template <class K, int kLanes>
__global__ __launch_bounds__(kSplitThreads) void attendSplit(
    const __grid_constant__ CachedCall<float, K> c) {
  using Sum = PlaceSum<K, kLanes>;
  using Run = typename Sum::Run;
  constexpr int kChannels = Sum::kChannels, kSize = Sum::kSize;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int part = lane % kLanes, own = lane / kLanes;
  const int rank = blockIdx.x % c.splits;
  const int64_t item = blockIdx.x / c.splits, m = item / c.heads;
  const int h = int(item % c.heads), group = c.heads / c.kvHeads, head = h / group;

  // Places [begin, end) of the slot. Where tokens are apart the last one is this token's own, which
  // comes from where it is made, and is not read back.
  int begin, end, last;
  int64_t first;
  const auto findPlaces = [&](int slot, int position) {
    const int seen = position + 1, share = (seen + c.splits - 1) / c.splits;
    begin = min(rank * share, seen);
    end = min(begin + share, seen);
    last = c.isApart ? position : seen;
    first = int64_t(slot) * c.capacity;
  };
  const auto placeOf = [&](int side, int t) {
    return c.cache[side].data + ((first + t) * c.kvHeads + head) * kSize;
  };
  // Places that were there before may come as far as L2 while the kernel before still runs.
  if (c.isApart && c.isInside(m)) {
    findPlaces(c.slots[m], c.positions[m]);
    constexpr int kLine = 128, kLines = (kSize * int(sizeof(K)) + kLine - 1) / kLine;
    for (int i = threadIdx.x; i < (min(end, last) - begin) * kLines; i += kSplitThreads) {
      for (int side = 0; side < 2; side++)
        prefetchL2(reinterpret_cast<const char*>(placeOf(side, begin + i / kLines)) +
                   i % kLines * kLine);
    }
  }
  waitForKernelBefore();
  letNextKernelStart();
  if (!c.isInside(m)) {
    if (h == 0 && rank == 0 && threadIdx.x == 0) c.refuse(m);
    return;  // all blocks of the cluster
  }
  findPlaces(c.slots[m], c.positions[m]);
  Run keys[kSplitAhead], values[kSplitAhead];
  int t0 = begin + warp * Sum::kStep;
  const auto load = [&] {
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      const int t = t0 + a * Sum::kPlaces + own;
      keys[a] = values[a] = {};
      if (t >= end || t == last) continue;
      keys[a] = loadVec<K, kChannels>(placeOf(0, t), part);
      values[a] = loadVec<K, kChannels>(placeOf(1, t), part);
    }
  };
  if (t0 < end) load();

  // The query, and where tokens are apart the token's key and value.
  __shared__ float query[kSize];
  __shared__ __align__(16) K made[2][kSize];
  // exp2 of logits in its own unit is exp of the logits.
  const float unit = c.scale * 1.44269504f;
  for (int i = threadIdx.x; i < (c.isApart ? 3 : 1) * kSize; i += kSplitThreads) {
    const int d = i % kSize, side = i / kSize - 1;
    if (side < 0) {
      query[d] = c.turned(c.q.x + m * c.q.ld + h * kSize, m, d) * unit;
    } else {
      const float* const x = c.kv[side].x + m * c.kv[side].ld + head * kSize;
      made[side][d] = K(side == 0 ? c.turned(x, m, d) : x[d]);
    }
  }
  __syncthreads();
  Sum s;
#pragma unroll
  for (int e = 0; e < kChannels; e++) s.q[e] = query[part * kChannels + e];
  if (c.isApart && warp == 0 && own == 0 && h % group == 0 && begin <= last && last < end) {
    storeVec(placeOf(0, last), part, loadVec<K, kChannels>(made[0], part));
    storeVec(placeOf(1, last), part, loadVec<K, kChannels>(made[1], part));
  }
  while (t0 < end) {
    bool isSeen[kSplitAhead];
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      const int t = t0 + a * Sum::kPlaces + own;
      isSeen[a] = t < end;
      if (t != last || !isSeen[a]) continue;
      keys[a] = loadVec<K, kChannels>(made[0], part);
      values[a] = loadVec<K, kChannels>(made[1], part);
    }
    s.add(keys, values, isSeen);
    t0 += kSplitWarps * Sum::kStep;
    if (t0 < end) load();
  }
  s.finish();

  __shared__ PartSum<kSize> warps[kSplitWarps], all;
  if (lane == 0) {
    warps[warp].most = s.most;
    warps[warp].total = s.total;
  }
  if (own == 0) {
#pragma unroll
    for (int e = 0; e < kChannels; e++) warps[warp].sum[part * kChannels + e] = s.sum[e];
  }
  __syncthreads();
  const auto ofWarp = [&](int i) -> const PartSum<kSize>& { return warps[i]; };
  const int64_t row = (m * c.heads + h) * kSize;
  for (int d = threadIdx.x; d < kSize; d += kSplitThreads) {
    const PartSum<1> sum = sumParts<kSplitWarps, kSize>(ofWarp, kSplitWarps, d);
    if (c.splits == 1) {
      c.store(row + d, sum.sum[0] / sum.total);
      continue;
    }
    all.sum[d] = sum.sum[0];
    if (d == 0) {
      all.most = sum.most;
      all.total = sum.total;
    }
  }
#if __CUDA_ARCH__ >= 900
  if (c.splits == 1) return;
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  const auto ofBlock = [&](int i) -> const PartSum<kSize>& {
    return *cluster.map_shared_rank(&all, i);
  };
  for (int d = kSize * rank / c.splits + int(threadIdx.x); d < kSize * (rank + 1) / c.splits;
       d += kSplitThreads) {
    const PartSum<1> sum = sumParts<kMostSplits, kSize>(ofBlock, c.splits, d);
    c.store(row + d, sum.sum[0] / sum.total);
  }
  cluster.sync();  // no block may end while its sums are read
#endif
}

}  // namespace aq::cuda
