// grad_product_hopper: the gradient of a fake-quantized weight as a bf16 product on Hopper's tensor
// cores, taken through the gradient of the quantizer while the next tile is multiplied.
//
// Math      grad_ij = sum over k of g_ki x_kj, rounded to bf16; then fake_quant_grad of each row's
//           groups (device/grid_grad.cuh): gv = in grad s, and the sums S, Z and the extremes of parts
//           of a row, which a second kernel adds up (grad_product.cu).
// Layout    tiles of 256 x 128 of the weight, operands as they lie, with k across their rows. A block
//           is four warpgroups: one thread keeps the bulk tensor copies going, 32 of k a stage; two
//           warpgroups multiply, 128 rows each, and leave their sums in shared memory; the fourth
//           takes them through the quantizer (device/grad_rows.cuh), reading the weight meanwhile.
//           Two blocks of a cluster share their rows of g: each copies half of them to both.
// Cost      2 m n k flop, and the weight (2 B an element), offsets (4 B) and gv (2 B) once: under the
//           products, as long as these take longer.
// Roofline  the tensor cores: 4096 x 4096 x 2048, 69 Gflop -> 69 us at 989 Tflop/s (H100 SXM data
//           sheet); a plain bf16 product takes 92 us, and the pass over its result that is saved here
//           40 us, 68 us with offsets.
// Versions  v1 (this).
// Numerics  f32 sums in a fixed order, one rounding to bf16 as a gradient in memory has; then f32.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/grad_rows.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/turned_wgmma.cuh"
#include "native/cuda/device/wide_tiles.cuh"
#include "native/cuda/grad_product.h"
#include "native/cuda/launch.h"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

using namespace wide;

constexpr int kDepth = 32;  // of k a stage
constexpr int kThreads = (2 + kConsumers) * kWarpgroup;
constexpr int kBoxBytes = kDepth * kBoxWidth;  // 64 numbers of a row, kDepth rows
constexpr int kBoxesA = kRows / 64, kBoxesB = kCols / 64;
constexpr int kBytesA = kBoxesA * kBoxBytes;
constexpr int kStages = 6;
constexpr int kStageBytes = kBytesA + kBoxesB * kBoxBytes;
constexpr int kTileAt = kStages * kStageBytes;
constexpr int kSharedBytes = kTileAt + kGradTileBytes + kAlignment;

#if defined(AQ_HAS_HOPPER)

using StageTurn = Turn<kStages>;

__device__ void copyTiles(const CUtensorMap* mapA, const CUtensorMap* mapB, const Tiling& tiling,
                          int64_t steps, uint32_t shared, uint32_t barriers) {
  constexpr int kShareA = kBoxesA / kCluster;  // boxes of this block
  const uint32_t rank = clusterRank();
  StageTurn turn;
  visitTiles(tiling, [&](const Place& place) {
    // A place along a row is in bytes.
    const int32_t row = int32_t(place.row + rank * kShareA * 64) * 2;
    const int32_t col = int32_t(place.col) * 2;
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t full = barriers + turn.stage * 8, empty = full + kStages * 8;
      const uint32_t a = shared + turn.stage * kStageBytes, b = a + kBytesA;
      const int32_t k = int32_t(step) * kDepth;
      barrierWait(empty, turn.parity ^ 1);  // passes at once in the first round
      barrierExpect(full, kStageBytes);
#pragma unroll
      for (int i = 0; i < kShareA; i++) {
        copyBoxToAll(a + (rank * kShareA + i) * kBoxBytes, mapA, full, row + i * kBoxWidth, k,
                     (1 << kCluster) - 1);
      }
#pragma unroll
      for (int i = 0; i < kBoxesB; i++)
        copyBox(b + i * kBoxBytes, mapB, full, col + i * kBoxWidth, k);
    }
  });
}

template <GradKind kKind>
__device__ void multiplyTiles(const MatrixGrad& grad, const Tiling& tiling, int64_t steps,
                              uint32_t shared, uint32_t barriers, const GradTile& tile) {
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const int thread = int(threadIdx.x) % kWarpgroup;
  const int firstRow = consumer * kRows / kConsumers + thread / 32 * 16 + thread % 32 / 4;
  StageTurn turn;
  uint32_t parity = 0;
  visitTiles(tiling, [&](const Place& place) {
    float sum[2][64];
    int last = 0;  // the stage of the step before
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t a = shared + turn.stage * kStageBytes + consumer * 2 * kBoxBytes;
      const uint32_t b = shared + turn.stage * kStageBytes + kBytesA;
      barrierWait(barriers + turn.stage * 8, turn.parity);
      wgmmaFence();
#pragma unroll
      for (int part = 0; part < kDepth / 16; part++) {
        const uint64_t right = turnedDescriptor(b, kBoxBytes, part);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          wgmmaTurned(sum[half], turnedDescriptor(a + half * kBoxBytes, kBoxBytes, part), right,
                      step > 0 || part > 0);
        }
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
    fenceSums(sum[0]);
    fenceSums(sum[1]);
    releaseStage(barriers + (kStages + last) * 8, thread);

    barrierWait(tile.empty, parity ^ 1);  // passes at once in the first round
    parity ^= 1;
    int first = firstRow;
    asm volatile("" : "+r"(first));  // or addresses are kept in registers that the sums need
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = first + i / 2 * 64 + i % 2 * 8;
#pragma unroll
      for (int block = 0; block < kCols / 8; block++) {
        const float* const own = sum[i / 2] + block * 4 + i % 2 * 2;
        storeSums(GradTile::at(tile.data, row, block) + thread % 4 * 4, own[0], own[1]);
      }
    }
    __syncwarp();
    if (thread % 32 == 0) arrive(tile.full);
    if (place.isLast) helpWithLast<kKind>(grad, place, tile, parity ^ 1);
  });
}

#endif  // AQ_HAS_HOPPER

template <GradKind kKind>
__global__ __launch_bounds__(kThreads, 1) void gradTiles(const __grid_constant__ CUtensorMap mapA,
                                                         const __grid_constant__ CUtensorMap mapB,
                                                         const MatrixGrad grad, const Tiling tiling,
                                                         const int64_t steps) {
#if defined(AQ_HAS_HOPPER)
  extern __shared__ char memory[];
  // Full, then empty, of every stage; then those of the tile.
  __shared__ uint64_t barrierMemory[2 * kStages + 2];
  const uint32_t barriers = sharedAddress(barrierMemory);
  const uint32_t shared = (sharedAddress(memory) + kAlignment - 1) / kAlignment * kAlignment;
  const uint32_t ofTile = barriers + 2 * kStages * 8;
  const GradTile tile = {shared + kTileAt, ofTile, ofTile + 8};
  if (threadIdx.x == 0) {
    initStages<kStages>(barriers);
    tile.init();
    barrierInitFence();
    prefetchMap(&mapA);
    prefetchMap(&mapB);
  }
  waitForKernelBefore();
  clusterSync();
  const int role = int(threadIdx.x) / kWarpgroup;
  if (role == 0) {
    dropRegisters<40>();
    if (threadIdx.x == 0) copyTiles(&mapA, &mapB, tiling, steps, shared, barriers);
    if (threadIdx.x / kWarp == 1) prefetchGradTiles<kKind>(grad, tiling, tile);
  } else if (role <= kConsumers) {
    raiseRegisters<184>();
    multiplyTiles<kKind>(grad, tiling, steps, shared, barriers, tile);
  } else {
    dropRegisters<104>();
    takeGradTiles<kKind>(grad, tiling, tile);
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
    const cudaError_t status = cudaFuncGetAttributes(&attributes, gradTiles<GradKind::kShort>);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.sharedSizeBytes > 0;
  }();
  return built;
}

}  // namespace

bool fitsGradProduct(const aq_queue* queue, const GradProduct& p) {
  constexpr int64_t kMost = INT32_MAX / 4;
  const MatrixGrad& a = p.grad;
  const bool fits = a.rows <= kMost && a.cols <= kMost && p.terms > 0 && p.terms <= kMost;
  const bool isAligned = a.cols % 16 == 0 && a.rows % 8 == 0 && isAligned16(p.a) &&
                         isAligned16(p.b) && isAligned16(a.x) && isAligned16(a.v) &&
                         isAligned16(a.gv);
  return queue->computeCapability == 90 && p.transA && !p.scales && !a.isWide() && fits &&
         isAligned && isBuilt();
}

int32_t gradProduct(aq_queue* queue, const GradProduct& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  const int64_t rows = p.grad.rows, cols = p.grad.cols;
  if (byteMatrixMap(&mapA, p.a, p.terms, rows * 2, rows * 2, kDepth, err) != AQ_OK)
    return err->code;
  if (byteMatrixMap(&mapB, p.b, p.terms, cols * 2, cols * 2, kDepth, err) != AQ_OK)
    return err->code;
  const Tiling tiling = tilingOf(rows, cols);
  const int64_t clusters = std::min<int64_t>(tiling.count(), queue->multiprocessors / kCluster);
  const int64_t steps = (p.terms + kDepth - 1) / kDepth;
  const auto kernel =
      p.grad.kind == GradKind::kOffset ? gradTiles<GradKind::kOffset> : gradTiles<GradKind::kShort>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const EarlyLaunch launch(queue, dim3(unsigned(clusters * kCluster)), kThreads, kSharedBytes,
                           kCluster);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, mapA, mapB, p.grad, tiling, steps));
  return AQ_OK;
}

}  // namespace aq::cuda
