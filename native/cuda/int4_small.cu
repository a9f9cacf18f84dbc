// int4_small: the product of int4_matmul for few rows of x (decoding): y = x W^T + bias in one pass
// over the packed weights.
//
// Math      y_mo = sum over groups of scale_og sum over k in the group of (code_ok - zero_og) x_mk, the
//           inner sum by the matrix units in f32; integer: x_mk = (c_mk - z_m) s_m, and
//           sum (code - zero)(c - z) = sum code c - z sum code - zero sum c + zero z n, exact in i32.
// Layout    a block has 64 rows of W (4 row tiles) and a share of the columns; its warps take pieces of
//           64 columns in turn, so that they read neighbouring memory. Every warp has a ring of stages
//           in shared memory, filled by 16-byte asynchronous copies and never shared: no barrier stands
//           in the loop. Codes lie in the order of the operands. W is the 16-row operand and x the
//           8-column one, so that 1 to 8 rows of x cost one instruction. Warps are summed through
//           shared memory, blocks that share rows through that of their cluster (before sm_90: through
//           scratch). A block fits twice into a multiprocessor, so that the next kernel's first
//           weights are on their way before this one has ended (sm_90).
// Cost      reads each weight once: O I / 2 bytes of codes, 3 per row and group; x from L2.
// Roofline  8192 x 8192, groups of 128, 1 row: 35.1 MB -> 10.5 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 one block per multiprocessor, deeper rings, a subtraction per weight. Measured on an H100
//           80GB HBM3, weights rotated, in a CUDA graph: 16.5 us for 1 row, 17.0 for 8, 18.1 for 16
//           (72, 70 and 66 % of the bandwidth of a copy; cuBLAS on bf16 weights 47.5, 48.1, 48.4).
//           v2 two blocks, the next kernel let in at the start: 16.8, 17.6, 19.8, because it then brings
//           its first weights too early to fill the gap between the two. v3 (this) lets it in when the
//           last loads are under way.
// Numerics  codes enter the product as whole numbers, exact; scales multiply f32 sums of 32 or 64
//           products. Sums of warps and blocks are added in a fixed order.
#include <cooperative_groups.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/int4_sums.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/scratch.h"

namespace aq::cuda::int4 {

namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;
constexpr int kBlockRows = kRowTiles * kTileRows;  // 64
constexpr int kPaddedRows = kBlockRows + 4;  // between tokens of a sum, against bank conflicts
constexpr int64_t kTilesOfBlock = 8;         // fewer would leave warps without work
constexpr int kEarlyBytes = 16384;           // of a row tile, before the block may start
constexpr int64_t kFixedTiles = 16;  // start and end of a block cost as much as so many tiles

struct Task {
  Weights w;
  Activations x;
  Result result;
  float* parts;  // [splits][rows][outputs] where there are no clusters, else null
  int32_t splits;
};

// Starts the copies of the codes and grids of a piece into a stage; all lanes of a warp.
template <class S>
__device__ void fetchWeights(const Weights& w, int tileRow0, int piece, uint32_t stage, int lane) {
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
    const int64_t tileRow = min(tileRow0 + m, w.tileRows - 1);
    copyAsync16(stage + m * kPieceBytes + lane * 16, w.codes + tileRow * w.tiles * kTileBytes +
                                                         int64_t(piece) * kPieceBytes + lane * 16);
  }
  // Three parts of 16 bytes per row tile and group; steps beyond the last group are padding.
  const int groups = w.groupSteps == 1 ? 2 : 1;
  if (lane >= kRowTiles * 3 * groups) return;
  const int j = lane % groups, m = lane / groups / 3, part = lane / groups % 3;
  const int64_t group = min(w.firstGroup(piece * kPieceSteps) + j, w.groups - 1);
  const int64_t slot = (int64_t(min(tileRow0 + m, w.tileRows - 1)) * w.groups + group) * kTileRows;
  if (part < 2) {
    copyAsync16(stage + S::kScale + (m * kPieceSteps + j) * S::kScaleBytes + part * 16,
                w.scale + slot + part * 8);
  } else {
    copyAsync16(stage + S::kZero + (m * kPieceSteps + j) * S::kZeroBytes, w.zero + slot);
  }
}

// Starts the copies of the columns of x that meet it.
template <class S>
__device__ void fetchX(const Task& task, int64_t token0, int live, int piece, uint32_t stage,
                       int lane) {
  constexpr int kParts = S::kTokenBytes / 16, kElement = S::kTokenBytes / kPieceColumns;
  // Codes have zeros up to whole tiles; halves end with the columns.
  const int columns = kElement == 1 ? task.w.tiles * kTileColumns : task.w.inputs;
  const int left = (columns - piece * kPieceColumns) * kElement;
  const char* const x = static_cast<const char*>(task.x.data) +
                        (token0 * task.x.ld + int64_t(piece) * kPieceColumns) * kElement;
#pragma unroll
  for (int j = 0; j < S::kTokens * kParts / kWarp; j++) {
    const int i = j * kWarp + lane, n = i / kParts, part = i % kParts;
    const int bytes = max(0, min(16, left - part * 16));
    if (n < live)
      copyAsync16(stage + S::xByte(n, part),
                  x + n * task.x.ld * kElement + (bytes > 0 ? part * 16 : 0), bytes);
  }
}

__device__ inline void storeResult(const Task& task, bool scaled, int64_t token, int row,
                                   float sum) {
  if (scaled) sum *= task.x.scale[token];
  const Result& r = task.result;
  if (r.bias) sum += loadAs(r.dtype, r.bias, row);
  storeAs(r.dtype, r.y, token * task.w.outputs + row, sum);
}

template <Math kMath, int kN>
__global__ __launch_bounds__(kMaxThreads, Stage<kMath, kN>::kBlocks) void multiplyRows(
    const __grid_constant__ Task task) {
  using S = Stage<kMath, kN>;
  extern __shared__ __align__(128) char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const int rank = blockIdx.x % task.splits, tileRow0 = blockIdx.x / task.splits * kRowTiles;
  const int64_t token0 = int64_t(blockIdx.y) * S::kTokens;
  const int live = int(min(int64_t(S::kTokens), task.x.rows - token0));

  // The warp's pieces are warp, warp + warps, ... of the block's, which begin elsewhere in every
  // block: all blocks read all of x, and not the same part at the same time.
  const int begin = 2 * partStart(task.w.tiles, rank, task.splits);
  const int count = 2 * partStart(task.w.tiles, rank + 1, task.splits) - begin;
  const int shift = count > 0 ? int(blockIdx.x * 5u % unsigned(count)) : 0;
  const auto pieceAt = [&](int i) {
    const int piece = i + shift;
    return begin + (piece < count ? piece : piece - count);
  };

  // The first weights may come as far as L2 while the kernel before still runs; there they are right
  // even if it writes them. All else has to wait for its end.
  if (warp == 0 && lane < kRowTiles && count > 0) {
    const int first = pieceAt(0), bytes = min((begin + count - first) * kPieceBytes, kEarlyBytes);
    const int64_t tileRow = min(tileRow0 + lane, task.w.tileRows - 1);
    prefetch(task.w.codes + tileRow * task.w.tiles * kTileBytes + int64_t(first) * kPieceBytes,
             bytes);
  }
  // Tokens that do not exist are zeros in every stage.
  char* const ring = memory + warp * S::kStages * S::kBytes;
  const uint32_t ringAddress = sharedAddress(ring);
  constexpr int kParts = S::kTokenBytes / 16;
  for (int s = 0; s < S::kStages; s++)
    for (int i = live * kParts + lane; i < S::kTokens * kParts; i += kWarp)
      *reinterpret_cast<uint4*>(ring + s * S::kBytes + S::kX + i * 16) = make_uint4(0, 0, 0, 0);
  const auto fetch = [&](int i, int s) {
    if (i < count) {
      const uint32_t stage = ringAddress + s * S::kBytes;
      fetchWeights<S>(task.w, tileRow0, pieceAt(i), stage, lane);
      fetchX<S>(task, token0, live, pieceAt(i), stage, lane);
    }
    commitCopies();
  };
  waitForKernelBefore();
  for (int s = 0; s < S::kStages; s++) fetch(warp + s * warps, s);

  typename SumsOf<kMath, kN>::Type sums(task.x, token0, lane);
  int at = 0;
  for (int i = warp; i < count; i += warps) {
    waitCopies<S::kStages - 1>();
    __syncwarp();
    sums.addPiece(ring + at * S::kBytes, task.w, pieceAt(i), lane);
    __syncwarp();
    fetch(i + S::kStages * warps, at);
    if (warp == 0 && i + S::kStages * warps >= count) letNextKernelStart();
    at = at + 1 == S::kStages ? 0 : at + 1;
  }
  waitCopies<0>();
  __syncthreads();  // the ring becomes [warps][tokens][kPaddedRows] sums

  float* const all = reinterpret_cast<float*>(memory);
  constexpr int kWarpSums = S::kTokens * kPaddedRows;
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
    for (int n = 0; n < kN; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int token = 8 * n + lane % 4 * 2 + e % 2;
        const int row = m * kTileRows + lane / 4 + e / 2 * 8;
        all[warp * kWarpSums + token * kPaddedRows + row] = sums.total[m][n][e];
      }
    }
  }
  __syncthreads();
  const int results = live * kBlockRows;
  const int row0 = tileRow0 * kTileRows;
  const bool inCluster = task.splits > 1 && !task.parts;
  for (int i = threadIdx.x; i < results; i += blockDim.x) {
    const int token = i / kBlockRows, row = i % kBlockRows;
    float* const sum = all + token * kPaddedRows + row;
    float value = *sum;
    for (int w = 1; w < warps; w++) value += sum[w * kWarpSums];
    if (inCluster) {
      *sum = value;
    } else if (row0 + row < task.w.outputs) {
      if (task.parts) {
        task.parts[(rank * task.x.rows + token0 + token) * task.w.outputs + row0 + row] = value;
      } else {
        storeResult(task, kMath == Math::kInteger, token0 + token, row0 + row, value);
      }
    }
  }
#if __CUDA_ARCH__ >= 900
  if (!inCluster) return;
  // Each block of the cluster finishes a share of the sums.
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  for (int i = results * rank / task.splits + int(threadIdx.x);
       i < results * (rank + 1) / task.splits; i += blockDim.x) {
    const int token = i / kBlockRows, row = i % kBlockRows;
    float* const sum = all + token * kPaddedRows + row;
    float value = 0;
    for (int r = 0; r < task.splits; r++) value += *cluster.map_shared_rank(sum, r);
    if (row0 + row < task.w.outputs)
      storeResult(task, kMath == Math::kInteger, token0 + token, row0 + row, value);
  }
  cluster.sync();  // no block may end while its sums are read
#endif
}

// Adds the parts of blocks that share rows, where there are no clusters.
__global__ __launch_bounds__(kMaxThreads) void addParts(const __grid_constant__ Task task,
                                                        bool scaled) {
  const int64_t count = task.x.rows * task.w.outputs;
  const int64_t i = int64_t(blockIdx.x) * kMaxThreads + threadIdx.x;
  if (i >= count) return;
  float value = task.parts[i];
  for (int r = 1; r < task.splits; r++) value += task.parts[r * count + i];
  storeResult(task, scaled, i / task.w.outputs, int(i % task.w.outputs), value);
}

template <Math kMath, int kN>
int32_t launch(aq_queue* queue, Task task, aq_error* err) {
  using S = Stage<kMath, kN>;
  const auto kernel = multiplyRows<kMath, kN>;
  int limit = 0;
  CUDA_CHECK(
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device));
  int warps = kMaxThreads / kWarp;
  while (warps > 1 && warps * S::kStages * S::kBytes > limit) warps /= 2;
  const int sumBytes = warps * S::kTokens * kPaddedRows * int(sizeof(float));
  const int bytes = std::max(warps * S::kStages * S::kBytes, sumBytes);
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));

  const int64_t rowBlocks = (task.w.tileRows + kRowTiles - 1) / kRowTiles;
  const int64_t tokenBlocks = (task.x.rows + S::kTokens - 1) / S::kTokens;
  task.splits = chooseSplits(queue, reinterpret_cast<const void*>(kernel), warps * kWarp, bytes,
                             {rowBlocks * tokenBlocks, task.w.tiles, kTilesOfBlock, kFixedTiles})
                    .count;
  const bool clusters = queue->computeCapability >= 90;
  Scratch scratch(queue);
  if (task.splits > 1 && !clusters) {
    const int64_t sums = task.splits * task.x.rows * task.w.outputs;
    const int32_t code = scratch.allocate(uint64_t(sums) * sizeof(float), "int4_matmul", err);
    if (code != AQ_OK) return code;
    task.parts = scratch.at<float>();
  }
  const dim3 grid(unsigned(rowBlocks * task.splits), unsigned(tokenBlocks));
  const Launch shape(queue, grid, warps * kWarp, bytes, clusters ? task.splits : 1);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, task));
  if (task.parts) {
    const int64_t count = task.x.rows * task.w.outputs;
    addParts<<<unsigned((count + kMaxThreads - 1) / kMaxThreads), kMaxThreads, 0, queue->stream>>>(
        task, kMath == Math::kInteger);
    LAUNCH_CHECK("int4_matmul (sum of parts)");
  }
  return AQ_OK;
}

template <Math kMath>
int32_t launchFor(aq_queue* queue, const Task& task, aq_error* err) {
  if (task.x.rows <= 8) return launch<kMath, 1>(queue, task, err);
  if (task.x.rows <= 16) return launch<kMath, 2>(queue, task, err);
  return launch<kMath, 4>(queue, task, err);
}

}  // namespace

int32_t multiplySmall(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err) {
  const Task task = {w, x, y, nullptr, 1};
  switch (math) {
    case Math::kBf16:
      return launchFor<Math::kBf16>(queue, task, err);
    case Math::kF16:
      return launchFor<Math::kF16>(queue, task, err);
    default:
      return launchFor<Math::kInteger>(queue, task, err);
  }
}

}  // namespace aq::cuda::int4
