// cached_split.cuh: the attention of cached_attention for heads whose channels fill whole 16-byte
// accesses of some lanes of a warp: places are cut among the blocks of a cluster, so that one token
// has all multiprocessors at work.
#pragma once
#include "native/cuda/device/cached_attention.cuh"
#include "native/cuda/device/place_ring.cuh"
#include "native/cuda/device/place_sum.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// The query of a head, and the key and value of the token, as the threads of a block make them.
template <class K, int kSize>
struct NewRows {
  static constexpr int kRounds = (3 * kSize + kSplitThreads - 1) / kSplitThreads;

  float query[kSize];
  __align__(16) K made[2][kSize];

  // `rows` of the three. All loads are under way before one is waited for.
  static __device__ void load(const CachedCall<float, K>& c, int64_t m, int h, int head, int rows,
                              float* numbers) {
#pragma unroll
    for (int r = 0; r < kRounds; r++) {
      const int i = r * kSplitThreads + int(threadIdx.x), d = i % kSize, side = i / kSize - 1;
      numbers[r] = 0;
      if (i >= rows * kSize) continue;
      const float* const x = side < 0 ? c.q.x + m * c.q.ld + h * kSize
                                      : c.kv[side].x + m * c.kv[side].ld + head * kSize;
      numbers[r] = side == 1 ? x[d] : c.turned(x, m, d);
    }
  }
  __device__ void store(int rows, const float* numbers, float unit) {
#pragma unroll
    for (int r = 0; r < kRounds; r++) {
      const int i = r * kSplitThreads + int(threadIdx.x), d = i % kSize, side = i / kSize - 1;
      if (i >= rows * kSize) continue;
      if (side < 0) {
        query[d] = numbers[r] * unit;
      } else {
        made[side][d] = K(numbers[r]);
      }
    }
  }
};

// A cluster of c.splits blocks per token and query head; each has a share of the places, its warps
// take them a step at a time. Where tokens are apart the last place is the token's own, which comes
// from where it is made, and is not read back.
//
// Where nothing in front can still be writing to the caches (c.isEarly), the first steps of every
// warp are fetched before the kernel in front is over. Slot and position may be what that kernel
// makes: what was fetched counts if they are the same when it is over.
template <class K, int kLanes>
__global__ __launch_bounds__(kSplitThreads,
                             2) void attendSplit(const __grid_constant__ CachedCall<float, K> c) {
  using Sum = PlaceSum<K, kLanes>;
  using Run = typename Sum::Run;
  using Rows = NewRows<K, Sum::kSize>;
  extern __shared__ __align__(128) char ringMemory[];
  __shared__ Rows rows;
  __shared__ typename Sum::Meeting meeting;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, part = lane % kLanes;
  const unsigned splits = unsigned(c.splits), heads = unsigned(c.heads), item = blockIdx.x / splits;
  const int rank = int(blockIdx.x % splits), h = int(item % heads);
  const int64_t m = item / heads;
  const int group = c.heads / c.kvHeads, head = h / group;

  PlaceRing<K, kLanes> ring(c, ringMemory, head);
  int earlySlot = -1, earlyPosition = -1;
  if (c.isEarly) {
    earlySlot = __ldcg(c.slots + m);
    earlyPosition = __ldcg(c.positions + m);
    if (c.isInside(earlySlot, earlyPosition)) {
      ring.find(c, earlySlot, earlyPosition, rank);
      ring.fetchFirst();
      ring.prefetch();
    }
  }
  meetClusterEarly(c.splits);
  waitForKernelBefore();
  letNextKernelStart();

  const bool hasOwn = c.isApart && rank == c.splits - 1;
  float numbers[Rows::kRounds];
  Rows::load(c, m, h, head, hasOwn ? 3 : 1, numbers);
  const int slot = __ldcg(c.slots + m), position = __ldcg(c.positions + m);
  if (!c.isInside(slot, position)) {
    if (h == 0 && rank == 0 && threadIdx.x == 0) c.refuse(m);
    waitForCopies();
    return;  // all blocks of the cluster
  }
  if (slot != earlySlot || position != earlyPosition) {
    waitForCopies();
    ring.find(c, slot, position, rank);
    ring.fetchFirst();
  }
  // exp2 of logits in its own unit is exp of the logits.
  rows.store(hasOwn ? 3 : 1, numbers, c.scale * 1.44269504f);
  __syncthreads();
  Sum s;
#pragma unroll
  for (int e = 0; e < Sum::kChannels; e++) s.q[e] = rows.query[part * Sum::kChannels + e];
#pragma unroll 1
  for (int i = 0; ring.has(i); i++) {
    ring.wait();
    const int first = ring.firstOf(i);
    Run keys[kSplitAhead], values[kSplitAhead];
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      const int t = first + a * Sum::kPlaces;
      if (t < ring.cached) {
        keys[a] = ring.at(i, a, 0);
        values[a] = ring.at(i, a, 1);
      } else {
        keys[a] = reinterpret_cast<const Run*>(rows.made[0])[part];
        values[a] = reinterpret_cast<const Run*>(rows.made[1])[part];
        if (t < ring.end && h % group == 0) {
          *reinterpret_cast<Run*>(ring.place(0, t)) = keys[a];
          *reinterpret_cast<Run*>(ring.place(1, t)) = values[a];
        }
      }
    }
    s.add(keys, values, ring.end - first);
    ring.fetchBehind(i);
  }
  s.put(meeting, c.splits, rank, lane, warp);
  meetCluster(c.splits);
  float quotient;
  const int d = Sum::finish(meeting, c.splits, &quotient);
  if (d >= 0) c.store((m * c.heads + h) * Sum::kSize + Sum::kSize / c.splits * rank + d, quotient);
  waitForCopies();  // of empty groups
}

}  // namespace aq::cuda
