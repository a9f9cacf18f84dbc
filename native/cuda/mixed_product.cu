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
#include "native/cuda/device/mixed_tiles.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/device/wide_tiles.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/tensor_map.h"

namespace aq::cuda {

namespace {

using namespace wide;

constexpr int kStages = 5;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kSharedBytes = MixedStages<kStages>::kAllBytes + kAlignment;

#if defined(AQ_HAS_HOPPER)

template <bool kTransA>
__device__ void multiplyTiles(const MixedProduct& p, const Tiling& tiling, uint32_t shared,
                              uint32_t barriers) {
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const int thread = int(threadIdx.x) % kWarpgroup;
  const int down = thread % 4 * 2, right = consumer * 64 + thread / 32 * 16 + thread % 32 / 4 * 2;
  multiplyMixed<kTransA, kStages, false>(
      p.k / kMixedDepth, tiling, shared, barriers, [&](const float(&sum)[128], const Place& place) {
        const int64_t row = place.row + down, col = place.col + right;
        if (p.isShort) {
          p.accumulate ? writeTile<__nv_bfloat16, true, kRows>(sum, p, row, col)
                       : writeTile<__nv_bfloat16, false, kRows>(sum, p, row, col);
        } else {
          p.accumulate ? writeTile<float, true, kRows>(sum, p, row, col)
                       : writeTile<float, false, kRows>(sum, p, row, col);
        }
      });
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
    initStages<kStages>(barriers);
    barrierInitFence();
    prefetchMap(&mapA);
    prefetchMap(&mapB);
  }
  waitForKernelBefore();
  clusterSync();
  if (threadIdx.x / kWarpgroup == 0) {
    dropRegisters<40>();
    if (threadIdx.x == 0) {
      copyMixed<kTransA, kStages>(&mapA, &mapB, p.scales, p.k / kMixedDepth, tiling, shared,
                                  barriers);
    }
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

}  // namespace

bool fitsMixed(const aq_queue* queue, const MixedProduct& p) {
  // Tiles are too large for small results.
  constexpr int64_t kFew = 256;
  const bool fits = p.m >= kFew && p.n >= kFew && p.k >= kFew && p.m <= INT32_MAX / 4 &&
                    p.n <= INT32_MAX / 4 && p.k <= INT32_MAX / 4;
  const bool isAligned = p.k % kMixedDepth == 0 && p.n % 16 == 0 && p.pitchA % 8 == 0 &&
                         isAligned16(p.a) && isAligned16(p.b) && isAligned16(p.scales) &&
                         isAligned16(p.c);
  return queue->computeCapability == 90 && fits && isAligned && isBuilt();
}

bool isMixedFaster(const aq_queue* queue, const MixedProduct& p) {
  // As measured on an H100: expanding costs 8 % of the product, and the last round of clusters is
  // as long as the others; a pass moves 3 bytes an element at 2.9 TB/s after 5 us.
  const Tiling tiling = tilingOf(p.m, p.n);
  const double clusters = queue->multiprocessors / kCluster;
  const double rounds = double(tiling.count()) / clusters;
  const double productUs = 2e-6 * double(p.m) * double(p.n) * double(p.k) / 750;
  const double passUs = 5 + 3e-6 * double(p.k) * double(p.n) / 2.9;
  return productUs * (1.08 * std::ceil(rounds) / rounds - 1) < passUs;
}

int32_t mixedProduct(aq_queue* queue, const MixedProduct& p, aq_error* err) {
  CUtensorMap mapA, mapB;
  const int64_t rowsA = p.transA ? p.k : p.m, colsA = p.transA ? p.m : p.k;
  if (byteMatrixMap(&mapA, p.a, rowsA, colsA * 2, p.pitchA * 2, kMixedBoxRows, err) != AQ_OK)
    return err->code;
  if (byteMatrixMap(&mapB, p.b, p.k, p.n, p.n, kMixedBoxRows, err) != AQ_OK) return err->code;
  const Tiling tiling = tilingOf(p.m, p.n);
  const int64_t clusters = std::min<int64_t>(tiling.count(), queue->multiprocessors / kCluster);
  const auto kernel = p.transA ? mixedTiles<true> : mixedTiles<false>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  // The blocks set themselves up while the kernel before still runs.
  const EarlyLaunch launch(queue, dim3(unsigned(clusters * kCluster)), kThreads, kSharedBytes,
                           kCluster);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, mapA, mapB, p, tiling));
  return AQ_OK;
}

}  // namespace aq::cuda
