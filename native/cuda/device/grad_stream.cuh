// grad_stream.cuh: fake_quant_grad of a matrix without factors and offsets by blocks that stay:
// while a group is worked on, the next ones are on their way to shared memory (as in
// operand_stream.cuh).
//
// What passes the clamp is written at once; once the group's sums are known, only the threads that
// hold its extreme elements write those again.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/grad_batch.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/short_vectors.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

inline constexpr int kGradThreads = 384;      // of a block, at most
inline constexpr int kResidentThreads = 768;  // of a multiprocessor
inline constexpr int kGradVectors = 8;        // of a row that a thread has, at most
inline constexpr int kFewVectors = 4;  // of a short row: more threads wait for the same bytes
inline constexpr int kShortRow = 512;  // vectors
inline constexpr int kUnrolled = 2;    // vectors that are worked on together

// Grids and clipping factors of a thread's groups, read before they are needed.
template <class S, int kLanes>
class GroupGrids {
 public:
  float scale, zero, high, low;

  __device__ GroupGrids(const QuantGrad<S>& call, int first, int step)
      : call_(call), first_(first), step_(step) {
    if constexpr (kLanes != kBlock) fetch(0);
  }

  // Those of group n of the thread, one after the other. All lanes of a warp take part.
  __device__ void take(int n) {
    const int lane = int(threadIdx.x) % kWarp;
    if constexpr (kLanes == kBlock) {
      // A group belongs to all lanes: they look after 16 groups at a time, two lanes each.
      const int own = n % (kWarp / 2);
      if (own == 0) {
        fetch(n + lane / 2);
        logit_ = call_.clip.factor(logit_);
      }
      scale = __shfl_sync(~0u, grid_, 2 * own);
      zero = __shfl_sync(~0u, grid_, 2 * own + 1);
      high = __shfl_sync(~0u, logit_, 2 * own);
      low = __shfl_sync(~0u, logit_, 2 * own + 1);
    } else {
      const bool isOdd = lane & 1;
      const float grid = __shfl_xor_sync(~0u, grid_, 1);
      const float mine = call_.clip.factor(logit_), other = __shfl_xor_sync(~0u, mine, 1);
      scale = isOdd ? grid : grid_;
      zero = isOdd ? grid_ : grid;
      high = isOdd ? other : mine;
      low = isOdd ? mine : other;
      fetch(n + 1);
    }
  }

 private:
  __device__ void fetch(int n) {
    const int group = min(first_ + n * step_, int(call_.groups.count) - 1);
    const bool isOdd = threadIdx.x & 1;
    grid_ = isOdd ? call_.zero[group] : call_.scale[group];
    logit_ = isOdd ? call_.clip.low(group) : call_.clip.high(group);
  }

  const QuantGrad<S>& call_;
  int first_, step_;
  float grid_ = 0, logit_ = 0;
};

// A barrier of its own for those of a block that wait, which others only pass.
__device__ inline void waitForCounts() {
  asm volatile("barrier.cta.sync 1, %0;" ::"r"(blockDim.x) : "memory");
}
__device__ inline void passCounts() {
  asm volatile("barrier.cta.arrive 1, %0;" ::"r"(blockDim.x) : "memory");
}

// Sums over a block for its group n, given to all of it: memory is used in turn, so that one
//           barrier a
// group is enough.
__device__ inline void blockSums(int n, GroupSums<float>& sums) {
  __shared__ float4 parts[2][kGradThreads / kWarp];
  float4* const own = parts[n % 2];
  addNeighbours<kWarp>(sums);
  if (threadIdx.x % kWarp == 0)
    own[threadIdx.x / kWarp] = {sums.steps, sums.outside, sums.low, sums.high};
  __syncthreads();
  sums.steps = sums.outside = 0;
  for (int w = 0; w < int(blockDim.x) / kWarp; w++) {
    const float4 part = own[w];
    sums.steps += part.x;
    sums.outside += part.y;
    sums.low = fminf(sums.low, part.z);
    sums.high = fmaxf(sums.high, part.w);
  }
}

// The sum over a block of any number of whole warps, given to its first thread.
__device__ inline double blockSum(double value) {
  __shared__ double parts[kGradThreads / kWarp];
  value = warpSum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = 0;
  for (int w = 0; w < int(blockDim.x) / kWarp; w++) value += parts[w];
  return value;
}

template <class S, int kLanes, int kBatch, bool kGx>
__global__ __launch_bounds__(kGradThreads,
                             2) void gradStream(const __grid_constant__ QuantGrad<S> a) {
  using G = GradientOf<S>;
  constexpr int kVec = kVecWidth<S>, kStride = kLanes == kBlock ? kWarp : kLanes;
  extern __shared__ uint4 ring[];
  __shared__ int tallies[3][2];  // of low and high extremes, of groups in turn
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int inBlock = kLanes == kBlock ? 1 : int(blockDim.x) / kStride;
  const int count = int(a.groups.count), length = int(a.groups.group), vectors = length / kVec;
  const int first = int(blockIdx.x) * inBlock + (kLanes == kBlock ? 0 : int(threadIdx.x) / kStride);
  const int step = int(gridDim.x) * inBlock;
  // As many for all threads of a block, for its barriers.
  const int rounds = (count - int(blockIdx.x) * inBlock + step - 1) / step;
  const int place = kLanes == kBlock ? warp * (kBatch * kWarp) + lane : lane % kStride;
  const int owned = place < vectors ? (vectors - 1 - place) / kStride + 1 : 0;
  const auto start = [&](int n) {
    return int64_t(min(first + n * step, count - 1)) * length + place * kVec;
  };
  const uint4* const own = ring + warp * (2 * kBatch * kWarp) + lane;
  const uint32_t ownAddress = sharedAddress(own);
  const auto copy = [&](const S* x, const G* g, int i) {
    copyAsync16(ownAddress + i * (2 * kWarp * 16), x);
    copyAsync16(ownAddress + i * (2 * kWarp * 16) + kWarp * 16, g);
  };
  if (kGx && threadIdx.x < 6) tallies[threadIdx.x / 2][threadIdx.x % 2] = 0;
  if (lane % 8 == 0 && !a.isBeside) {
#pragma unroll 1
    for (int i = 0; i < owned; i++) {
      prefetchL2(a.x + start(0) + i * (kStride * kVec));
      prefetchL2(a.g + start(0) + i * (kStride * kVec));
    }
  }
  startPass(a.isBeside);
#pragma unroll 1
  for (int i = 0; i < kBatch; i++) {
    const int64_t at = start(0) + i * (kStride * kVec);
    if (i < owned) copy(a.x + at, a.g + at, i);
    commitCopies();
  }
  GroupGrids<S, kLanes> grids(a, first, step);
  double partial = 0;
  for (int n = 0; n < rounds; n++) {
    const bool isLive = first + n * step < count;
    const int64_t begin = start(n);
    const S* nextX = a.x + start(n + 1);
    const G* nextG = a.g + start(n + 1);
    G* to = kGx ? a.gx + begin : nullptr;
    const int copied = n + 1 < rounds ? owned : 0;
    grids.take(n);
    const GradGrid<float> grid(grids.scale, grids.zero, a.rule.top);
    const float seed = a.rule.published ? static_cast<float>(a.x[begin - place * kVec]) : 0.0f;
    GroupSums<float> sums(seed);
    VectorExtremes<S, kVec> extremes;
#pragma unroll kUnrolled
    for (int i = 0; i < kBatch; i++) {
      waitCopies<kBatch - 1>();
      if (i < owned) {
        const auto x = readVec<S, kVec>(own + i * (2 * kWarp));
        const auto g = readVec<G, kVec>(own + i * (2 * kWarp) + kWarp);
        extremes.take(x);
        Vec<float, kVec> value = widenPairs(x), passing = widenPairs(g);
        grid.pass(value.lane, passing.lane, sums);
        // g or 0: nothing is rounded.
        if (kGx && isLive) storeVec(to, 0, narrow<G>(passing));
        asm volatile("" ::: "memory");  // read before it is written over
        if (i < copied) copy(nextX, nextG, i);
      }
      nextX += kStride * kVec;
      nextG += kStride * kVec;
      to += kStride * kVec;
      commitCopies();
    }
    const float low = extremes.low(), high = extremes.high();
    sums.low = fminf(seed, low);
    sums.high = fmaxf(seed, high);
    if constexpr (kLanes == kBlock) {
      if (kGx && threadIdx.x < 2) tallies[(n + 1) % 3][threadIdx.x] = 0;
      blockSums(n, sums);
    } else {
      addNeighbours<kLanes>(sums);
    }
    const float f1 = grids.high, f2 = grids.low;
    ExtremeGrads<float> grads = {};
    uint32_t reached = 0;  // lanes of the warp that hold extremes of the group
    if constexpr (kGx) reached = __ballot_sync(~0u, low == sums.low || high == sums.high);
    if (reached != 0 || threadIdx.x < kWarp || kLanes != kBlock)
      grads = extremeGrads(sums, a.rule, grids.scale, f1, f2);
    if constexpr (kGx) {
      if (reached == 0) {
        passCounts();
      } else {
        // All lanes look at the numbers of one of them at a time.
        const auto visit = [&](auto&& f) {
          for (uint32_t mask = reached; mask != 0; mask &= mask - 1) {
            const int from = place - lane + __ffs(int(mask)) - 1;
#pragma unroll
            for (int j = 0; j < kBatch * kVec / kWarp; j++) {
              const int number = j * kWarp + lane;
              const int vector = from + number / kVec * kWarp;
              const int64_t at = begin + (vector - place) * kVec + number % kVec;
              const bool isInside = vector < vectors;
              f(at, isInside, isInside ? static_cast<float>(a.x[at]) : 0.0f);
            }
          }
        };
        ExtremeCounts counts;
        visit([&](int64_t, bool isInside, float x) {
          counts.low += __popc(__ballot_sync(~0u, isInside && x == sums.low));
          counts.high += __popc(__ballot_sync(~0u, isInside && x == sums.high));
        });
        if (lane == 0) {
          if (counts.low > 0) atomicAdd(&tallies[n % 3][0], counts.low);
          if (counts.high > 0) atomicAdd(&tallies[n % 3][1], counts.high);
        }
        waitForCounts();
        counts.low = tallies[n % 3][0];
        counts.high = tallies[n % 3][1];
        const ExtremeShares<float> shares(sums, counts, grads.low * f2, grads.high * f1);
        visit([&](int64_t at, bool isInside, float x) {
          const float share = isInside ? shares.of(x) : 0.0f;
          if (share != 0) a.gx[at] = static_cast<G>(static_cast<float>(a.gx[at]) + share);
        });
      }
    }
    if (place != 0 || !isLive) continue;
    if (a.partials) {
      partial += double(grads.high) * double(sums.high) + double(grads.low) * double(sums.low);
    } else if (a.clipGrad) {
      const int group = first + n * step;
      a.clipGrad[group] = grads.high * sums.high * (f1 * (1 - f1));
      a.clipGrad[count + group] = grads.low * sums.low * (f2 * (1 - f2));
    }
  }
  waitCopies<0>();
  endPass(a.isBeside);
  if (!a.partials) return;
  if constexpr (kLanes != kBlock) partial = blockSum(partial);
  if (!isLastBlock(a.ticket, a.partials, partial)) return;
  double sum = 0;
  for (int k = int(threadIdx.x); k < int(gridDim.x); k += int(blockDim.x)) sum += a.partials[k];
  sum = blockSum(sum);
  const double f = clipFactor(a.clip.logits[0]);
  if (threadIdx.x == 0) a.clipGrad[0] = static_cast<float>(sum * (f * (1 - f)));
}

// ---------------------------------------------------------------- launch

// Whether gradStream takes a matrix that can be read in vectors, and needs to: no offsets, no
//           factors.
template <class S>
bool canStream(const QuantGrad<S>& a) {
  if (a.v || a.r || a.c || a.gy || a.groups.ragged || a.groups.count > INT32_MAX / 2) return false;
  const int64_t vectors = a.groups.group / kVecWidth<S>;
  if (vectors <= 16) return !a.gx;
  return (kIsShort<S> || !a.gx) && vectors > 128 && vectors <= kGradThreads * kGradVectors;
}

template <class S>
int32_t launchStream(aq_queue* queue, const QuantGrad<S>& a, aq_error* err) {
  const int64_t vectors = a.groups.group / kVecWidth<S>;
  const auto start = [&]<int kLanes, int kBatch, bool kGx>() -> int32_t {
    constexpr int kPerWarp = kBatch * kWarp;
    const int threads =
        kLanes == kBlock ? int((vectors + kPerWarp - 1) / kPerWarp) * kWarp : kGroupThreads;
    const int64_t groups = kLanes == kBlock ? 1 : threads / (kLanes ? kLanes : 1);
    const int64_t most = (a.groups.count + groups - 1) / groups;
    const int64_t fit = std::max(1, kResidentThreads / threads);
    const int64_t blocks = std::min<int64_t>(most, fit * queue->multiprocessors);
    const int bytes = 2 * kBatch * threads * 16;
    const auto kernel = gradStream<S, kLanes, kBatch, kGx>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const EarlyLaunch launch(queue, dim3(unsigned(blocks)), threads, bytes);
    CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, a));
    return AQ_OK;
  };
  if (vectors <= 4) return start.template operator()<4, 1, false>();
  if (vectors <= 16) return start.template operator()<4, 4, false>();
  const auto rows = [&]<int kBatch>() {
    if constexpr (kIsShort<S>) {
      if (a.gx) return start.template operator()<kBlock, kBatch, true>();
    }
    return start.template operator()<kBlock, kBatch, false>();
  };
  if (vectors <= kShortRow) return rows.template operator()<kFewVectors>();
  return rows.template operator()<kGradVectors>();
}

}  // namespace aq::cuda
