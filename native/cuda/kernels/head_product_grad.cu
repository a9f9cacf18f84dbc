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
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/split_bf16.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels/head_product.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using Vec4 = Vec<float, 4>;

constexpr int kSpan = 64;  // of a piece along the length
constexpr int kPad = 8;
constexpr int kAddThreads = 256;

struct Groups {
  const float* a;
  const float* b;
  float* sums;  // [splits, kvHeads, D, D], or gm itself for one split
  int64_t ld, headStep, length;
  int64_t perKv, kvHeads, splits;
};

template <int kD, int kSide>
struct Piece {
  // A warp for every 32 rows by a quarter of the columns of the sum.
  static constexpr int kThreads = kD * 4;
  // Blocks that run at once on the largest GPUs: one a multiprocessor for D = 128, else two.
  static constexpr int64_t kBlocks = kD == 128 ? 132 : 264;
  static constexpr int kRows = kSide == 0 ? kD : kSpan, kColumns = kSide == 0 ? kSpan : kD;
  static constexpr int kPitch = kColumns + kPad, kLow = kRows * kPitch;
  static constexpr int kLoads = kRows * kColumns / 4 / kThreads;
  static constexpr int kBytes = 4 * kLow * int(sizeof(__nv_bfloat16));

  static __device__ void load(const Groups& x, const float* from, int64_t first,
                              Vec4 (&value)[kLoads]) {
    from += kSide == 0 ? first : first * x.ld;
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const int k = i * kThreads + int(threadIdx.x);
      const int row = k / (kColumns / 4), column = k % (kColumns / 4);
      const bool isInside = first + (kSide == 0 ? 4 * column : row) < x.length;
      value[i] = isInside ? loadVec<float, 4>(from + row * x.ld, column) : Vec4{};
    }
  }
  static __device__ void store(const Vec4 (&value)[kLoads], __nv_bfloat16* tile) {
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const int k = i * kThreads + int(threadIdx.x);
      const int row = k / (kColumns / 4), column = k % (kColumns / 4);
      storeSplit(tile + row * kPitch + 4 * column, kLow, value[i]);
    }
  }
};

template <int kD, int kSide>
__global__ __launch_bounds__(kD * 4, kD == 128 ? 1 : 2) void sumGroups(Groups x) {
  using P = Piece<kD, kSide>;
  constexpr int kRowWarps = kD / 32, kColumnTiles = kD / 32;  // of 8
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  __nv_bfloat16* const aTile = shared;
  __nv_bfloat16* const bTile = shared + 2 * P::kLow;

  const int64_t kv = blockIdx.x / x.splits, split = blockIdx.x - kv * x.splits;
  const int64_t perHead = (x.length + kSpan - 1) / kSpan, pieces = perHead * x.perKv;
  const int64_t end = pieces * (split + 1) / x.splits;
  int64_t piece = pieces * split / x.splits;

  Vec4 nextA[P::kLoads], nextB[P::kLoads];
  const auto load = [&](int64_t index) {
    const int64_t member = index / perHead, first = (index - member * perHead) * kSpan;
    const int64_t head = (kv * x.perKv + member) * x.headStep;
    P::load(x, x.a + head, first, nextA);
    P::load(x, x.b + head, first, nextB);
  };
  if (piece < end) load(piece);

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row = warp % kRowWarps * 32, column = warp / kRowWarps * (8 * kColumnTiles);
  // On side 0 both operands lie with the terms along their rows, on side 1 across.
  const auto a = splitOperand<true, kSide == 1>(aTile + (kSide == 0 ? row * P::kPitch : row),
                                                P::kLow, P::kPitch);
  const auto b = splitOperand<false, kSide == 1>(bTile + (kSide == 0 ? column * P::kPitch : column),
                                                 P::kLow, P::kPitch);
  float sum[2][kColumnTiles][4] = {};
  for (; piece < end; piece++) {
    P::store(nextA, aTile);
    P::store(nextB, bTile);
    __syncthreads();
    if (piece + 1 < end) load(piece + 1);
#pragma unroll 1
    for (int term = 0; term < kSpan / 16; term++) multiplySplit(sum, a, b, term);
    __syncthreads();  // the pieces have been read
  }

  float* const to = x.sums + (split * x.kvHeads + kv) * (kD * kD);
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

__global__ __launch_bounds__(kAddThreads) void addSplits(const float* __restrict__ sums,
                                                         float* __restrict__ gm, int64_t vectors,
                                                         int64_t splits) {
  const int64_t k = int64_t(blockIdx.x) * kAddThreads + threadIdx.x;
  if (k >= vectors) return;
  Vec4 total = loadVec<float, 4>(sums, k);
#pragma unroll 4
  for (int64_t split = 1; split < splits; split++) {
    const Vec4 part = loadVec<float, 4>(sums, split * vectors + k);
#pragma unroll
    for (int e = 0; e < 4; e++) total.lane[e] += part.lane[e];
  }
  storeVec(gm, k, total);
}

template <int kD, int kSide>
int32_t launch(aq_queue* queue, const HeadLayout& layout, const float* a, const float* b, float* gm,
               aq_error* err) {
  using P = Piece<kD, kSide>;
  const int64_t perKv = layout.perKv();
  const int64_t pieces = perKv * ((layout.length + kSpan - 1) / kSpan);
  const int64_t splits = std::clamp<int64_t>(P::kBlocks / layout.kvHeads, 1, pieces);
  const int64_t count = layout.kvHeads * kD * kD;
  Scratch scratch(queue);
  float* sums = gm;
  if (splits > 1) {
    const uint64_t bytes = sizeof(float) * uint64_t(splits * count);
    if (scratch.allocate(bytes, "head_matmul_grad", err) != AQ_OK) return err->code;
    sums = scratch.at<float>();
  }
  const Groups x = {
      a, b, sums, layout.ld, layout.headStep, layout.length, perKv, layout.kvHeads, splits};
  CUDA_CHECK(cudaFuncSetAttribute(sumGroups<kD, kSide>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  P::kBytes));
  const unsigned blocks = unsigned(layout.kvHeads * splits);
  sumGroups<kD, kSide><<<blocks, P::kThreads, P::kBytes, queue->stream>>>(x);
  LAUNCH_CHECK("head_matmul_grad (pieces)");
  if (splits > 1) {
    const int64_t vectors = count / 4;
    addSplits<<<unsigned((vectors + kAddThreads - 1) / kAddThreads), kAddThreads, 0,
                queue->stream>>>(sums, gm, vectors, splits);
    LAUNCH_CHECK("head_matmul_grad (sums)");
  }
  return AQ_OK;
}

}  // namespace

int32_t headProductGrad(aq_queue* queue, const HeadLayout& layout, const float* a, const float* b,
                        float* gm, bool* taken, aq_error* err) {
  const bool suits = (layout.size == 64 || layout.size == 128) && layout.ld % 4 == 0 &&
                     isAligned16(a) && isAligned16(b) && isAligned16(gm);
  if (!suits) return AQ_OK;
  *taken = true;
  if (layout.size == 64) {
    return layout.side == 0 ? launch<64, 0>(queue, layout, a, b, gm, err)
                            : launch<64, 1>(queue, layout, a, b, gm, err);
  }
  return layout.side == 0 ? launch<128, 0>(queue, layout, a, b, gm, err)
                          : launch<128, 1>(queue, layout, a, b, gm, err);
}

}  // namespace aq::cuda
