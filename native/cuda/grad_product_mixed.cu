// grad_product_mixed: the gradient of a fake-quantized weight as the product of bf16 and int8 with a
// scale of each row, taken through the gradient of the quantizer while the next tile is multiplied.
//
// Math      grad_ij = sum over k of g_ki bf16(x_kj bf16(s_k)), rounded to bf16; then as in
//           grad_product_hopper.cu.
// Layout    as in mixed_product.cu, with a fourth warpgroup that takes what the two that multiply
//           leave in shared memory through the quantizer (device/grad_rows.cuh); one stage less.
// Cost      as in grad_product_hopper.cu, without the pass that makes x bf16.
// Roofline  that of mixed_product.cu, which takes 100 us for 4096 x 4096 x 2048 in bf16.
// Versions  v1 (this).
// Numerics  those of mixed_product.cu and grad_product_hopper.cu.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/grad_rows.cuh"
#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mixed_tiles.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/wide_tiles.cuh"
#include "native/cuda/grad_product.h"
#include "native/cuda/launch.h"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

using namespace wide;

constexpr int kStages = 4;
constexpr int kThreads = (2 + kConsumers) * kWarpgroup;
constexpr int kTileAt = MixedStages<kStages>::kAllBytes;
constexpr int kSharedBytes = kTileAt + kGradTileBytes + kAlignment;
static_assert(kTileAt % 256 == 0);

#if defined(AQ_HAS_HOPPER)

template <bool kTransA, GradKind kKind>
__device__ void multiplyTiles(const MatrixGrad& grad, const Tiling& tiling, int64_t steps,
                              uint32_t shared, uint32_t barriers, const GradTile& tile) {
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const int thread = int(threadIdx.x) % kWarpgroup;
  uint32_t parity = 0;
  multiplyMixed<kTransA, kStages, true>(
      steps, tiling, shared, barriers, [&](const float(&sum)[128], const Place& place) {
        barrierWait(tile.empty, parity ^ 1);  // passes at once in the first round
        parity ^= 1;
        int lane = thread % 32;
        asm volatile("" : "+r"(lane));  // or addresses are kept in registers that the sums need
        const int down = lane % 4 * 2, quad = lane / 4;
        const int piece = consumer * 8 + thread / 32 * 2 + quad / 4;
#pragma unroll
        for (int i = 0; i < kRows / 4; i++) {
          const float* const own = sum + i / 2 * 4 + i % 2;
          const int row = i / 2 * 8 + i % 2 + down;
          storeSums(GradTile::at(tile.data, row, piece) + quad % 4 * 4, own[0], own[2]);
        }
        __syncwarp();
        if (lane == 0) arrive(tile.full);
        if (place.isLast) helpWithLast<kKind>(grad, place, tile, parity ^ 1);
      });
}

#endif  // AQ_HAS_HOPPER

template <bool kTransA, GradKind kKind>
__global__ __launch_bounds__(kThreads,
                             1) void mixedGradTiles(const __grid_constant__ CUtensorMap mapA,
                                                    const __grid_constant__ CUtensorMap mapB,
                                                    const float* scales, const MatrixGrad grad,
                                                    const Tiling tiling, const int64_t steps) {
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
    if (threadIdx.x == 0)
      copyMixed<kTransA, kStages>(&mapA, &mapB, scales, steps, tiling, shared, barriers);
    if (threadIdx.x / kWarp == 1) prefetchGradTiles<kKind>(grad, tiling, tile);
  } else if (role <= kConsumers) {
    raiseRegisters<184>();
    multiplyTiles<kTransA, kKind>(grad, tiling, steps, shared, barriers, tile);
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
    const cudaError_t status =
        cudaFuncGetAttributes(&attributes, mixedGradTiles<true, GradKind::kShort>);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.sharedSizeBytes > 0;
  }();
  return built;
}

// Short matrices are weights, whose products have a turned; wide ones are activations.
auto kernelOf(GradKind kind) {
  switch (kind) {
    case GradKind::kShort:
      return mixedGradTiles<true, GradKind::kShort>;
    case GradKind::kOffset:
      return mixedGradTiles<true, GradKind::kOffset>;
    case GradKind::kWide:
      return mixedGradTiles<false, GradKind::kWide>;
    default:
      return mixedGradTiles<false, GradKind::kAdded>;
  }
}

}  // namespace

bool fitsMixedGradProduct(const aq_queue* queue, const GradProduct& p) {
  constexpr int64_t kMost = INT32_MAX / 4;
  const MatrixGrad& a = p.grad;
  const bool fits = a.rows <= kMost && a.cols <= kMost && p.terms > 0 && p.terms <= kMost &&
                    p.terms % kMixedDepth == 0;
  bool isAligned = a.cols % 16 == 0 && (p.transA ? a.rows : p.terms) % 8 == 0;
  for (const void* data : {p.a, p.b, static_cast<const void*>(p.scales), a.x,
                           static_cast<const void*>(a.v), static_cast<const void*>(a.added),
                           static_cast<const void*>(a.gv), static_cast<const void*>(a.gx)}) {
    isAligned = isAligned && isAligned16(data);
  }
  return queue->computeCapability == 90 && p.scales && p.transA == !a.isWide() && fits &&
         isAligned && isBuilt();
}

int32_t mixedGradProduct(aq_queue* queue, const GradProduct& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  const int64_t rows = p.grad.rows, cols = p.grad.cols;
  const int64_t rowsA = p.transA ? p.terms : rows, colsA = p.transA ? rows : p.terms;
  if (byteMatrixMap(&mapA, p.a, rowsA, colsA * 2, colsA * 2, kMixedBoxRows, err) != AQ_OK)
    return err->code;
  if (byteMatrixMap(&mapB, p.b, p.terms, cols, cols, kMixedBoxRows, err) != AQ_OK) return err->code;
  const Tiling tiling = tilingOf(rows, cols);
  const int64_t clusters = std::min<int64_t>(tiling.count(), queue->multiprocessors / kCluster);
  const auto kernel = kernelOf(p.grad.kind);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const EarlyLaunch launch(queue, dim3(unsigned(clusters * kCluster)), kThreads, kSharedBytes,
                           kCluster);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, mapA, mapB, p.scales, p.grad, tiling,
                                p.terms / kMixedDepth));
  return AQ_OK;
}

}  // namespace aq::cuda
