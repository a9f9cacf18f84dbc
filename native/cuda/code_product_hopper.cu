// code_product_hopper: the exact product of int8 codes on Hopper's tensor cores, scaled as it is
// written.
//
// Math      c_ij = (sum over k of (a_ik - za_i) (b_jk - zb_j)) sa_i sb_j + bias_j (+ c_ij).
// Layout    tiles of 128 x 256 of C. A block is one warpgroup that keeps the bulk tensor copies
//           going, 128 bytes of k a stage, and two that multiply, 64 rows each, with the sums in
//           registers. Blocks stay and take tiles in turn, so that the next tile's copies run while
//           this one is scaled and written; a last round that would be less than half full has
//           tiles of half the width. Two blocks of a cluster share their columns: each copies half
//           of B to both.
// Cost      2 m n k integer operations; codes read from L2 once per 256 rows or columns.
// Roofline  int8 tensor cores: 69 Gop -> 35 us at 1979 Top/s (H100 SXM data sheet). Measured for
//           2048 x 4096 x 4096, H100 80GB HBM3, driver 580: 52 us = 1320 Top/s (cuBLASLt to
//           unscaled i32: 55 us); 2048 x 11008 x 4096: 147 us; 2048 x 4096 x 11008: 129 us. Inside:
//           twice 19 us of products, which is the unit's rate, and the writing, which all blocks do
//           at the same time.
// Versions  v1 cluster-wide ordering at every barrier, which empties L1: 82 us; v2 block-wide: 57
//           us; v3 what scaling needs fetched under the products, nothing jumped over while writing
//           (this; with branches for type and bounds 71 us). Tried without gain: clusters of 1 (69
//           us) and of 2 x 2 (77 us, only 30 of them fit), rows written 128 bytes at a time, half
//           of the clusters half a tile behind (58 us).
// Numerics  exact up to the scaling in f32.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/code_product.h"
#include "native/cuda/device/code_epilogue.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

constexpr int kRows = 128;       // of C of a tile
constexpr int kCols = 256;       // of C of a tile; half of it of a narrow one
constexpr int kStepBytes = 128;  // of k a stage
constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumers = 2;    // warpgroups that multiply
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kCluster = 2;      // blocks, one above the other, that share columns
constexpr int kBoxColumns = 64;  // of B copied at once; a narrow tile's share of a block
constexpr int kBoxBytes = kBoxColumns * kStepBytes;

constexpr int kStages = 4;
constexpr int kBytesA = kRows * kStepBytes;
constexpr int kStageBytes = kBytesA + kCols / kBoxColumns * kBoxBytes;
constexpr int kColumnsAt = kStages * kStageBytes;
constexpr int kAlignment = 1024;  // of the stages; the swizzle is by address
constexpr int kSharedBytes = kColumnsAt + int(2 * sizeof(CodeColumns)) + kAlignment;
static_assert(kCols == CodeColumns::kMost && kCols / 2 == kCluster * kBoxColumns);

// Tiles as clusters take them in turn, each the rows of all its blocks high. The last ones, which
// would fill less than half a round of clusters, are taken as two narrow tiles each.
struct Tiling {
  int64_t rows, cols;  // of whole tiles
  int64_t whole;       // so many are taken whole
  int64_t count;       // of turns
};

struct Tile {
  int64_t row;  // in tiles
  int64_t col;  // of C
  bool isNarrow;
};

#if defined(AQ_HAS_HOPPER)

// Tiles are numbered down the columns of groups of a few rows of tiles, so that those worked on at
// the same time share operands in L2.
__device__ inline Tile placeTile(const Tiling& tiling, int64_t turn) {
  constexpr int64_t kGroup = 8;
  const bool isNarrow = turn >= tiling.whole;
  const int64_t beyond = turn - tiling.whole;
  const int64_t tile = isNarrow ? tiling.whole + beyond / 2 : turn;
  const int64_t group = tile / (kGroup * tiling.cols), first = group * kGroup;
  const int64_t high = tiling.rows - first < kGroup ? tiling.rows - first : kGroup;
  const int64_t within = tile - first * tiling.cols;
  const int64_t half = isNarrow ? beyond % 2 * (kCols / 2) : 0;
  return {first + within % high, within / high * kCols + half, isNarrow};
}

using Turn = cuda::Turn<kStages>;

// The barrier of the multiplying warpgroups; returns whether any of them brought a true value.
__device__ inline bool meetConsumers(bool mine) {
  uint32_t any;
  asm volatile(
      "{ .reg .pred p, q; setp.ne.u32 p, %1, 0;"
      "barrier.cta.red.or.pred q, 1, %2, p;"
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(any)
      : "r"(uint32_t(mine)), "n"(kConsumers * kWarpgroup)
      : "memory");
  return any != 0;
}

// Tells the blocks that copy into this one's stages (all of its cluster) that a stage may be filled
// again; called by a whole warpgroup.
__device__ inline void releaseStage(uint32_t empty, int thread) {
  if (thread < kCluster) barrierArriveAt(empty, uint32_t(thread));
}

__device__ void copyTiles(const CUtensorMap* mapA, const CUtensorMap* mapB, const CodeProduct& p,
                          const Tiling& tiling, uint32_t shared, uint32_t barriers) {
  const uint32_t rank = clusterRank();
  const int64_t steps = (p.a.pitch + kStepBytes - 1) / kStepBytes;
  Turn turn;
  for (int64_t taken = blockIdx.x / kCluster; taken < tiling.count; taken += gridDim.x / kCluster) {
    const Tile tile = placeTile(tiling, taken);
    if (tile.col >= p.n) continue;
    const int boxes = tile.isNarrow ? 1 : 2;  // of B, this block's
    const int32_t row = int32_t((tile.row * kCluster + rank) * kRows);
    const int32_t col = int32_t(tile.col) + int32_t(rank) * boxes * kBoxColumns;
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t full = barriers + turn.stage * 8;
      const uint32_t empty = full + kStages * 8;
      const uint32_t a = shared + turn.stage * kStageBytes;
      const uint32_t b = a + kBytesA + rank * boxes * kBoxBytes;
      const int32_t k = int32_t(step * kStepBytes);
      barrierWait(empty, turn.parity ^ 1);  // passes at once in the first round
      barrierExpect(full, uint32_t(kBytesA + kCluster * boxes * kBoxBytes));
      copyBox(a, mapA, full, k, row);
      for (int i = 0; i < boxes; i++)
        copyBoxToAll(b + i * kBoxBytes, mapB, full, k, col + i * kBoxColumns, (1 << kCluster) - 1);
    }
  }
}

// A tile of kN columns: its sums, then what they stand for. kMayLeave: zero points may be left
// over.
template <int kN, bool kMayLeave>
__device__ void multiplyTile(const CodeProduct& p, const Tile& tile, Turn& turn, uint32_t shared,
                             uint32_t barriers, CodeColumns& columns) {
  const int64_t steps = (p.a.pitch + kStepBytes - 1) / kStepBytes;
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const int thread = int(threadIdx.x) % kWarpgroup;
  const int64_t row = (tile.row * kCluster + clusterRank()) * kRows + consumer * 64 +
                      thread / 32 * 16 + thread % 32 / 4;
  // What scaling needs is under way while the products run. A thread fetches one column.
  static_assert(kN <= kConsumers * kWarpgroup);
  const int mine = consumer * kWarpgroup + thread;
  CodeRow rows[2] = {}, column = {};
  float bias = 0;
  for (int half = 0; half < 2; half++) {
    if (row + half * 8 < p.m) rows[half] = codeRowOf(p.a, row + half * 8);
  }
  if (mine < kN && tile.col + mine < p.n) {
    column = codeRowOf(p.b, tile.col + mine);
    if (p.bias) bias = p.bias[tile.col + mine];
  }

  int32_t sum[kN / 2];
  int last = 0;  // the stage of the step before
  for (int64_t step = 0; step < steps; step++, turn.next()) {
    const uint32_t full = barriers + turn.stage * 8;
    const uint32_t a = shared + turn.stage * kStageBytes;
    const uint64_t descA = tileDescriptor(a + consumer * 64 * kStepBytes);
    const uint64_t descB = tileDescriptor(a + kBytesA);
    barrierWait(full, turn.parity);
    wgmmaFence();
#pragma unroll
    for (int part = 0; part < kStepBytes / 32; part++) {
      wgmmaCodes<kN>(sum, descA + 2 * part, descB + 2 * part, step > 0 || part > 0);
    }
    wgmmaCommit();
    if (step > 0) {
      // The products of the step before are done: its stage may be filled again, in both blocks.
      wgmmaWait<1>();
      releaseStage(barriers + (kStages + last) * 8, thread);
    }
    last = turn.stage;
  }
  wgmmaWait<0>();
  fenceSums(sum);
  releaseStage(barriers + (kStages + last) * 8, thread);

  if (mine < kN) columns.set(mine, column, bias);
  bool isLeft = false;
  if constexpr (kMayLeave) {
    isLeft = meetConsumers((rows[0].zero | rows[1].zero | column.zero) != 0);
  } else {
    meetConsumers(false);
  }
  writeSums<kN, kMayLeave>(sum, p, columns, rows, isLeft, row, tile.col);
}

template <bool kMayLeave>
__device__ void multiplyTiles(const CodeProduct& p, const Tiling& tiling, uint32_t shared,
                              uint32_t barriers, CodeColumns* columns) {
  Turn turn;
  int place = 0;
  for (int64_t taken = blockIdx.x / kCluster; taken < tiling.count; taken += gridDim.x / kCluster) {
    const Tile tile = placeTile(tiling, taken);
    if (tile.col >= p.n) continue;
    // The last tile's columns may still be read, those before them are not: two places take turns.
    place ^= 1;
    if (tile.isNarrow) {
      multiplyTile<kCols / 2, kMayLeave>(p, tile, turn, shared, barriers, columns[place]);
    } else {
      multiplyTile<kCols, kMayLeave>(p, tile, turn, shared, barriers, columns[place]);
    }
  }
}

#endif  // AQ_HAS_HOPPER

template <bool kMayLeave>
__global__ __launch_bounds__(kThreads, 1) void codeTiles(const __grid_constant__ CUtensorMap mapA,
                                                         const __grid_constant__ CUtensorMap mapB,
                                                         const CodeProduct p, const Tiling tiling) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char memory[];
  // Full, then empty, of every stage.
  __shared__ uint64_t barrierMemory[2 * kStages];
  const uint32_t barriers = sharedAddress(barrierMemory);
  const uint32_t start = sharedAddress(memory);
  const uint32_t shared = (start + kAlignment - 1) / kAlignment * kAlignment;
  auto* const columns = reinterpret_cast<CodeColumns*>(memory + (shared - start) + kColumnsAt);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      barrierInit(barriers + i * 8, 1);
      barrierInit(barriers + (kStages + i) * 8, kConsumers * kCluster);
    }
    barrierInitFence();
    prefetchMap(&mapA);
    prefetchMap(&mapB);
  }
  waitForKernelBefore();
  clusterSync();
  if (threadIdx.x / kWarpgroup == 0) {
    dropRegisters<40>();
    if (threadIdx.x == 0) copyTiles(&mapA, &mapB, p, tiling, shared, barriers);
  } else {
    raiseRegisters<232>();
    multiplyTiles<kMayLeave>(p, tiling, shared, barriers, columns);
  }
  // A block's shared memory stays until the other one has stopped copying and arriving.
  __syncwarp();
  clusterSync();
#endif
}

Tiling tilingOf(const CodeProduct& p, int64_t clusters) {
  constexpr int64_t kHigh = kRows * kCluster;
  Tiling t = {(p.m + kHigh - 1) / kHigh, (p.n + kCols - 1) / kCols, 0, 0};
  const int64_t tiles = t.rows * t.cols, rest = tiles % clusters;
  const int64_t cut = 2 * rest <= clusters ? rest : 0;
  t.whole = tiles - cut;
  t.count = t.whole + 2 * cut;
  return t;
}

// Whether the kernel that this device runs has a body: a build may lack sm_90a. Only the body has
// shared memory of a fixed size.
bool isBuilt() {
  static const bool built = [] {
    cudaFuncAttributes attributes = {};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, codeTiles<false>);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.sharedSizeBytes > 0;
  }();
  return built;
}

}  // namespace

bool fitsHopper(const aq_queue* queue, const CodeProduct& p) {
  // Tiles are too high for a few rows.
  constexpr int64_t kFewRows = 64;
  const bool isAligned = p.a.pitch == p.b.pitch && p.a.pitch % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(p.a.codes) % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(p.b.codes) % 16 == 0;
  return queue->computeCapability == 90 && isAligned && p.m > kFewRows && p.m <= INT32_MAX / 2 &&
         p.n <= INT32_MAX / 2 && isBuilt();
}

int32_t codeProductHopper(aq_queue* queue, const CodeProduct& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  const int64_t pitch = p.a.pitch;
  if (byteMatrixMap(&mapA, p.a.codes, p.m, pitch, pitch, kRows, err) != AQ_OK) return err->code;
  if (byteMatrixMap(&mapB, p.b.codes, p.n, pitch, pitch, kBoxColumns, err) != AQ_OK)
    return err->code;
  const int64_t most = queue->multiprocessors / kCluster;
  const Tiling tiling = tilingOf(p, most);
  const auto kernel = p.a.rows || p.b.rows ? codeTiles<true> : codeTiles<false>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  // The blocks set themselves up while the codes are still being made.
  const dim3 blocks(unsigned(std::min(tiling.count, most) * kCluster));
  const EarlyLaunch launch(queue, blocks, kThreads, kSharedBytes, kCluster);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, mapA, mapB, p, tiling));
  return AQ_OK;
}

}  // namespace aq::cuda
