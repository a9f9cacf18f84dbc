// int4_batch: the product of int4_matmul for 9 and more rows of x on Hopper (sm_90a): y = x W^T +
// bias, the weights turned into halves in the registers from which the matrix units take them.
//
// Math      as int4_small.cu for up to 64 rows: y_mo = sum over groups of scale_og sum over k in
//           the group of (code_ok - zero_og) x_mk, the inner sum by the matrix units in f32. For
//           more: y_mo = sum over k of x_mk w_ok, w = round((code - zero) scale) to the type of x.
// Layout    a block has 64, 128 or 256 rows of W, 16 to 128 tokens and a share of k. A warp brings
//           steps of 4 x 64 rows of codes and what of x they meet by tensor copies, two to a step,
//           many steps ahead. Four warpgroups multiply, each 64 rows: W is the left operand, whose
//           fragments in registers are what a 16-byte read of the packed codes unpacks to; so
//           weights never go through shared memory as halves. Every block reads x of its share of
//           k from L2, so that its rows are few where tokens are few (then warpgroups divide k)
//           and many where they are many. Blocks that share a tile are a cluster and add their
//           sums through its shared memory. Kernels with more rows still: int4_prefill.cu.
// Cost      2 M O I flop; O I / 2 bytes of codes once per tile of tokens; 11 instructions per 8
//           weights to unpack them (19 above 64 tokens), beside the matrix units and the copies.
// Roofline  8192 x 8192: 10.5 us for the bytes at 3.35 TB/s; 8.7 us for the flop of 64 tokens at
//           989 TFLOP/s (H100 SXM data sheet).
// Versions  v1 weights through shared memory. v2 operands in registers. v3 copies of 16 bytes by a
//           warpgroup: 37.7 us for 64 tokens, 18.8 for 16 with int4_small (H100 80GB HBM3, in a
//           CUDA graph; cuBLAS on bf16 weights 49.2 and 48.4). v4 four warpgroups, one bulk copy
//           for each row tile: 30.3 and 26.8, because a copy takes the warp a hundred cycles to
//           start. v5 one tensor copy for all: 25.5 and 19.1, bound by instructions. v6 (this)
//           scales sums.
// Numerics  code - zero is exact, and so is the product with it; above 64 tokens times the scale
//           rounds once, as expand does. Sums of warpgroups and blocks are added in a fixed order.
#include <cooperative_groups.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/int4_batch.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

namespace {

// In units of 128 columns of a warpgroup: fewer do not pay; a block's start and end cost as much.
constexpr int64_t kLeastUnits = 2, kFixedUnits = 3;

#if defined(AQ_HAS_HOPPER)

// Eight neighbouring results.
__device__ inline void storeEight(const Batch& job, int64_t token, int output, float (&v)[8]) {
  const Result& r = job.result;
  const int64_t at = token * job.w.outputs + output;
  const int live = min(8, job.w.outputs - output);
  if (r.bias) {
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (e < live) v[e] += loadAs(r.dtype, r.bias, output + e);
  }
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
__device__ void finish(const Batch& job, float* sums, int rank, const Work& work) {
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
    storeEight(job, work.token0 + n, output, v);
  }
}

#endif  // AQ_HAS_HOPPER

template <class H, class P>
__global__ __launch_bounds__(P::kThreads, 1) void batchTiles(const __grid_constant__ Maps maps,
                                                             const __grid_constant__ Batch job) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char raw[];
  const uint32_t start = sharedAddress(raw), memory = (start + 1023) & ~1023u;
  char* const base = raw + (memory - start);
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  const int rank = blockIdx.x % job.splits;
  const int firstTile = partStart(job.w.tiles, rank, job.splits);
  const int tiles = partStart(job.w.tiles, rank + 1, job.splits) - firstTile;
  const Work work = {int(blockIdx.y) * P::kRowTilesOf, int(blockIdx.x / job.splits) * P::kTokens,
                     firstTile * P::kUnitsOfTile, tiles * P::kUnitsOfTile};
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
    meet<P>();  // the ring becomes sums when no one reads it
    consumer.store(sums);
    if (job.splits > 1) {
      cluster.sync();
    } else {
      meet<P>();
    }
    finish<P>(job, sums, rank, work);
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
  return chooseSplits(
      queue, reinterpret_cast<const void*>(kernel), P::kThreads, P::kBytes,
      {rowBlocks * tokenBlocks, w.tiles, kLeastUnits * P::kPhases, kFixedUnits * P::kPhases});
}

template <class H, class P>
int32_t launch(aq_queue* queue, Batch job, aq_error* err) {
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
  const Launch shape(queue, grid, P::kThreads, P::kBytes, job.splits);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, maps, job));
  return AQ_OK;
}

// With the plan of two whose blocks end first; the first has fewer rows to a block.
template <class H, class P, class Q>
int32_t launchBetter(aq_queue* queue, const Batch& job, aq_error* err) {
  const int64_t first = splitsOf<H, P>(queue, job.x.rows, job.w).steps / P::kPhases;
  const int64_t second = splitsOf<H, Q>(queue, job.x.rows, job.w).steps / Q::kPhases;
  return first <= second ? launch<H, P>(queue, job, err) : launch<H, Q>(queue, job, err);
}

template <class H>
int32_t launchFor(aq_queue* queue, const Batch& job, aq_error* err) {
  if (job.x.rows <= 16) return launchBetter<H, Plan<16, 4>, Plan<16, 2>>(queue, job, err);
  if (job.x.rows <= 32) return launchBetter<H, Plan<32, 2>, Plan<32, 1>>(queue, job, err);
  if (job.x.rows <= 64) return launchBetter<H, Plan<64, 2>, Plan<64, 1>>(queue, job, err);
  return launch<H, Plan<128, 1>>(queue, job, err);
}

// Whether the device runs a body of these kernels: a build may lack sm_90a. Only the body needs the
// registers of its sums.
bool isBuilt() {
  static const bool built = [] {
    cudaFuncAttributes attributes = {};
    const auto kernel = batchTiles<__nv_bfloat16, Plan<128, 1>>;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.numRegs > 64;
  }();
  return built;
}

}  // namespace

bool fitsBatch(const aq_queue* queue, int64_t rows, const Weights& w) {
  constexpr int64_t kMaxBlocks = 65535;  // of a grid's second dimension
  // Starting takes longer than in multiplySmall, so that few rows need many weights.
  constexpr int64_t kManyTiles = 16384;
  const bool pays =
      rows > kSmallRows || (rows > kFewRows && int64_t(w.tileRows) * w.tiles >= kManyTiles);
  return queue->computeCapability == 90 && pays && w.tiles > 0 &&
         (w.tileRows + 3) / 4 <= kMaxBlocks && isBuilt();
}

int32_t multiplyBatch(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err) {
  if (x.rows > 128 && 10 * prefillSteps(queue, x.rows, w) <
                          11 * splitsOf<__nv_bfloat16, Plan<128, 1>>(queue, x.rows, w).steps)
    return multiplyPrefill(queue, math, x, w, y, err);
  const Batch job = {w, x, y, 1, false};
  if (math == Math::kBf16) return launchFor<__nv_bfloat16>(queue, job, err);
  return launchFor<__half>(queue, job, err);
}

}  // namespace aq::cuda::int4
