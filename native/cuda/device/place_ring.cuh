// place_ring.cuh: keys and values of cached places on their way through shared memory. Lanes have rings
// of their own, so that nothing but their own copies is waited for, and hold no registers for what is
// under way.
#pragma once
#include "native/cuda/device/async_copy.cuh"
#include "native/cuda/device/cached_attention.cuh"
#include "native/cuda/device/place_sum.cuh"
#include "native/cuda/device/prefetch.cuh"

namespace aq::cuda {

inline constexpr int kRingBytes = 65536;  // of a block
// Of a block beyond its rings: as far as L2 while the kernel in front still runs.
inline constexpr int kEarlyPlaceBytes = 65536;

// The places of one head and slot that a warp of a block has, a step at a time: its i-th step starts
// at begin + warp * kStep + i * kStride.
template <class K, int kLanes>
class PlaceRing {
  using Sum = PlaceSum<K, kLanes>;
  using Run = typename Sum::Run;
  static constexpr int kStride = kSplitWarps * Sum::kStep;
  static constexpr int kStageRuns = 2 * kSplitAhead * kWarp;  // of a warp
  static constexpr int kStages = kRingBytes / (kSplitWarps * kStageRuns * int(sizeof(Run)));

 public:
  int begin, cached, end;  // of the block: places, those that come from the caches, all

  __device__ PlaceRing(const CachedCall<float, K>& c, void* memory, int head)
      : begin(0),
        cached(0),
        end(0),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        ring_(static_cast<Run*>(memory) + warp_ * (kStages * kStageRuns) + lane_),
        offset_(head * Sum::kSize + lane_ % kLanes * Sum::kChannels),
        step_(int64_t(c.kvHeads) * Sum::kSize) {}

  // The share of block `rank` of the places before `position`; where tokens are apart the last block
  // has the token's own too.
  __device__ void find(const CachedCall<float, K>& c, int slot, int position, int rank) {
    const int all = c.isApart ? position : position + 1, share = (all + c.splits - 1) / c.splits;
    begin = min(rank * share, all);
    cached = min(begin + share, all);
    end = c.isApart && rank == c.splits - 1 ? position + 1 : cached;
    for (int side = 0; side < 2; side++)
      from_[side] = c.cache[side].data + slot * c.capacity * step_ + offset_;
  }
  __device__ K* place(int side, int t) const { return from_[side] + t * step_; }
  // Of this lane, the first place of step i.
  __device__ int firstOf(int i) const {
    return begin + warp_ * Sum::kStep + i * kStride + lane_ / kLanes;
  }
  __device__ bool has(int i) const { return begin + warp_ * Sum::kStep + i * kStride < end; }

  // Starts the copies of step i; those of kStages steps are under way.
  __device__ void fetch(int i) const {
    const int first = firstOf(i);
    Run* const to = ring_ + i % kStages * kStageRuns;
#pragma unroll
    for (int a = 0; a < kSplitAhead; a++) {
      const int t = first + a * Sum::kPlaces;
      if (t >= cached) continue;
      for (int side = 0; side < 2; side++) copyAsync(to + (2 * a + side) * kWarp, place(side, t));
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  // Step i has been added: the next one takes its place in the ring.
  __device__ void fetchBehind(int i) const { fetch(i + kStages); }
  __device__ void fetchFirst() const {
#pragma unroll 1
    for (int i = 0; i < kStages; i++) fetch(i);
  }
  // Asks for what comes behind the first steps.
  __device__ void prefetch() const {
    constexpr int kLine = 128, kPlaceBytes = Sum::kSize * int(sizeof(K));
    constexpr int kLines = (kPlaceBytes + kLine - 1) / kLine;
    const int next = begin + kStages * kStride;
    const int places = min(cached - next, kEarlyPlaceBytes / (2 * kPlaceBytes));
    for (int i = threadIdx.x; i < places * kLines; i += kSplitThreads) {
      for (int side = 0; side < 2; side++) {
        const K* const at = place(side, next + i / kLines) - lane_ % kLanes * Sum::kChannels;
        prefetchL2(reinterpret_cast<const char*>(at) + i % kLines * kLine);
      }
    }
  }
  // Waits for step i.
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
  }
  __device__ Run at(int i, int a, int side) const {
    return ring_[i % kStages * kStageRuns + (2 * a + side) * kWarp];
  }

 private:
  int warp_, lane_;
  Run* ring_;
  int offset_;  // of this lane's channels
  int64_t step_;
  K* from_[2];
};

}  // namespace aq::cuda
