// int4_batch_tiles.cuh: the kernel of int4_batch.cu and fp4_batch.cu, which says how it works.
#pragma once
#include <cooperative_groups.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/int4_batch.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/launch.h"

namespace aq::cuda::int4 {

// In units of 128 columns of a warpgroup: fewer do not pay; a block's start and end cost as much.
inline constexpr int64_t kLeastUnits = 2, kFixedUnits = 3;

#if defined(AQ_HAS_HOPPER)

// What eight neighbouring results have beside their sums: loaded before those are there.
template <class P>
struct EarlyResults {
  EarlyNumbers<8> bias;
  Factors factors;

  __device__ EarlyResults(const Batch& job, int output)
      : bias(job.result.dtype, job.result.bias, output, job.w.outputs), factors(job.result) {}

  __device__ void apply(const Result& r, float (&v)[8]) const {
    const float factor = P::kIsFloats ? factors.of(r) : 1.0f;
#pragma unroll
    for (int e = 0; e < 8; e++) v[e] = (P::kIsFloats ? v[e] * factor : v[e]) + bias.at(r.dtype, e);
  }
};

// Eight neighbouring results.
__device__ inline void storeEight(const Batch& job, int64_t token, int output, float (&v)[8]) {
  const Result& r = job.result;
  const int64_t at = token * job.w.outputs + output;
  const int live = min(8, job.w.outputs - output);
  if (!job.wide || live < 8) {
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (e < live) storeAs(r.dtype, r.y, at + e, v[e]);
  } else if (r.dtype == AQ_F32) {
    auto* const y = reinterpret_cast<float4*>(static_cast<float*>(r.y) + at);
    y[0] = make_float4(v[0], v[1], v[2], v[3]);
    y[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    uint32_t pairs[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (r.dtype == AQ_BF16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * e], v[2 * e + 1]);
        pairs[e] = reinterpret_cast<const uint32_t&>(pair);
      } else {
        const __half2 pair = __floats2half2_rn(v[2 * e], v[2 * e + 1]);
        pairs[e] = reinterpret_cast<const uint32_t&>(pair);
      }
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(r.y) + at) =
        make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// The multiplying threads wait for each other.
template <class P>
__device__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(P::kConsumers) : "memory");
}

// The block's sums, and those of its cluster, to y: each block finishes a share of the tokens.
template <class P>
__device__ void finish(const Batch& job, const EarlyResults<P>& last, float* sums, int rank,
                       const Work& work) {
  const auto cluster = cooperative_groups::this_cluster();
  const int live = int(min(int64_t(P::kTokens), job.x.rows - work.token0));
  constexpr int kParts = P::kRows / 8;
  for (int i = live * rank / job.splits * kParts + int(threadIdx.x);
       i < live * (rank + 1) / job.splits * kParts; i += P::kConsumers) {
    const int n = i / kParts, row = i % kParts * 8, output = work.tileRow0 * kTileRows + row;
    if (output >= job.w.outputs) continue;
    float v[8] = {};
    for (int r = 0; r < job.splits; r++) {
#pragma unroll
      for (int phase = 0; phase < P::kPhases; phase++) {
        float* const at = sums + (phase * P::kTokens + n) * P::kSumPitch + row;
        const float* const from = job.splits > 1 ? cluster.map_shared_rank(at, r) : at;
        const float4 low = reinterpret_cast<const float4*>(from)[0];
        const float4 high = reinterpret_cast<const float4*>(from)[1];
        v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
        v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
      }
    }
    last.apply(job.result, v);
    storeEight(job, work.token0 + n, output, v);
  }
}

#endif  // AQ_HAS_HOPPER

template <class H, class P>
__global__ __launch_bounds__(P::kThreads,
                             P::kBlocks) void batchTiles(const __grid_constant__ Maps maps,
                                                         const __grid_constant__ Batch job) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char raw[];
  const uint32_t start = sharedAddress(raw), memory = (start + 1023) & ~1023u;
  char* const base = raw + (memory - start);
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  const int rank = blockIdx.x % job.splits;
  const int firstTile = partStart(job.w.tiles, rank, job.splits);
  const int tiles = partStart(job.w.tiles, rank + 1, job.splits) - firstTile;
  Work work = {int(blockIdx.y) * P::kRowTilesOf, int(blockIdx.x / job.splits) * P::kTokens,
               firstTile * P::kUnitsOfTile, tiles * P::kUnitsOfTile};
  // A step that is not whole has to be the last. With more tokens it costs more than it gains.
  if (P::kScalesSums && P::kTokens == 16 && work.units > 0 && work.units % P::kPhases == 0)
    work.shift = int(blockIdx.y * 5u % unsigned(work.steps<P>()));
  initRing<P>(memory);
  __syncthreads();
  Turn<P::kStages> turn;
  const auto cluster = cooperative_groups::this_cluster();
  if (warp >= P::kSlots) {
    if constexpr (P::kShifts) dropRegisters<P::kFew>();
    if (warp == P::kSlots) {
      const Producer<P> producer{job, maps, memory, lane};
      producer.prefetchFirst(work);
      waitForKernelBefore();
      producer.run(work, turn);
      letNextKernelStart();
      __syncwarp();
    }
    if (job.splits > 1) cluster.sync();
  } else {
    if constexpr (P::kShifts) raiseRegisters<P::kMany>();
    waitForKernelBefore();
    Consumer<H, P> consumer(memory, base, warp, lane);
    consumer.run(job.w, work, turn);
    float* const sums = reinterpret_cast<float*>(base);
    // The same eight outputs of every token that this thread finishes.
    const EarlyResults<P> last(job,
                               work.tileRow0 * kTileRows + int(threadIdx.x) % (P::kRows / 8) * 8);
    meet<P>();  // the ring becomes sums when no one reads it
    consumer.store(sums);
    if (job.splits > 1) {
      cluster.sync();
    } else {
      meet<P>();
    }
    finish<P>(job, last, sums, rank, work);
  }
  if (job.splits > 1) cluster.sync();  // no block may end while its sums are read
#endif
}

template <class H, class P>
Splits splitsOf(const aq_queue* queue, int64_t rows, const Weights& w) {
  const auto kernel = batchTiles<H, P>;
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes);
  const int64_t rowBlocks = (w.tileRows + P::kRowTilesOf - 1) / P::kRowTilesOf;
  const int64_t tokenBlocks = (rows + P::kTokens - 1) / P::kTokens;
  return chooseSplits(queue, reinterpret_cast<const void*>(kernel), P::kThreads, P::kBytes,
                      {.blocks = rowBlocks * tokenBlocks,
                       .tiles = w.tiles,
                       .least = kLeastUnits * P::kPhases,
                       .fixed = kFixedUnits * P::kPhases,
                       .atOnce = P::kBlocks});
}

template <class H, class P>
int32_t launchPlan(aq_queue* queue, Batch job, aq_error* err) {
  Maps maps;
  const int32_t code = encodeMaps(&maps, job.x, job.w, P::kBoxesOf, err);
  if (code != AQ_OK) return code;
  const auto kernel = batchTiles<H, P>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes));
  const int64_t rowBlocks = (job.w.tileRows + P::kRowTilesOf - 1) / P::kRowTilesOf;
  const int64_t tokenBlocks = (job.x.rows + P::kTokens - 1) / P::kTokens;
  job.splits = splitsOf<H, P>(queue, job.x.rows, job.w).count;
  job.wide = job.w.outputs % 8 == 0 && isAligned16(job.result.y);
  const dim3 grid(unsigned(tokenBlocks * job.splits), unsigned(rowBlocks));
  const EarlyLaunch shape(queue, grid, P::kThreads, P::kBytes, job.splits);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, maps, job));
  return AQ_OK;
}

// With the plan of two whose blocks end first; the first has fewer rows to a block.
template <class H, class P, class Q>
int32_t launchBetter(aq_queue* queue, const Batch& job, aq_error* err) {
  const int64_t first = splitsOf<H, P>(queue, job.x.rows, job.w).steps / P::kPhases;
  const int64_t second = splitsOf<H, Q>(queue, job.x.rows, job.w).steps / Q::kPhases;
  return first <= second ? launchPlan<H, P>(queue, job, err) : launchPlan<H, Q>(queue, job, err);
}

template <Format kFormat, class H>
int32_t launchBatch(aq_queue* queue, const Batch& job, aq_error* err) {
  // Two blocks of a multiprocessor, one of which multiplies while the other starts or ends.
  if (job.x.rows <= 16) {
    if constexpr (kFormat == Format::kInt4) {
      // Where blocks as large as a multiprocessor fill all of them once, they need no others.
      using Whole = Plan<kFormat, 16, 4>;
      const int64_t rowBlocks = (job.w.tileRows + Whole::kRowTilesOf - 1) / Whole::kRowTilesOf;
      if (rowBlocks <= queue->multiprocessors && 2 * rowBlocks > queue->multiprocessors)
        return launchPlan<H, Whole>(queue, job, err);
    }
    return launchPlan<H, Plan<kFormat, 16, 2, 2>>(queue, job, err);
  }
  if (job.x.rows <= 32) return launchPlan<H, Plan<kFormat, 32, 2, 2>>(queue, job, err);
  if (job.x.rows <= 64)
    return launchBetter<H, Plan<kFormat, 64, 2>, Plan<kFormat, 64, 1>>(queue, job, err);
  return launchPlan<H, Plan<kFormat, 128, 1>>(queue, job, err);
}

}  // namespace aq::cuda::int4
