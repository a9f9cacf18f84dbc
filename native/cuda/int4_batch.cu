// int4_batch: the product of int4_matmul for many rows of x on Hopper (sm_90a): y = x W^T + bias, the
// weights turned into halves in the registers from which the matrix units take them.
//
// Math      y_mo = sum over k of x_mk w_ok, w = round((code - zero) scale) to the type of x, in f32.
// Layout    a block has 256 rows of W, 64 or 128 tokens and a share of k, in steps of 64. A warpgroup
//           brings codes and x by asynchronous copies many steps ahead, x into the swizzled tiles that
//           the matrix units read. Two warpgroups multiply: W is the left operand, whose fragments in
//           registers are what a 16-byte read of the packed codes unpacks to; so weights never go
//           through shared memory as halves, which would cost more of its bandwidth than there is.
//           Blocks that share a tile are a cluster and add their sums through its shared memory.
// Cost      2 M O I flop; O I / 2 bytes of codes once per 128 tokens, mostly from L2; 19 instructions
//           per 8 weights to unpack them, beside the matrix units.
// Roofline  8192 x 8192, 2048 tokens: 278 us at 989 TFLOP/s; 64 tokens: 8.7 us, and 10.5 us for the
//           bytes at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 weights through shared memory: 728 us for 2048 tokens (H100 80GB HBM3, in a CUDA graph;
//           cuBLAS on bf16 weights 341). v2 operands in registers, scales once per step: 535 us, and
//           39 us for 64 tokens (cuBLAS 50): every step took the latency of memory, because the copying
//           threads' fence for the matrix units waits for all their copies. v3 (this): the copies
//           arrive at the barrier by themselves, and the multiplying threads fence.
// Numerics  code - zero is exact; times the scale rounds once, as expand does. Sums of blocks are added
//           in a fixed order.
#include <cooperative_groups.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/int4_batch.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

namespace {

constexpr int kThreads = kProducers + kConsumers;
constexpr int64_t kTilesOfBlock = 4;  // fewer do not pay
constexpr int64_t kFixedTiles = 4;    // start and end of a block cost as much as so many tiles

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

// The block's sums, and those of its cluster, to y: each block finishes a share of the tokens.
template <int kTokens>
__device__ void finish(const Batch& job, float* sums, int rank, int64_t token0, int tileRow0) {
  const auto cluster = cooperative_groups::this_cluster();
  if (job.splits > 1) {
    cluster.sync();
  } else {
    __syncthreads();
  }
  const int live = int(min(int64_t(kTokens), job.x.rows - token0));
  constexpr int kParts = kTileOutputs / 8;
  const int output0 = tileRow0 * kTileRows;
  for (int i = live * rank / job.splits * kParts + int(threadIdx.x);
       i < live * (rank + 1) / job.splits * kParts; i += kThreads) {
    const int n = i / kParts, output = output0 + i % kParts * 8;
    float* const at = sums + n * kSumPitch + i % kParts * 8;
    if (output >= job.w.outputs) continue;
    float v[8] = {};
    for (int r = 0; r < job.splits; r++) {
      const float* const from = job.splits > 1 ? cluster.map_shared_rank(at, r) : at;
      const float4 low = reinterpret_cast<const float4*>(from)[0];
      const float4 high = reinterpret_cast<const float4*>(from)[1];
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
    storeEight(job, token0 + n, output, v);
  }
  if (job.splits > 1) cluster.sync();  // no block may end while its sums are read
}

#endif  // AQ_HAS_HOPPER

template <class H, int kTokens>
__global__ __launch_bounds__(kThreads, 1) void batchTiles(const __grid_constant__ Batch job) {
#if defined(AQ_HAS_HOPPER)
  using R = Room<kTokens>;
  extern __shared__ char raw[];
  const uint32_t start = sharedAddress(raw), memory = (start + 1023) & ~1023u;
  char* const base = raw + (memory - start);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = blockIdx.x % job.splits;
  const int64_t token0 = int64_t(blockIdx.x / job.splits) * kTokens;
  const int tileRow0 = blockIdx.y * kRowTiles16;
  const int begin = 2 * partStart(job.w.tiles, rank, job.splits);
  const int steps = 2 * partStart(job.w.tiles, rank + 1, job.splits) - begin;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kStages; i++) {
      barrierInit(memory + R::kFull + 8 * i, kProducers);
      barrierInit(memory + R::kEmpty + 8 * i, kConsumers / 32);
    }
    barrierInitFence();
  }
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(base);
  if (warp < kProducers / 32) {
    dropRegisters<56>();
    const Producer<H, kTokens> producer{job, memory, tileRow0, begin, int(threadIdx.x), token0};
    producer.run(steps);
    finish<kTokens>(job, sums, rank, token0, tileRow0);
  } else {
    raiseRegisters<224>();
    waitForKernelBefore();
    Consumer<H, kTokens> consumer(memory, base, warp / 4 - 1, warp % 4, lane);
    consumer.run(steps, job.w.groupSteps == 1);
    asm volatile("bar.sync 1, 256;" ::: "memory");  // the ring becomes sums when no one reads it
    consumer.store(sums);
    finish<kTokens>(job, sums, rank, token0, tileRow0);
  }
#endif
}

template <class H, int kTokens>
int32_t launch(aq_queue* queue, Batch job, aq_error* err) {
  const auto kernel = batchTiles<H, kTokens>;
  constexpr int kBytes = Room<kTokens>::kBytes;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int64_t rowBlocks = (job.w.tileRows + kRowTiles16 - 1) / kRowTiles16;
  const int64_t tokenBlocks = (job.x.rows + kTokens - 1) / kTokens;
  job.splits = chooseSplits(queue, reinterpret_cast<const void*>(kernel), kThreads, kBytes,
                            {rowBlocks * tokenBlocks, job.w.tiles, kTilesOfBlock, kFixedTiles});
  job.wide = job.w.outputs % 8 == 0 && isAligned16(job.result.y);
  const dim3 grid(unsigned(tokenBlocks * job.splits), unsigned(rowBlocks));
  const Launch shape(queue, grid, kThreads, kBytes, job.splits);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, job));
  return AQ_OK;
}

template <class H>
int32_t launchFor(aq_queue* queue, const Batch& job, aq_error* err) {
  if (job.x.rows <= 64) return launch<H, 64>(queue, job, err);
  return launch<H, 128>(queue, job, err);
}

}  // namespace

bool fitsBatch(const aq_queue* queue, int64_t rows, const Weights& w) {
  constexpr int64_t kMaxBlocks = 65535;  // of a grid's second dimension
  return queue->computeCapability == 90 && rows > 0 && w.tiles > 0 &&
         (w.tileRows + kRowTiles16 - 1) / kRowTiles16 <= kMaxBlocks;
}

int32_t multiplyBatch(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err) {
  const Batch job = {w, x, y, 1, false};
  if (math == Math::kBf16) return launchFor<__nv_bfloat16>(queue, job, err);
  return launchFor<__half>(queue, job, err);
}

}  // namespace aq::cuda::int4
