// bf16_product: dense products of bf16 matrices on Hopper's tensor cores, with room beside them.
#include "native/cuda/bf16_product.h"

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/bf16_epilogue.cuh"
#include "native/cuda/device/bf16_wgmma.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

constexpr int kRows = 128, kCols = 256;  // of C of a tile
constexpr int kDepth = 64;               // of k a stage
constexpr int kStages = 4;
constexpr int kCluster = 2;  // blocks, one below the other, that share columns of C
constexpr int kWarpgroup = 128;
constexpr int kConsumers = kRows / 64;  // warpgroups that multiply
constexpr int kThreads = kConsumers * kWarpgroup;
// Stages that are on their way while others are multiplied: one less than there are would have the
// thread that copies wait for the slowest warpgroup of the cluster in every step.
constexpr int kAhead = kStages - 2;
// Registers a thread: leaves 16 thousand for other kernels' blocks. A warp that only copies would take as
// many as one that multiplies, all from one of the multiprocessor's four parts, and leave too few there.
constexpr int kRegisters = 192;
constexpr int kBoxBytes = 64 * 128;  // 64 rows of 128 bytes, copied at once
constexpr int kBoxesA = kRows * kDepth * 2 / kBoxBytes, kBoxesB = kCols * kDepth * 2 / kBoxBytes;
constexpr int kBytesA = kBoxesA * kBoxBytes, kStageBytes = (kBoxesA + kBoxesB) * kBoxBytes;
constexpr int kAlignment = 1024;
constexpr int kSharedBytes = kStages * kStageBytes + kAlignment;

// Tiles of a whole cluster.
struct Tiling {
  int64_t rows, cols;

  int64_t count() const { return rows * cols; }
};

Tiling tilingOf(int64_t m, int64_t n) {
  constexpr int64_t kHigh = kRows * kCluster;
  return {(m + kHigh - 1) / kHigh, (n + kCols - 1) / kCols};
}

#if defined(AQ_HAS_HOPPER)

struct Place {
  int32_t row, col;  // of C, where the block's tile starts
};

// Tiles that are worked on at the same time share operands in L2: they are numbered down groups of a few
// rows of tiles.
__device__ inline Place placeTile(const Tiling& tiling, int tile) {
  constexpr int kGroup = 8;
  const int rows = int(tiling.rows), cols = int(tiling.cols);
  const int first = tile / (kGroup * cols) * kGroup;
  const int high = rows - first < kGroup ? rows - first : kGroup;
  const int within = tile - first * cols;
  return {((first + within % high) * kCluster + int(clusterRank())) * kRows,
          within / high * kCols};
}

// A block's tiles, one after the other.
struct Tiles {
  const Tiling& tiling;
  int tile = int(blockIdx.x) / kCluster;

  __device__ bool any() const { return tile < int(tiling.rows * tiling.cols); }
  __device__ void next() { tile += int(gridDim.x) / kCluster; }
  __device__ Place place() const { return placeTile(tiling, tile); }
};

// What one thread of a block does beside multiplying: fills stages, in the order of the tiles.
template <bool kTransA, bool kTransB>
struct Filler {
  const CUtensorMap *mapA, *mapB;
  uint32_t shared, barriers;
  int steps, step = 0;
  Tiles tiles;
  Place place;
  Turn<kStages> turn;

  __device__ Filler(const CUtensorMap* a, const CUtensorMap* b, int of, const Tiling& tiling,
                    uint32_t memory, uint32_t at)
      : mapA(a), mapB(b), shared(memory), barriers(at), steps(of), tiles{tiling} {
    if (tiles.any()) place = tiles.place();
  }

  __device__ void fill() {
    if (!tiles.any()) return;
    constexpr int kShareB = kBoxesB / kCluster;  // boxes of this block
    const int rank = int(clusterRank());
    const uint32_t full = barriers + turn.stage * 8, empty = full + kStages * 8;
    const uint32_t a = shared + turn.stage * kStageBytes, b = a + kBytesA;
    const int32_t k = step * kDepth;
    barrierWait(empty, turn.parity ^ 1);  // passes at once in the first round
    barrierExpect(full, kStageBytes);
    // Places along a row are in bytes.
#pragma unroll
    for (int i = 0; i < kBoxesA; i++) {
      const int32_t row = place.row + i * 64;
      copyBox(a + i * kBoxBytes, mapA, full, 2 * (kTransA ? row : k), kTransA ? k : row);
    }
#pragma unroll
    for (int i = 0; i < kShareB; i++) {
      const int box = rank * kShareB + i;
      const int32_t col = place.col + box * 64;
      copyBoxToAll(b + box * kBoxBytes, mapB, full, 2 * (kTransB ? k : col), kTransB ? col : k,
                   (1 << kCluster) - 1);
    }
    turn.next();
    if (++step < steps) return;
    step = 0;
    tiles.next();
    if (tiles.any()) place = tiles.place();
  }
};

// 16 of k, number `part`, of what lies with k along its rows, or turned: in boxes, k across.
template <bool kTurned>
__device__ inline uint64_t descriptor(uint32_t address, int part) {
  if constexpr (kTurned) {
    constexpr uint64_t kUnused = uint64_t(1) << 16;
    return tileDescriptor(address) - kUnused + (uint64_t(kBoxBytes >> 4) << 16) +
           part * (16 * 128 / 16);
  } else {
    return tileDescriptor(address) + part * 2;
  }
}

__device__ inline void writeTile(const float (&sum)[128], const Bf16Product& p,
                                 const Place& place) {
  using Short = __nv_bfloat16;
  const bool adds = p.accumulate || p.bias;
  if (p.isShort) {
    adds ? writeSums<Short, true>(sum, p, place.row, place.col)
         : writeSums<Short, false>(sum, p, place.row, place.col);
  } else {
    adds ? writeSums<float, true>(sum, p, place.row, place.col)
         : writeSums<float, false>(sum, p, place.row, place.col);
  }
}

// Of a warpgroup: its 64 rows of every tile.
template <bool kTransA, bool kTransB>
__device__ inline void multiplyTiles(Filler<kTransA, kTransB>& filler, const Bf16Product& p) {
  const int consumer = int(threadIdx.x) / kWarpgroup, lane = int(threadIdx.x) % 32;
  const bool fills = threadIdx.x == 0;
  const uint32_t barriers = filler.barriers;
  const int steps = filler.steps;
  const auto release = [&](int stage) {
    if (lane < kCluster) barrierArriveAt(barriers + (kStages + stage) * 8, uint32_t(lane));
  };
  if (fills) {
    for (int i = 0; i < kAhead; i++) filler.fill();
  }
  Turn<kStages> turn;
  for (Tiles tiles{filler.tiles.tiling}; tiles.any(); tiles.next()) {
    float sum[128];
    int last = 0;  // the stage of the step before
    for (int step = 0; step < steps; step++, turn.next()) {
      const uint32_t a = filler.shared + turn.stage * kStageBytes, b = a + kBytesA;
      barrierWait(barriers + turn.stage * 8, turn.parity);
      fenceSums(sum);
      wgmmaFence();
#pragma unroll
      for (int part = 0; part < kDepth / 16; part++) {
        wgmmaBf16<kTransA, !kTransB>(sum, descriptor<kTransA>(a + consumer * kBoxBytes, part),
                                     descriptor<!kTransB>(b, part), step > 0 || part > 0);
      }
      wgmmaCommit();
      if (fills) filler.fill();
      __syncwarp();
      // One step is under way while the next one's operands are waited for.
      wgmmaWait<1>();
      if (step > 0) release(last);
      last = turn.stage;
    }
    wgmmaWait<0>();
    fenceSums(sum);
    release(last);
    writeTile(sum, p, tiles.place());
  }
}

#endif  // AQ_HAS_HOPPER

template <bool kTransA, bool kTransB>
__global__ __maxnreg__(kRegisters) void bf16Tiles(
    const __grid_constant__ CUtensorMap mapA, const __grid_constant__ CUtensorMap mapB,
    const __grid_constant__ Bf16Product p, const Tiling tiling) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char memory[];
  // Full, then empty, of every stage.
  __shared__ uint64_t barrierMemory[2 * kStages];
  const uint32_t barriers = sharedAddress(barrierMemory);
  const uint32_t shared = (sharedAddress(memory) + kAlignment - 1) / kAlignment * kAlignment;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      barrierInit(barriers + i * 8, 1);
      barrierInit(barriers + (kStages + i) * 8, kThreads / 32 * kCluster);
    }
    barrierInitFence();
    prefetchMap(&mapA);
    prefetchMap(&mapB);
  }
  startPass(p.isBeside);
  clusterSync();
  const int steps = int((p.k + kDepth - 1) / kDepth);
  Filler<kTransA, kTransB> filler(&mapA, &mapB, steps, tiling, shared, barriers);
  multiplyTiles(filler, p);
  // A block's shared memory stays until the other one has stopped copying and arriving.
  __syncwarp();
  clusterSync();
  endPass(p.isBeside);
#endif
}

using Kernel = void (*)(CUtensorMap, CUtensorMap, Bf16Product, Tiling);

// Whether the kernel that this device runs has a body: a build may lack sm_90a. Only the body has
// shared memory of a fixed size.
bool isBuilt() {
  static const bool built = [] {
    cudaFuncAttributes attributes = {};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, bf16Tiles<false, false>);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.sharedSizeBytes > 0;
  }();
  return built;
}

}  // namespace

bool fitsBf16Product(const aq_queue* queue, const Bf16Product& p) {
  constexpr int64_t kFew = 256;  // tiles are too large for small results
  const auto isMatrix = [](const void* data, int64_t pitch) {
    return isAligned16(data) && pitch % 8 == 0 && pitch <= INT32_MAX / 4;
  };
  const bool fits = std::min({p.m, p.n, p.k}) >= kFew && std::max({p.m, p.n, p.k}) <= INT32_MAX / 4;
  return queue->computeCapability == 90 && fits && p.n % 8 == 0 && isMatrix(p.a, p.pitchA) &&
         isMatrix(p.b, p.pitchB) && isAligned16(p.c) && isAligned16(p.bias) && isBuilt();
}

int32_t bf16Product(aq_queue* queue, const Bf16Product& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  const int64_t rowsA = p.transA ? p.k : p.m, colsA = p.transA ? p.m : p.k;
  const int64_t rowsB = p.transB ? p.n : p.k, colsB = p.transB ? p.k : p.n;
  constexpr int32_t kBoxRows = 64;
  if (byteMatrixMap(&mapA, p.a, rowsA, colsA * 2, p.pitchA * 2, kBoxRows, err) != AQ_OK)
    return err->code;
  if (byteMatrixMap(&mapB, p.b, rowsB, colsB * 2, p.pitchB * 2, kBoxRows, err) != AQ_OK)
    return err->code;
  const Tiling tiling = tilingOf(p.m, p.n);
  const int64_t clusters = std::min<int64_t>(tiling.count(), queue->multiprocessors / kCluster);
  const auto kernel = p.transA   ? p.transB ? bf16Tiles<true, true> : bf16Tiles<true, false>
                      : p.transB ? bf16Tiles<false, true>
                                 : bf16Tiles<false, false>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const EarlyLaunch launch(queue, dim3(unsigned(clusters * kCluster)), kThreads, kSharedBytes,
                           kCluster);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, mapA, mapB, p, tiling));
  return AQ_OK;
}

}  // namespace aq::cuda
