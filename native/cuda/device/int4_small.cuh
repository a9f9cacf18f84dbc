// int4_small.cuh: the kernel of int4_small.cu and fp4_small.cu, which says how it works.
#pragma once
#include <cooperative_groups.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/fp4_sums.cuh"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/int4_fetch.cuh"
#include "native/cuda/device/int4_sums.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda::int4 {

inline constexpr int kMaxThreads = 256;
inline constexpr int64_t kTilesOfBlock = 8;  // fewer would leave warps without work
inline constexpr int kEarlyBytes = 65536;    // of a block's weights, before it may start
inline constexpr int32_t kLongTiles = 64;    // of a row, from which on two blocks share it
// Start and end of a block cost as much as so many tiles.
inline constexpr int64_t kFixedTiles = 16;

// What a result has beside its sum, loaded before that is there.
template <Format kFormat>
struct EarlyResult {
  EarlyNumbers<1> bias;
  Factors factors;

  __device__ EarlyResult(const Task& task, int row)
      : bias(task.result.dtype, task.result.bias, row, task.w.outputs), factors(task.result) {}

  __device__ void store(const Task& task, bool scaled, int64_t token, int row, float sum) const {
    const Result& r = task.result;
    if (kFormat != Format::kInt4) sum *= factors.of(r);
    if (scaled) sum *= task.x.scale[token];
    storeAs(r.dtype, r.y, token * task.w.outputs + row, sum + bias.at(r.dtype, 0));
  }
};

template <class S>
__global__ __launch_bounds__(kMaxThreads,
                             S::kBlocks) void multiplyRows(const __grid_constant__ Task task) {
  constexpr int kN = S::kN, kRowTiles = S::kRowTiles, kBlockRows = S::kRows;
  constexpr int kPaddedRows = kBlockRows + 4;  // between tokens of a sum, against bank conflicts
  extern __shared__ __align__(128) char memory[];
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp / S::kSets;
  const int set = S::kSets == 1 ? 0 : threadIdx.x / kWarp / warps;
  const int warp = threadIdx.x / kWarp - set * warps;
  // The warp's pieces are warp, warp + warps, ... of the block's.
  const BlockShare share(task, blockIdx.x, kTileSteps / S::kSteps);
  const int tileRow0 = share.tileRow0, count = share.count;
  const int setTile0 = tileRow0 + set * kRowTiles;
  const int setTiles = min(kRowTiles, share.rowTiles - set * kRowTiles);
  const int64_t token0 = int64_t(blockIdx.y) * S::kTokens;
  const int live = int(min(int64_t(S::kTokens), task.x.rows - token0));

  // The first weights may come as far as L2 while the kernel before still runs; there they are right
  // even if it writes them. All else has to wait for its end.
  if (int(threadIdx.x) < share.rowTiles && count > 0) {
    const int first = share.pieceAt(0);
    const int bytes =
        min((share.begin + count - first) * S::kCodeBytes, kEarlyBytes / S::kBlockTiles / 16 * 16);
    prefetch(task.w.codes + int64_t(tileRow0 + lane) * task.w.tiles * kTileBytes +
                 int64_t(first) * S::kCodeBytes,
             bytes);
  }
  // Tokens that do not exist are zeros in every stage.
  char* const ring = memory + threadIdx.x / kWarp * S::kWarpBytes;
  const uint32_t ringAddress = sharedAddress(ring);
  constexpr int kParts = S::kTokenBytes / 16;
  for (int s = 0; s < S::kStages; s++)
    for (int i = live * kParts + lane; i < S::kTokens * kParts; i += kWarp)
      *reinterpret_cast<uint4*>(ring + s * S::kBytes + S::kX + i * 16) = make_uint4(0, 0, 0, 0);
  const std::conditional_t<S::kIsFloats, FloatFetch<S>, CodeFetch<S>> fetchPiece(
      task, setTile0, setTiles, token0, live, lane);
  [[maybe_unused]] const uint32_t raws = ringAddress + S::kStages * S::kBytes;
  // Piece i, and of floats the scales of the one after it.
  const auto fetch = [&](int i, int s, [[maybe_unused]] int raw) {
    if (i < count) {
      const uint32_t stage = ringAddress + s * S::kBytes;
      if constexpr (S::kIsFloats) {
        fetchPiece(share.pieceAt(i), stage);
        if (i + warps < count)
          fetchPiece.fetchScales(share.pieceAt(i + warps), raws + raw * S::kRawBytes);
      } else {
        fetchPiece(task.w, share.pieceAt(i), stage, lane);
      }
    }
    commitCopies();
  };
  waitForKernelBefore();
  if constexpr (S::kIsFloats) {
    if (warp < count) fetchPiece.fetchScales(share.pieceAt(warp), raws);
  }
  for (int s = 0; s < S::kStages; s++) fetch(warp + s * warps, s, s + 1);

  // Threads in whole runs of the block's rows finish its results, so that each has those of one row.
  const int results = live * kBlockRows, row0 = tileRow0 * kTileRows;
  const int endRow = min(task.w.outputs, row0 + share.rowTiles * kTileRows);
  const int step = int(blockDim.x) / kBlockRows * kBlockRows;
  const bool inCluster = task.splits > 1 && !task.parts, finishes = int(threadIdx.x) < step;
  const int firstResult = inCluster ? results * share.rank / task.splits : 0;
  const EarlyResult<S::kFormat> last(task, row0 + (firstResult + int(threadIdx.x)) % kBlockRows);

  typename SumsOf<S>::Type sums(task.x, token0, lane);
  [[maybe_unused]] const char* const rawRing = ring + S::kStages * S::kBytes;
  [[maybe_unused]] uint32_t* const table =
      reinterpret_cast<uint32_t*>(ring + S::kStages * S::kBytes + S::kRaws * S::kRawBytes);
  if constexpr (S::kIsFloats) {
    waitCopies<S::kStages - 1>();
    __syncwarp();
    sums.makeFactors(rawRing, lane);
    sums.putFactors(table, lane);
  }
  int at = 0;
  [[maybe_unused]] int raw = 0;
  for (int i = warp; i < count; i += warps) {
    waitCopies<S::kStages - 1>();
    __syncwarp();
    if constexpr (S::kIsFloats) {
      const int next = raw + 1 == S::kRaws ? 0 : raw + 1;
      sums.makeFactors(rawRing + next * S::kRawBytes, lane);
      sums.addPiece(ring + at * S::kBytes, table, lane);
      __syncwarp();
      sums.putFactors(table, lane);
      fetch(i + S::kStages * warps, at, raw);
      raw = next;
    } else {
      sums.addPiece(ring + at * S::kBytes, task.w, share.pieceAt(i), lane);
      __syncwarp();
      fetch(i + S::kStages * warps, at, 0);
    }
    if (threadIdx.x < kWarp && i + S::kStages * warps >= count) letNextKernelStart();
    at = at + 1 == S::kStages ? 0 : at + 1;
  }
  waitCopies<0>();
  __syncthreads();  // the ring becomes [warps][tokens][kPaddedRows] sums

  float* const all = reinterpret_cast<float*>(memory);
  constexpr int kWarpSums = S::kTokens * kPaddedRows;
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
    if (S::kSets > 1 && m >= setTiles) break;
#pragma unroll
    for (int n = 0; n < kN; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int token = 8 * n + lane % 4 * 2 + e % 2;
        const int row = (set * kRowTiles + m) * kTileRows + lane / 4 + e / 2 * 8;
        all[warp * kWarpSums + token * kPaddedRows + row] = sums.total[m][n][e];
      }
    }
  }
  __syncthreads();
  for (int i = finishes ? int(threadIdx.x) : results; i < results; i += step) {
    const int token = i / kBlockRows, row = i % kBlockRows;
    float* const sum = all + token * kPaddedRows + row;
    float value = *sum;
    for (int w = 1; w < warps; w++) value += sum[w * kWarpSums];
    if (inCluster) {
      *sum = value;
    } else if (row0 + row < endRow) {
      if (task.parts) {
        task.parts[(share.rank * task.x.rows + token0 + token) * task.w.outputs + row0 + row] =
            value;
      } else {
        last.store(task, S::kMath == Math::kInteger, token0 + token, row0 + row, value);
      }
    }
  }
#if __CUDA_ARCH__ >= 900
  if (!inCluster) return;
  // Each block of the cluster finishes a share of the sums.
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  const int endOfResults = finishes ? results * (share.rank + 1) / task.splits : 0;
  for (int i = firstResult + int(threadIdx.x); i < endOfResults; i += step) {
    const int token = i / kBlockRows, row = i % kBlockRows;
    float* const sum = all + token * kPaddedRows + row;
    float value = 0;
    for (int r = 0; r < task.splits; r++) value += *cluster.map_shared_rank(sum, r);
    if (row0 + row < endRow)
      last.store(task, S::kMath == Math::kInteger, token0 + token, row0 + row, value);
  }
  cluster.sync();  // no block may end while its sums are read
#endif
}

// Adds the parts of blocks that share rows, where there are no clusters.
template <Format kFormat>
__global__ __launch_bounds__(kMaxThreads) void addParts(const __grid_constant__ Task task,
                                                        bool scaled) {
  const int64_t count = task.x.rows * task.w.outputs;
  const int64_t i = int64_t(blockIdx.x) * kMaxThreads + threadIdx.x;
  if (i >= count) return;
  float value = task.parts[i];
  for (int r = 1; r < task.splits; r++) value += task.parts[r * count + i];
  const int row = int(i % task.w.outputs);
  EarlyResult<kFormat>(task, row).store(task, scaled, i / task.w.outputs, row, value);
}

// Row tiles of a block where each multiprocessor has one.
inline int64_t fittingTiles(const aq_queue* queue, const Weights& w) {
  return (w.tileRows + queue->multiprocessors - 1) / queue->multiprocessors;
}

inline int32_t ask(const aq_queue* queue, cudaDeviceAttr attribute, int* value, aq_error* err) {
  CUDA_CHECK(cudaDeviceGetAttribute(value, attribute, queue->device));
  return AQ_OK;
}

template <class S>
int32_t launchSmall(aq_queue* queue, Task task, aq_error* err) {
  constexpr int kPaddedRows = S::kRows + 4;
  const auto kernel = multiplyRows<S>;
  int limit = 0, all = 0;
  if (ask(queue, cudaDevAttrMaxSharedMemoryPerBlockOptin, &limit, err) != AQ_OK ||
      ask(queue, cudaDevAttrMaxSharedMemoryPerMultiprocessor, &all, err) != AQ_OK)
    return err->code;
  int warps = kMaxThreads / kWarp;
  while (warps / 2 * kWarp >= S::kRows && warps * S::kWarpBytes > limit) warps /= 2;
  const int sumBytes = warps / S::kSets * S::kTokens * kPaddedRows * int(sizeof(float));
  int bytes = std::max(warps * S::kWarpBytes, sumBytes);
  const int64_t fit = fittingTiles(queue, task.w);
  const int64_t rowTiles = S::kSets == 1 ? S::kBlockTiles : std::min<int64_t>(fit, S::kBlockTiles);
  const int64_t rowBlocks = (task.w.tileRows + rowTiles - 1) / rowTiles;
  const int64_t tokenBlocks = (task.x.rows + S::kTokens - 1) / S::kTokens;
  const bool overlaps = queue->computeCapability >= 90;
  // Half of it keeps a second block off the multiprocessor. Blocks of a kernel that starts before the one
  // in front has left would else sit together where there was room first.
  if (overlaps && S::kN == 1 && !S::kIsFloats && rowBlocks <= queue->multiprocessors)
    bytes = std::max(bytes, std::min(all / 2, limit));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  // Else no kernel behind it that needs shared memory (cached_attention) has room beside its blocks.
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));

  task.rowBlocks = int32_t(rowBlocks);
  task.splits = chooseSplits(queue, reinterpret_cast<const void*>(kernel), warps * kWarp, bytes,
                             {.blocks = rowBlocks * tokenBlocks,
                              .tiles = task.w.tiles,
                              .least = kTilesOfBlock,
                              .fixed = kFixedTiles,
                              .atOnce = 1})
                    .count;
  Scratch scratch(queue);
  if (task.splits > 1 && !overlaps) {
    const int64_t sums = task.splits * task.x.rows * task.w.outputs;
    const int32_t code = scratch.allocate(uint64_t(sums) * sizeof(float), "int4_matmul", err);
    if (code != AQ_OK) return code;
    task.parts = scratch.at<float>();
  }
  const dim3 grid(unsigned(rowBlocks * task.splits), unsigned(tokenBlocks));
  const EarlyLaunch shape(queue, grid, warps * kWarp, bytes, overlaps ? task.splits : 1);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, task));
  if (task.parts) {
    const int64_t count = task.x.rows * task.w.outputs;
    addParts<S::kFormat>
        <<<unsigned((count + kMaxThreads - 1) / kMaxThreads), kMaxThreads, 0, queue->stream>>>(
            task, S::kMath == Math::kInteger);
    LAUNCH_CHECK("int4_matmul (sum of parts)");
  }
  return AQ_OK;
}

// For up to 8 rows of x: one block a multiprocessor, with as many rows as that takes, or with four row
// tiles and shared ones.
template <Format kFormat, Math kMath>
int32_t launchFew(aq_queue* queue, const Task& task, aq_error* err) {
  const int64_t fit = fittingTiles(queue, task.w);
  if constexpr (kFormat == Format::kInt4 && kMath != Math::kInteger) {
    // Pieces of whole tiles take fewer instructions, and most of a multiprocessor's shared memory.
    using Few = Stage<kFormat, kMath, 1, 2, kTileSteps>;
    using Many = Stage<kFormat, kMath, 1, 6, kTileSteps, 12>;
    int limit = 0;
    if (ask(queue, cudaDevAttrMaxSharedMemoryPerBlockOptin, &limit, err) != AQ_OK) return err->code;
    const bool fits = kMaxThreads / kWarp * std::max(Few::kWarpBytes, Many::kWarpBytes) <= limit;
    if (fits && fit <= 2) return launchSmall<Few>(queue, task, err);
    if (fits && fit > 8 && fit <= Many::kBlockTiles) return launchSmall<Many>(queue, task, err);
  }
  if (fit <= 2 && task.w.tiles <= kLongTiles)
    return launchSmall<Stage<kFormat, kMath, 1, 2>>(queue, task, err);
  if constexpr (kFormat == Format::kInt4) {
    if (fit == 3) return launchSmall<Stage<kFormat, kMath, 1, 3>>(queue, task, err);
    if (fit == 5 || fit == 6) return launchSmall<Stage<kFormat, kMath, 1, 6>>(queue, task, err);
  }
  return launchSmall<Stage<kFormat, kMath, 1, 4>>(queue, task, err);
}

template <Format kFormat, Math kMath>
int32_t launchSmallFor(aq_queue* queue, const Task& task, aq_error* err) {
  if (task.x.rows <= 8) return launchFew<kFormat, kMath>(queue, task, err);
  if (task.x.rows <= 16) return launchSmall<Stage<kFormat, kMath, 2, 4>>(queue, task, err);
  return launchSmall<Stage<kFormat, kMath, 4, 4>>(queue, task, err);
}

}  // namespace aq::cuda::int4
