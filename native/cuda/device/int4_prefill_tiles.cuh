// int4_prefill_tiles.cuh: the kernel of int4_prefill.cu and fp4_prefill.cu, which says how it works.
#pragma once
#include <cooperative_groups.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/int4_batch.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/launch.h"

namespace aq::cuda::int4 {

template <Format kFormat>
using Prefill = Plan<kFormat, 256, 1>;
inline constexpr int64_t kFixedPrefillTiles =
    3;  // the end of a tile of y costs as much as so many packed tiles

// Tiles of a cluster: one run of tokens, rows of both blocks.
struct Tiling {
  int32_t tokenBlocks, count;
};

inline Tiling tilingOf(int64_t rows, const Weights& w) {
  using P = Prefill<Format::kInt4>;  // the same of all
  constexpr int kClusterRowTiles = P::kSharers * P::kRowTilesOf;
  const int64_t tokenBlocks = (rows + P::kTokens - 1) / P::kTokens;
  const int64_t rowBlocks = (w.tileRows + kClusterRowTiles - 1) / kClusterRowTiles;
  return {int32_t(tokenBlocks), int32_t(std::min<int64_t>(tokenBlocks * rowBlocks, INT32_MAX))};
}

#if defined(AQ_HAS_HOPPER)

// An 8 x 8 matrix of halves over the lanes, lane l with row l / 4 and columns 2 (l % 4) and the next,
// to its transpose.
__device__ inline uint32_t transpose(uint32_t pair) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
  return r;
}

__device__ inline uint32_t pairOf(__nv_bfloat16, float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline uint32_t pairOf(__half, float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

// A warp's 16 outputs of all tokens to y.
template <class H, class P>
__device__ void write(const Batch& job, const Work& work, int rowTile, int lane,
                      const float (&sum)[P::kTokens / 2]) {
  const Result& r = job.result;
  const int g = lane / 4, t = lane % 4, outputs = job.w.outputs;
  const int first = (work.tileRow0 + rowTile) * kTileRows;
  const float factor = P::kIsFloats ? Factors(r).of(r) : 1.0f;
  float bias[2] = {};
  if (r.bias) {
    if (first + g < outputs) bias[0] = loadAs(r.dtype, r.bias, first + g);
    if (first + g + 8 < outputs) bias[1] = loadAs(r.dtype, r.bias, first + g + 8);
  }
#pragma unroll
  for (int j = 0; j < P::kTokens / 8; j++) {
    const int64_t token = int64_t(work.token0) + 8 * j;
    if (token >= job.x.rows) return;
    float v[4];  // rows g and g + 8, two tokens each
#pragma unroll
    for (int i = 0; i < 4; i++)
      v[i] = (P::kIsFloats ? sum[4 * j + i] * factor : sum[4 * j + i]) + bias[i / 2];
    if (r.dtype == AQ_F32) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int64_t at = token + 2 * t + i % 2;
        const int output = first + g + i / 2 * 8;
        if (output < outputs && at < job.x.rows)
          static_cast<float*>(r.y)[at * outputs + output] = v[i];
      }
    } else {
      // Products of an f16 x may be in bf16.
      const bool isHalf = P::kFormat == Format::kMxFp4 && r.dtype == AQ_F16;
      const auto pair = [&](float a, float b) {
        return isHalf ? pairOf(__half(), a, b) : pairOf(H(), a, b);
      };
      const uint32_t pairs[2] = {transpose(pair(v[0], v[1])), transpose(pair(v[2], v[3]))};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int output = first + 8 * half + 2 * t;
        uint16_t* const y = static_cast<uint16_t*>(r.y) + (token + g) * outputs + output;
        if (token + g < job.x.rows && output < outputs) {
          if (job.wide) {
            *reinterpret_cast<uint32_t*>(y) = pairs[half];
          } else {
            y[0] = uint16_t(pairs[half]);
            if (output + 1 < outputs) y[1] = uint16_t(pairs[half] >> 16);
          }
        }
      }
      __syncwarp();
    }
  }
}

#endif  // AQ_HAS_HOPPER

template <class H, class P>
__global__ __launch_bounds__(P::kThreads, 1) void prefillTiles(const __grid_constant__ Maps maps,
                                                               const __grid_constant__ Batch job,
                                                               Tiling tiling) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char raw[];
  const uint32_t start = sharedAddress(raw), memory = (start + 1023) & ~1023u;
  char* const base = raw + (memory - start);
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  const auto cluster = cooperative_groups::this_cluster();
  const auto workOf = [&](int tile) {
    const int rows = (tile / tiling.tokenBlocks * P::kSharers + int(clusterRank()));
    return Work{rows * P::kRowTilesOf, tile % tiling.tokenBlocks * P::kTokens, 0,
                job.w.tiles * P::kUnitsOfTile};
  };
  const int tile0 = blockIdx.x / P::kSharers, stride = gridDim.x / P::kSharers;
  initRing<P>(memory);
  cluster.sync();  // no block may copy to another whose barriers are not set up
  Turn<P::kStages> turn;
  if (warp >= P::kSlots) {
    dropRegisters<P::kFew>();
    if (warp == P::kSlots) {
      const Producer<P> producer{job, maps, memory, lane};
      producer.prefetchFirst(workOf(tile0));
      waitForKernelBefore();
      for (int tile = tile0; tile < tiling.count; tile += stride) producer.run(workOf(tile), turn);
      letNextKernelStart();
    }
  } else {
    raiseRegisters<P::kMany>();
    waitForKernelBefore();
    Consumer<H, P> consumer(memory, base, warp, lane);
    for (int tile = tile0; tile < tiling.count; tile += stride) {
      const Work work = workOf(tile);
      consumer.run(job.w, work, turn);
      write<H, P>(job, work, P::rowTileOf(warp), lane, consumer.sum);
    }
  }
  __syncwarp();
  cluster.sync();  // a block's memory stays until the other one has stopped copying and arriving
#endif
}

template <Format kFormat>
int64_t prefillClusters(const aq_queue* queue) {
  using P = Prefill<kFormat>;
  const auto kernel = prefillTiles<__nv_bfloat16, P>;
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes);
  return std::max<int64_t>(1, clustersAtOnce(queue, reinterpret_cast<const void*>(kernel),
                                             P::kThreads, P::kBytes, P::kSharers));
}

template <Format kFormat, class H>
int32_t launchPrefill(aq_queue* queue, Batch job, aq_error* err) {
  using P = Prefill<kFormat>;
  Maps maps;
  const int32_t code = encodeMaps(&maps, job.x, job.w, P::kBoxesOf, err);
  if (code != AQ_OK) return code;
  const auto kernel = prefillTiles<H, P>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes));
  const Tiling tiling = tilingOf(job.x.rows, job.w);
  job.wide = job.w.outputs % 2 == 0 && reinterpret_cast<uintptr_t>(job.result.y) % 4 == 0;
  const dim3 grid(
      unsigned(std::min<int64_t>(tiling.count, prefillClusters<kFormat>(queue)) * P::kSharers));
  const EarlyLaunch shape(queue, grid, P::kThreads, P::kBytes, P::kSharers);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, maps, job, tiling));
  return AQ_OK;
}

// The steps of 128 columns one after the other that it takes.
template <Format kFormat>
int64_t prefillStepsOf(const aq_queue* queue, int64_t rows, const Weights& w) {
  const int64_t atOnce = prefillClusters<kFormat>(queue);
  return (tilingOf(rows, w).count + atOnce - 1) / atOnce * (w.tiles + kFixedPrefillTiles);
}

}  // namespace aq::cuda::int4
