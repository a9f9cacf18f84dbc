// mixed_product: bf16 times int8 with a scale of each row, on Hopper's tensor cores.
//
// Math      c_ij = sum over k of op(a)_ik bf16(b_kj bf16(s_k)) (+ c_ij): the backward products of a
//           linear layer, whose weight or activation lies as codes.
// Layout    tiles of 256 rows x 128 columns of C, held transposed: b is the left operand, which
//           comes from registers, so that its bf16 copy never exists. A block is one warpgroup that
//           keeps the bulk tensor copies going, 64 of k a stage, and two that expand and multiply,
//           64 columns of C each. Two neighbouring columns stay in one thread, from the 16 bits of
//           b that it reads to what it writes of C. Two blocks of a cluster share their rows: each
//           copies half of a to both. Blocks stay and take tiles in turn.
// Cost      2 m n k flop; b is read from L2 once per 256 rows, a once per 256 columns.
// Roofline  the tensor cores: 2048 x 4096 x 4096, 69 Gflop -> 69 us at 989 Tflop/s (H100 SXM data
//           sheet). Measured, H100 80GB HBM3, driver 580: gx 101 us, gW in bf16 101 us, where the
//           plain bf16 products take 94 and 92 us and a pass that expands b 13 to 23 us more. The
//           same kernel without the conversion takes 87 us (and multiplies nonsense).
// Versions  v1 256 columns x 128 rows, which converts twice as much: 126 us; v2 (this).
// Numerics  one rounding of the scale to bf16 and one of the product; f32 sums in a fixed order.
#include "native/cuda/mixed_product.h"

#include <algorithm>
#include <cmath>

#include "native/cuda/check.h"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mixed_epilogue.cuh"
#include "native/cuda/device/mixed_wgmma.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

constexpr int kRows = 256;       // of C of a tile
constexpr int kCols = 128;       // of C of a tile
constexpr int kDepth = 64;       // of k a stage
constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumers = 2;    // warpgroups that multiply
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kCluster = 2;     // blocks, one beside the other, that share rows of C
constexpr int kBoxRows = 64;    // of what is copied at once: 64 of k of b; of a its rows or 64 of k
constexpr int kBoxWidth = 128;  // bytes
constexpr int kBoxBytes = kBoxRows * kBoxWidth;

constexpr int kStages = 5;
constexpr int kBoxesA = kRows / 64;
constexpr int kBytesA = kBoxesA * kBoxBytes;
constexpr int kStageBytes = kBytesA + kBoxBytes;
constexpr int kScaleBytes = kDepth * 4;
constexpr int kScalesAt = kStages * kStageBytes;
constexpr int kAlignment = 1024;  // of the stages; the swizzle is by address
constexpr int kSharedBytes = kScalesAt + kStages * kScaleBytes + kAlignment;
static_assert(kCols == kBoxWidth && kDepth == kBoxRows && kDepth * 2 == kBoxWidth);

struct Tiling {
  int64_t rows, cols;  // of tiles; those of a column belong to a whole cluster
};

#if defined(AQ_HAS_HOPPER)

// Tiles are numbered along the columns of groups of a few rows of tiles, so that those worked on at
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
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

__device__ inline void copyScales(uint32_t to, const float* from, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "n"(kScaleBytes), "r"(barrier)
      : "memory");
}

template <bool kTransA>
__device__ void copyTiles(const CUtensorMap* mapA, const CUtensorMap* mapB, const MixedProduct& p,
                          const Tiling& tiling, uint32_t shared, uint32_t barriers) {
  constexpr int kShareA = kBoxesA / kCluster;  // boxes of this block
  const int32_t rank = int32_t(clusterRank());
  const int64_t steps = p.k / kDepth;
  Turn turn;
  for (int64_t tile = blockIdx.x / kCluster; tile < tiling.rows * tiling.cols;
       tile += gridDim.x / kCluster) {
    int64_t tileRow, tileCol;
    placeTile(tiling, tile, &tileRow, &tileCol);
    const int32_t row = int32_t(tileRow) * kRows + rank * (kRows / kCluster);
    const int32_t col = (int32_t(tileCol) * kCluster + rank) * kCols;
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t full = barriers + turn.stage * 8;
      const uint32_t empty = full + kStages * 8;
      const uint32_t a = shared + turn.stage * kStageBytes, share = a + rank * kShareA * kBoxBytes;
      const int32_t k = int32_t(step) * kDepth;
      barrierWait(empty, turn.parity ^ 1);  // passes at once in the first round
      barrierExpect(full, kStageBytes + kScaleBytes);
      copyBox(a + kBytesA, mapB, full, col, k);
      copyScales(shared + kScalesAt + turn.stage * kScaleBytes, p.scales + k, full);
#pragma unroll
      for (int i = 0; i < kShareA; i++) {
        // Its place along a row is in bytes.
        copyBoxToAll(share + i * kBoxBytes, mapA, full, 2 * (kTransA ? row + i * 64 : k),
                     kTransA ? k : row + i * 64, (1 << kCluster) - 1);
      }
    }
  }
}

// 16 of k of a of the stage at `address`: its rows along k, or turned, 64 rows a box.
template <bool kTransA>
__device__ inline uint64_t descriptorA(uint32_t address, int part) {
  if constexpr (kTransA) {
    constexpr uint64_t kNextBox = uint64_t(kBoxBytes >> 4) << 16, kUnused = uint64_t(1) << 16;
    return tileDescriptor(address) - kUnused + kNextBox + part * (16 * kBoxWidth / 16);
  } else {
    return tileDescriptor(address) + part * 2;
  }
}

template <bool kTransA>
__device__ void multiplyTiles(const MixedProduct& p, const Tiling& tiling, uint32_t shared,
                              uint32_t barriers) {
  const int rank = int(clusterRank());
  const int64_t steps = p.k / kDepth;
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const int thread = int(threadIdx.x) % kWarpgroup;
  const int warp = thread / 32, quad = thread % 32 / 4, pair = thread % 4;
  // A thread's two columns of a row of b lie in another 16 bytes in each of eight rows.
  const int chunk = consumer * 4 + warp;
  const uint32_t even = 2 * pair * kBoxWidth + (chunk ^ (2 * pair)) * 16 + quad * 2;
  const uint32_t odd = (2 * pair + 1) * kBoxWidth + (chunk ^ (2 * pair + 1)) * 16 + quad * 2;
  constexpr int kParts = kDepth / 16;
  Turn turn;
  for (int64_t tile = blockIdx.x / kCluster; tile < tiling.rows * tiling.cols;
       tile += gridDim.x / kCluster) {
    int64_t tileRow, tileCol;
    placeTile(tiling, tile, &tileRow, &tileCol);
    const int64_t row = tileRow * kRows + pair * 2;
    const int64_t col = (tileCol * kCluster + rank) * kCols + consumer * 64 + warp * 16 + quad * 2;
    float sum[128];
    uint32_t left[kParts][4];
    int last = 0;  // the stage of the step before
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t a = shared + turn.stage * kStageBytes, b = a + kBytesA;
      const uint32_t scales = shared + kScalesAt + turn.stage * kScaleBytes + pair * 8;
      barrierWait(barriers + turn.stage * 8, turn.parity);
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        const uint32_t at = b + part * 16 * kBoxWidth;
        const uint32_t bytes[4] = {loadBytes(at + even), loadBytes(at + odd),
                                   loadBytes(at + even + 8 * kBoxWidth),
                                   loadBytes(at + odd + 8 * kBoxWidth)};
        const __nv_bfloat162 low = loadScales(scales + part * 64);
        const __nv_bfloat162 high = loadScales(scales + part * 64 + 32);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          left[part][i] = expandPair(bytes[0], bytes[1], i, low);
          left[part][i + 2] = expandPair(bytes[2], bytes[3], i, high);
        }
        wgmmaFence();
        wgmmaMixed<kTransA>(sum, left[part], descriptorA<kTransA>(a, part), step > 0 || part > 0);
        wgmmaCommit();
        // Two parts are under way while the next one is expanded; the one before them is done.
        wgmmaWait<2>();
        if (part >= 2 || step > 0) keepOperand(left[(part + kParts - 2) % kParts]);
        // And with it the stage before, which may be filled again, in both blocks.
        if (part == 1 && step > 0 && thread < kCluster)
          barrierArriveAt(barriers + (kStages + last) * 8, uint32_t(thread));
      }
      last = turn.stage;
    }
    wgmmaWait<0>();
    fenceSums(sum);
    if (thread < kCluster) barrierArriveAt(barriers + (kStages + last) * 8, uint32_t(thread));

    if (p.isShort) {
      p.accumulate ? writeTile<__nv_bfloat16, true, kRows>(sum, p, row, col)
                   : writeTile<__nv_bfloat16, false, kRows>(sum, p, row, col);
    } else {
      p.accumulate ? writeTile<float, true, kRows>(sum, p, row, col)
                   : writeTile<float, false, kRows>(sum, p, row, col);
    }
  }
}

#endif  // AQ_HAS_HOPPER

template <bool kTransA>
__global__ __launch_bounds__(kThreads, 1) void mixedTiles(const __grid_constant__ CUtensorMap mapA,
                                                          const __grid_constant__ CUtensorMap mapB,
                                                          const MixedProduct p,
                                                          const Tiling tiling) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char memory[];
  // Full, then empty, of every stage.
  __shared__ uint64_t barrierMemory[2 * kStages];
  const uint32_t barriers = sharedAddress(barrierMemory);
  const uint32_t shared = (sharedAddress(memory) + kAlignment - 1) / kAlignment * kAlignment;
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
    if (threadIdx.x == 0) copyTiles<kTransA>(&mapA, &mapB, p, tiling, shared, barriers);
  } else {
    raiseRegisters<232>();
    multiplyTiles<kTransA>(p, tiling, shared, barriers);
  }
  // A block's shared memory stays until the other one has stopped copying and arriving.
  __syncwarp();
  clusterSync();
#endif
}

// Whether the kernel that this device runs has a body: a build may lack sm_90a. Only the body has
// shared memory of a fixed size.
bool isBuilt() {
  static const bool built = [] {
    cudaFuncAttributes attributes = {};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, mixedTiles<false>);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.sharedSizeBytes > 0;
  }();
  return built;
}

Tiling tilingOf(const MixedProduct& p) {
  return {(p.m + kRows - 1) / kRows, (p.n + kCols * kCluster - 1) / (kCols * kCluster)};
}

}  // namespace

bool fitsMixed(const aq_queue* queue, const MixedProduct& p) {
  // Tiles are too large for small results.
  constexpr int64_t kFew = 256;
  const bool fits = p.m >= kFew && p.n >= kFew && p.k >= kFew && p.m <= INT32_MAX / 4 &&
                    p.n <= INT32_MAX / 4 && p.k <= INT32_MAX / 4;
  const bool isAligned = p.k % kDepth == 0 && p.n % 16 == 0 && p.pitchA % 8 == 0 &&
                         isAligned16(p.a) && isAligned16(p.b) && isAligned16(p.scales) &&
                         isAligned16(p.c);
  return queue->computeCapability == 90 && fits && isAligned && isBuilt();
}

bool isMixedFaster(const aq_queue* queue, const MixedProduct& p) {
  // As measured on an H100: expanding costs 8 % of the product, and the last round of clusters is
  // as long as the others; a pass moves 3 bytes an element at 2.9 TB/s after 5 us.
  const Tiling tiling = tilingOf(p);
  const double clusters = queue->multiprocessors / kCluster;
  const double rounds = double(tiling.rows * tiling.cols) / clusters;
  const double productUs = 2e-6 * double(p.m) * double(p.n) * double(p.k) / 750;
  const double passUs = 5 + 3e-6 * double(p.k) * double(p.n) / 2.9;
  return productUs * (1.08 * std::ceil(rounds) / rounds - 1) < passUs;
}

int32_t mixedProduct(aq_queue* queue, const MixedProduct& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  const int64_t rowsA = p.transA ? p.k : p.m, colsA = p.transA ? p.m : p.k;
  if (byteMatrixMap(&mapA, p.a, rowsA, colsA * 2, p.pitchA * 2, kBoxRows, err) != AQ_OK)
    return err->code;
  if (byteMatrixMap(&mapB, p.b, p.k, p.n, p.n, kBoxRows, err) != AQ_OK) return err->code;
  const Tiling tiling = tilingOf(p);
  const int64_t clusters =
      std::min<int64_t>(tiling.rows * tiling.cols, queue->multiprocessors / kCluster);
  const auto kernel = p.transA ? mixedTiles<true> : mixedTiles<false>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(clusters * kCluster));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = queue->stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  // The blocks set themselves up while the kernel before still runs.
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, mapA, mapB, p, tiling));
  return AQ_OK;
}

}  // namespace aq::cuda
