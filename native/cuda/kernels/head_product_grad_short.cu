// headProductGradShort: the gradient of the matrices of attention heads from weights and gradients
// of two-byte numbers, in one pass over both.
//
// Math      side 0: gm = sum over the heads of a group of a_h b_hT, a_h and b_h [D, L]; side 1: of
//           a_hT b_h, [L, D].
// Layout    as head_product_grad.cu: a block takes some of the 128-long pieces of a group's heads
//           and has the whole [D, D] sum in its registers, a warp 32 rows by a quarter of the
//           columns. Pieces are copied in the background, two ahead; f16 numbers become bf16 ones
//           on their way from shared memory to the tensor cores. The sums of a group's blocks go to
//           scratch and are added in order by a second kernel, which finds them in L2.
// Cost      reads 2 heads D L numbers once; 2 heads D^2 L flop on tensor cores.
// Roofline  32 heads of 128 by 4096: 67 MB -> 20 us at 3.35 TB/s; 4.3 Gflop -> 4 us at 989 Tflop/s
//           (H100 SXM data sheet).
// Versions  v1 pieces of 64, one kernel for both types: 45 us on an H100 80GB HBM3; v2 one for each,
//           pieces of 128, groups that begin at different places (this).
// Numerics  products of bf16 numbers, which an f16 one is rounded to; sums are f32 in an order that
//           only the shape decides.
#include "native/cuda/check.h"
#include "native/cuda/device/head_tile.cuh"
#include "native/cuda/kernels/head_product.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using E = __nv_bfloat16;  // as which both operands are multiplied

constexpr int kStages = 3;

struct Groups {
  const E* a;
  const E* b;
  float* sums;  // [splits, kvHeads, D, D], or gm itself for one split
  int64_t headStep;
  int32_t ld, length;
  int32_t perKv, kvHeads, splits;
};

// Which operand holds f16 numbers.
enum class Halves { kNone, kA, kB };

// A warp for every 32 rows by a quarter of the columns of the sum.
template <int kD, int kSide>
struct Piece : ShortTile<kD, kSide, kD * 4> {
  static constexpr int kThreads = kD * 4;
  // Blocks that run at once on the largest GPUs: one a multiprocessor for D = 128, else two.
  static constexpr int64_t kBlocks = kD == 128 ? 132 : 264;
  static constexpr int kBytes = 2 * 2 * kStages * ShortTile<kD, kSide, kD * 4>::kSize;
};

__device__ inline void roundHalves(uint32_t (&tile)[4]) {
#pragma unroll
  for (uint32_t& pair : tile) {
    __half2 halves;
    memcpy(&halves, &pair, sizeof pair);
    const __nv_bfloat162 rounded = __float22bfloat162_rn(__half22float2(halves));
    memcpy(&pair, &rounded, sizeof pair);
  }
}

template <int kD, int kSide, Halves kHalves>
__global__ __launch_bounds__(kD * 4, kD == 128 ? 1 : 2) void sumGroupsShort(Groups x) {
  using P = Piece<kD, kSide>;
  constexpr int kRowWarps = kD / 32, kColumnTiles = kD / 32;  // of 8
  extern __shared__ __align__(16) unsigned char bytes[];
  E* const stages = reinterpret_cast<E*>(bytes);

  const int32_t kv = int32_t(blockIdx.x) / x.splits, split = int32_t(blockIdx.x) - kv * x.splits;
  PieceRange range(kv, split, x.splits, x.perKv, x.length, kShortSpan);
  const int32_t count = range.count();  // `range` is where copies are
  const auto copy = [&](int stage) {
    if (range.isInside()) {
      const int64_t head = range.head() * x.headStep;
      E* const to = stages + stage * (2 * P::kSize);
      P::template copy<true>(x.a + head, x.ld, range.first(), x.length, to);
      P::template copy<true>(x.b + head, x.ld, range.first(), x.length, to + P::kSize);
      range.advance();
    }
    commitCopies();
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) copy(s);

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row = warp % kRowWarps * 32, column = warp / kRowWarps * (8 * kColumnTiles);
  float sum[2][kColumnTiles][4] = {};
  for (int32_t i = 0, stage = 0; i < count; i++) {
    waitCopies<kStages - 2>();
    __syncthreads();  // the pieces are there; the last ones have been read
    copy(stage == 0 ? kStages - 1 : stage - 1);

    // On side 0 both operands lie with the terms along their rows, on side 1 across.
    const E* const aTile = stages + stage * (2 * P::kSize);
    const E* const bTile = aTile + P::kSize;
    const auto a =
        splitOperand<true, kSide == 1>(aTile + (kSide == 0 ? row * P::kPitch : row), 0, P::kPitch);
    const auto b = splitOperand<false, kSide == 1>(
        bTile + (kSide == 0 ? column * P::kPitch : column), 0, P::kPitch);
#pragma unroll
    for (int term = 0; term < kShortSpan / 16; term++) {
      uint32_t left[2][4], right[kColumnTiles / 2][4];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        a.load(left[r], r, term);
        if constexpr (kHalves == Halves::kA) roundHalves(left[r]);
      }
#pragma unroll
      for (int c = 0; c < kColumnTiles / 2; c++) {
        b.load(right[c], c, term);
        if constexpr (kHalves == Halves::kB) roundHalves(right[c]);
      }
#pragma unroll
      for (int c = 0; c < kColumnTiles; c++) {
        const uint32_t part[2] = {right[c / 2][c % 2 * 2], right[c / 2][c % 2 * 2 + 1]};
#pragma unroll
        for (int r = 0; r < 2; r++) mma(sum[r][c], left[r], part, E());
      }
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }

  float* const to = x.sums + (int64_t(split) * x.kvHeads + kv) * (kD * kD);
#pragma unroll
  for (int r = 0; r < 4; r++) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; c++) {
      const int i = row + lane / 4 + 8 * r, j = column + 8 * c + lane % 4 * 2;
      const float* const pair = sum[r / 2][c] + r % 2 * 2;
      storeVec(to + i * kD + j, 0, Vec<float, 2>{{pair[0], pair[1]}});
    }
  }
}

template <int kD, int kSide, Halves kHalves>
int32_t launch(aq_queue* queue, const HeadLayout& layout, Groups x, float* gm, bool accumulate,
               bool* taken, aq_error* err) {
  using P = Piece<kD, kSide>;
  int most = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device));
  if (P::kBytes > most) return AQ_OK;
  *taken = true;
  x.splits = int32_t(blocksOf(layout.kvHeads, layout.perKv() * layout.pieces(kShortSpan),
                              P::kBlocks, kMostSplits));
  const int64_t count = layout.kvHeads * kD * kD;
  const bool inParts = x.splits > 1 || accumulate;
  Scratch scratch(queue);
  x.sums = gm;
  if (inParts) {
    const uint64_t bytes = sizeof(float) * uint64_t(x.splits) * uint64_t(count);
    if (scratch.allocate(bytes, "head_matmul_grad", err) != AQ_OK) return err->code;
    x.sums = scratch.at<float>();
  }
  const auto kernel = sumGroupsShort<kD, kSide, kHalves>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes));
  const unsigned blocks = unsigned(layout.kvHeads * x.splits);
  kernel<<<blocks, P::kThreads, P::kBytes, queue->stream>>>(x);
  LAUNCH_CHECK("head_matmul_grad (pieces)");
  return inParts ? addHeadParts(queue, x.sums, x.splits, count, accumulate, gm, err) : AQ_OK;
}

template <Halves kHalves>
int32_t launchAny(aq_queue* queue, const HeadLayout& layout, const Groups& x, float* gm,
                  bool accumulate, bool* taken, aq_error* err) {
  if (layout.size == 64) {
    return layout.side == 0 ? launch<64, 0, kHalves>(queue, layout, x, gm, accumulate, taken, err)
                            : launch<64, 1, kHalves>(queue, layout, x, gm, accumulate, taken, err);
  }
  return layout.side == 0 ? launch<128, 0, kHalves>(queue, layout, x, gm, accumulate, taken, err)
                          : launch<128, 1, kHalves>(queue, layout, x, gm, accumulate, taken, err);
}

}  // namespace

int32_t headProductGradShort(aq_queue* queue, const HeadLayout& layout, const void* a,
                             int32_t aDtype, const void* b, int32_t bDtype, float* gm,
                             bool accumulate, bool* taken, aq_error* err) {
  const bool suits = (layout.size == 64 || layout.size == 128) && layout.ld % 8 == 0 &&
                     fitsPieces(layout.length, layout.ld) && isAligned16(a) && isAligned16(b) &&
                     isAligned16(gm);
  if (!suits) return AQ_OK;
  Groups x = {};
  x.a = static_cast<const E*>(a);
  x.b = static_cast<const E*>(b);
  x.ld = int32_t(layout.ld);
  x.headStep = layout.headStep;
  x.length = int32_t(layout.length);
  x.perKv = int32_t(layout.perKv());
  x.kvHeads = int32_t(layout.kvHeads);
  if (aDtype == AQ_F16) return launchAny<Halves::kA>(queue, layout, x, gm, accumulate, taken, err);
  if (bDtype == AQ_F16) return launchAny<Halves::kB>(queue, layout, x, gm, accumulate, taken, err);
  return launchAny<Halves::kNone>(queue, layout, x, gm, accumulate, taken, err);
}

}  // namespace aq::cuda
