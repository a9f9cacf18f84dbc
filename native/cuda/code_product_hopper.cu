// code_product_hopper: the exact product of int8 codes on Hopper's tensor cores, scaled as it is
// written.
//
// Math      c_ij = (sum over k of (a_ik - za_i) (b_jk - zb_j)) sa_i sb_j + bias_j (+ c_ij).
// Layout    tiles of 128 x kN of C. A block is one warpgroup that keeps the bulk tensor copies
//           going, 128 bytes of k a stage, and two that multiply, 64 rows each, with the sums in
//           registers. Blocks stay and take tiles in turn, so that the next tile's copies run while
//           this one is scaled and written. Two blocks of a cluster share their columns: each
//           copies half of B to both.
// Cost      2 m n k integer operations; codes read from L2 once per 256 rows or kN columns.
// Roofline  int8 tensor cores: 69 Gop -> 35 us at 1979 Top/s (H100 SXM data sheet). Measured for
//           2048 x 4096 x 4096, H100 80GB HBM3, driver 580: 53 us = 1290 Top/s (cuBLASLt to
//           unscaled i32: 56 us). Inside: twice 19 us of products, which is the unit's rate, and
//           twice 4.5 us of writing, which all blocks do at the same time.
// Versions  v1 cluster-wide ordering at every barrier, which empties L1: 82 us; v2 block-wide: 57
//           us; v3 what scaling needs fetched under the products (this). Tried without gain:
//           clusters of 1 (69 us) and of 2 x 2 (77 us, only 30 of them fit), rows written 128 bytes
//           at a time.
// Numerics  exact up to the scaling in f32.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/code_product.h"
#include "native/cuda/device/code_epilogue.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

constexpr int kRows = 128;       // of C of a tile
constexpr int kStepBytes = 128;  // of k a stage
constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumers = 2;    // warpgroups that multiply
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kCluster = 2;  // blocks, one above the other, that share columns

template <int kN>
struct Shared {
  static constexpr int kStages = kN == 256 ? 4 : 6;
  static constexpr int kBytesA = kRows * kStepBytes, kBytesB = kN * kStepBytes;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kColumnsAt = kStages * kStageBytes;
  static constexpr int kAlignment = 1024;  // of the stages; the swizzle is by address
  static constexpr int kBytes = kColumnsAt + int(2 * sizeof(CodeColumns<kN>)) + kAlignment;
};

// How many tiles there are; a tile's rows are those of a whole cluster.
struct Tiling {
  int64_t rows, cols;
};

#if defined(AQ_HAS_HOPPER)

// Tiles are numbered down the columns of groups of a few rows of tiles, so that those worked on at
// the same time share operands in L2.
__device__ inline void placeTile(const Tiling& tiling, int64_t tile, int64_t* row, int64_t* col) {
  constexpr int64_t kGroup = 8;
  const int64_t group = tile / (kGroup * tiling.cols), first = group * kGroup;
  const int64_t high = tiling.rows - first < kGroup ? tiling.rows - first : kGroup;
  const int64_t within = tile - first * tiling.cols;
  *row = first + within % high;
  *col = within / high;
}

// Counts stages and the parity of their barriers.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

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

template <int kN>
__device__ void copyTiles(const CUtensorMap* mapA, const CUtensorMap* mapB, const CodeProduct& p,
                          const Tiling& tiling, uint32_t shared, uint32_t barriers) {
  using S = Shared<kN>;
  const uint32_t rank = clusterRank();
  const int64_t steps = (p.pitch + kStepBytes - 1) / kStepBytes;
  Turn<S::kStages> turn;
  for (int64_t tile = blockIdx.x / kCluster; tile < tiling.rows * tiling.cols;
       tile += gridDim.x / kCluster) {
    int64_t tileRow, tileCol;
    placeTile(tiling, tile, &tileRow, &tileCol);
    const int32_t row = int32_t((tileRow * kCluster + rank) * kRows);
    const int32_t col = int32_t(tileCol * kN + rank * (kN / kCluster));
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t full = barriers + turn.stage * 8;
      const uint32_t empty = full + S::kStages * 8;
      const uint32_t a = shared + turn.stage * S::kStageBytes;
      const uint32_t b = a + S::kBytesA + rank * (S::kBytesB / kCluster);
      const int32_t k = int32_t(step * kStepBytes);
      barrierWait(empty, turn.parity ^ 1);  // passes at once in the first round
      barrierExpect(full, S::kStageBytes);
      copyBox(a, mapA, full, k, row);
      copyBoxToAll(b, mapB, full, k, col, (1 << kCluster) - 1);
    }
  }
}

template <int kN>
__device__ void multiplyTiles(const CodeProduct& p, const Tiling& tiling, uint32_t shared,
                              uint32_t barriers, CodeColumns<kN>* columns) {
  using S = Shared<kN>;
  const uint32_t rank = clusterRank();
  const int64_t steps = (p.pitch + kStepBytes - 1) / kStepBytes;
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const int thread = int(threadIdx.x) % kWarpgroup;
  Turn<S::kStages> turn;
  for (int64_t tile = blockIdx.x / kCluster; tile < tiling.rows * tiling.cols;
       tile += gridDim.x / kCluster) {
    int64_t tileRow, tileCol;
    placeTile(tiling, tile, &tileRow, &tileCol);
    const int64_t row =
        (tileRow * kCluster + rank) * kRows + consumer * 64 + thread / 32 * 16 + thread % 32 / 4;
    const int64_t firstCol = tileCol * kN;
    // What scaling needs is under way while the products run. A thread fetches one column.
    static_assert(kN <= kConsumers * kWarpgroup);
    const int mine = consumer * kWarpgroup + thread;
    CodeRow rows[2] = {}, column = {};
    float bias = 0;
    for (int half = 0; half < 2; half++) {
      if (row + half * 8 < p.m) rows[half] = p.aRows[row + half * 8];
    }
    if (mine < kN && firstCol + mine < p.n) {
      column = p.bRows[firstCol + mine];
      if (p.bias) bias = p.bias[firstCol + mine];
    }

    int32_t sum[kN / 2];
    int last = 0;  // the stage of the step before
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t full = barriers + turn.stage * 8;
      const uint32_t a = shared + turn.stage * S::kStageBytes;
      const uint64_t descA = tileDescriptor(a + consumer * 64 * kStepBytes);
      const uint64_t descB = tileDescriptor(a + S::kBytesA);
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
        releaseStage(barriers + (S::kStages + last) * 8, thread);
      }
      last = turn.stage;
    }
    wgmmaWait<0>();
    fenceSums(sum);
    releaseStage(barriers + (S::kStages + last) * 8, thread);

    // The last tile's columns may still be read, those before them are not: two places take turns.
    CodeColumns<kN>& shown = columns[tile / (gridDim.x / kCluster) % 2];
    if (mine < kN) shown.set(mine, column, bias);
    if (meetConsumers((rows[0].zero | rows[1].zero | column.zero) != 0)) {
      writeSums<kN, true>(sum, p, shown, rows, row, firstCol);
    } else {
      writeSums<kN, false>(sum, p, shown, rows, row, firstCol);
    }
  }
}

#endif  // AQ_HAS_HOPPER

template <int kN>
__global__ __launch_bounds__(kThreads, 1) void codeTiles(const __grid_constant__ CUtensorMap mapA,
                                                         const __grid_constant__ CUtensorMap mapB,
                                                         const CodeProduct p, const Tiling tiling) {
#if defined(AQ_HAS_HOPPER)
  using S = Shared<kN>;
  extern __shared__ char memory[];
  // Full, then empty, of every stage.
  __shared__ uint64_t barrierMemory[2 * S::kStages];
  const uint32_t barriers = sharedAddress(barrierMemory);
  const uint32_t start = sharedAddress(memory);
  const uint32_t shared = (start + S::kAlignment - 1) / S::kAlignment * S::kAlignment;
  auto* const columns =
      reinterpret_cast<CodeColumns<kN>*>(memory + (shared - start) + S::kColumnsAt);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; i++) {
      barrierInit(barriers + i * 8, 1);
      barrierInit(barriers + (S::kStages + i) * 8, kConsumers * kCluster);
    }
    barrierInitFence();
    prefetchMap(&mapA);
    prefetchMap(&mapB);
  }
  waitForKernelBefore();
  clusterSync();
  if (threadIdx.x / kWarpgroup == 0) {
    dropRegisters<40>();
    if (threadIdx.x == 0) copyTiles<kN>(&mapA, &mapB, p, tiling, shared, barriers);
  } else {
    raiseRegisters<232>();
    multiplyTiles<kN>(p, tiling, shared, barriers, columns);
  }
  // A block's shared memory stays until the other one has stopped copying and arriving.
  __syncwarp();
  clusterSync();
#endif
}

template <int kN>
int32_t launch(aq_queue* queue, const CodeProduct& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  if (byteMatrixMap(&mapA, p.a, p.m, p.pitch, p.pitch, kRows, err) != AQ_OK) return err->code;
  if (byteMatrixMap(&mapB, p.b, p.n, p.pitch, p.pitch, kN / kCluster, err) != AQ_OK)
    return err->code;
  const Tiling tiling = {(p.m + kRows * kCluster - 1) / (kRows * kCluster), (p.n + kN - 1) / kN};
  const int64_t clusters =
      std::min<int64_t>(tiling.rows * tiling.cols, queue->multiprocessors / kCluster);
  CUDA_CHECK(cudaFuncSetAttribute(codeTiles<kN>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Shared<kN>::kBytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(clusters * kCluster));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = Shared<kN>::kBytes;
  config.stream = queue->stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  // The blocks set themselves up while the codes are still being made.
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  CUDA_CHECK(cudaLaunchKernelEx(&config, codeTiles<kN>, mapA, mapB, p, tiling));
  return AQ_OK;
}

// Whether the kernel that this device runs has a body: a build may lack sm_90a. Only the body has
// shared memory of a fixed size.
bool isBuilt() {
  static const bool built = [] {
    cudaFuncAttributes attributes = {};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, codeTiles<256>);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.sharedSizeBytes > 0;
  }();
  return built;
}

}  // namespace

bool fitsHopper(const aq_queue* queue, const CodeProduct& p) {
  // Tiles are too high for a few rows.
  constexpr int64_t kFewRows = 64;
  return queue->computeCapability == 90 && p.m > kFewRows && p.m <= INT32_MAX / 2 &&
         p.n <= INT32_MAX / 2 && isBuilt();
}

int32_t codeProductHopper(aq_queue* queue, const CodeProduct& p, aq_error* err) {
  // Narrow tiles where wide ones would leave more of the last round of blocks idle.
  const auto rounds = [&](int64_t width) {
    const int64_t tiles =
        (p.m + kRows * kCluster - 1) / (kRows * kCluster) * ((p.n + width - 1) / width);
    const int64_t clusters = queue->multiprocessors / kCluster;
    return (tiles + clusters - 1) / clusters * width;
  };
  return rounds(256) <= rounds(128) ? launch<256>(queue, p, err) : launch<128>(queue, p, err);
}

}  // namespace aq::cuda
