// headProductGrad: the gradient of the matrices of attention heads, in one pass over both operands.
//
// Math      side 0: gm = sum over the heads of a group of a_h b_hT, a_h and b_h [D, L]; side 1: of
//           a_hT b_h, [L, D].
// Layout    a block takes some of the 64-long pieces of a group's heads and has the whole [D, D]
//           sum in its registers, a warp 32 rows by a quarter of the columns. The next pieces of a
//           and b come as f32 into registers while the last ones are multiplied, and are split into
//           two bf16 parts on their way to shared memory. The sums of a group's blocks go to
//           scratch and are added in order by a second kernel, which finds them in L2.
// Cost      reads 2 heads D L numbers once; 6 heads D^2 L flop on tensor cores.
// Roofline  32 heads of 128 by 4096: 134 MB -> 40 us at 3.35 TB/s; 12.9 Gflop -> 13 us at 989
//           Tflop/s (H100 SXM data sheet).
// Versions  v1: 61 us and 6 us for the final sums under ncu on an H100 80GB HBM3, where rounding to
//           bf16 and a dense product take 99 us; v2 independent products in between those of one
//           sum (this).
// Numerics  operands keep 16 bits (split_bf16.cuh), sums are f32 in an order that only the shape
//           decides.
#include "native/cuda/check.h"
#include "native/cuda/device/head_tile.cuh"
#include "native/cuda/device/split_bf16.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels/head_product.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using Vec4 = Vec<float, 4>;

constexpr int kAddThreads = 256;

struct Groups {
  const float* a;
  const float* b;
  float* sums;  // [splits, kvHeads, D, D], or gm itself for one split
  int64_t headStep;
  int32_t ld, length;
  int32_t perKv, kvHeads, splits;
};

// A warp for every 32 rows by a quarter of the columns of the sum.
template <int kD, int kSide>
struct Piece : SplitTile<kD, kSide, kD * 4> {
  static constexpr int kThreads = kD * 4;
  // Blocks that run at once on the largest GPUs: one a multiprocessor for D = 128, else two.
  static constexpr int64_t kBlocks = kD == 128 ? 132 : 264;
  static constexpr int kBytes = 4 * SplitTile<kD, kSide, kD * 4>::kLow * int(sizeof(__nv_bfloat16));
};

template <int kD, int kSide>
__global__ __launch_bounds__(kD * 4, kD == 128 ? 1 : 2) void sumGroups(Groups x) {
  using P = Piece<kD, kSide>;
  constexpr int kRowWarps = kD / 32, kColumnTiles = kD / 32;  // of 8
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  __nv_bfloat16* const aTile = shared;
  __nv_bfloat16* const bTile = shared + 2 * P::kLow;

  const int32_t kv = int32_t(blockIdx.x) / x.splits, split = int32_t(blockIdx.x) - kv * x.splits;
  PieceRange range(kv, split, x.splits, x.perKv, x.length, kSplitSpan);
  typename P::Registers nextA, nextB;
  const auto load = [&] {
    const int64_t head = range.head() * x.headStep;
    P::load(x.a + head, x.ld, range.first(), x.length, nextA);
    P::load(x.b + head, x.ld, range.first(), x.length, nextB);
    range.advance();
  };
  if (range.isInside()) load();

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row = warp % kRowWarps * 32, column = warp / kRowWarps * (8 * kColumnTiles);
  // On side 0 both operands lie with the terms along their rows, on side 1 across.
  const auto a = splitOperand<true, kSide == 1>(aTile + (kSide == 0 ? row * P::kPitch : row),
                                                P::kLow, P::kPitch);
  const auto b = splitOperand<false, kSide == 1>(bTile + (kSide == 0 ? column * P::kPitch : column),
                                                 P::kLow, P::kPitch);
  float sum[2][kColumnTiles][4] = {};
  for (int32_t i = 0, count = range.count(); i < count; i++) {
    P::store(nextA, aTile);
    P::store(nextB, bTile);
    __syncthreads();
    if (range.isInside()) load();
#pragma unroll 1
    for (int term = 0; term < kSplitSpan / 16; term++) multiplySplit(sum, a, b, term);
    __syncthreads();  // the pieces have been read
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

__global__ __launch_bounds__(kAddThreads) void addParts(const float* __restrict__ sums,
                                                        const float* start, float* gm,
                                                        int64_t vectors, int64_t parts) {
  const int64_t k = int64_t(blockIdx.x) * kAddThreads + threadIdx.x;
  if (k >= vectors) return;
  Vec4 total = start ? loadVec<float, 4>(start, k) : Vec4{};
#pragma unroll 4
  for (int64_t i = 0; i < parts; i++) {
    const Vec4 part = loadVec<float, 4>(sums, i * vectors + k);
#pragma unroll
    for (int e = 0; e < 4; e++) total.lane[e] += part.lane[e];
  }
  storeVec(gm, k, total);
}

template <int kD, int kSide>
int32_t launch(aq_queue* queue, const HeadLayout& layout, const float* a, const float* b, float* gm,
               bool accumulate, aq_error* err) {
  using P = Piece<kD, kSide>;
  const int64_t count = layout.kvHeads * kD * kD;
  Groups x = {};
  x.a = a;
  x.b = b;
  x.sums = gm;
  x.headStep = layout.headStep;
  x.ld = int32_t(layout.ld);
  x.length = int32_t(layout.length);
  x.perKv = int32_t(layout.perKv());
  x.kvHeads = int32_t(layout.kvHeads);
  x.splits = int32_t(blocksOf(layout.kvHeads, layout.perKv() * layout.pieces(kSplitSpan),
                              P::kBlocks, kMostSplits));
  const bool inParts = x.splits > 1 || accumulate;
  Scratch scratch(queue);
  if (inParts) {
    const uint64_t bytes = sizeof(float) * uint64_t(x.splits) * uint64_t(count);
    if (scratch.allocate(bytes, "head_matmul_grad", err) != AQ_OK) return err->code;
    x.sums = scratch.at<float>();
  }
  CUDA_CHECK(cudaFuncSetAttribute(sumGroups<kD, kSide>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  P::kBytes));
  const unsigned blocks = unsigned(layout.kvHeads * x.splits);
  sumGroups<kD, kSide><<<blocks, P::kThreads, P::kBytes, queue->stream>>>(x);
  LAUNCH_CHECK("head_matmul_grad (pieces)");
  return inParts ? addHeadParts(queue, x.sums, x.splits, count, accumulate, gm, err) : AQ_OK;
}

}  // namespace

int32_t headProductGrad(aq_queue* queue, const HeadLayout& layout, const float* a, const float* b,
                        float* gm, bool accumulate, bool* taken, aq_error* err) {
  const bool suits = (layout.size == 64 || layout.size == 128) && layout.ld % 4 == 0 &&
                     fitsPieces(layout.length, layout.ld) && isAligned16(a) && isAligned16(b) &&
                     isAligned16(gm);
  if (!suits) return AQ_OK;
  *taken = true;
  if (layout.size == 64) {
    return layout.side == 0 ? launch<64, 0>(queue, layout, a, b, gm, accumulate, err)
                            : launch<64, 1>(queue, layout, a, b, gm, accumulate, err);
  }
  return layout.side == 0 ? launch<128, 0>(queue, layout, a, b, gm, accumulate, err)
                          : launch<128, 1>(queue, layout, a, b, gm, accumulate, err);
}

int32_t addHeadParts(aq_queue* queue, const float* sums, int64_t parts, int64_t count,
                     bool accumulate, float* gm, aq_error* err) {
  const int64_t vectors = count / 4;
  const unsigned blocks = unsigned((vectors + kAddThreads - 1) / kAddThreads);
  addParts<<<blocks, kAddThreads, 0, queue->stream>>>(sums, accumulate ? gm : nullptr, gm, vectors,
                                                      parts);
  LAUNCH_CHECK("head_matmul_grad (sums)");
  return AQ_OK;
}

}  // namespace aq::cuda
