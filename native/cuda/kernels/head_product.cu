// headProduct: the weights of attention heads times one small matrix per kv head, in one pass.
//
// Math      side 0: y_h [D, L] = op(m) w_h.  side 1: y_h [L, D] = w_h op(m).
// Layout    a block keeps op(m), split into two bf16 parts, in shared memory and takes every
//           parts-th tile of 64 of its head: the tile comes as f32 into registers while the tile
//           before it is multiplied, and is split on its way to shared memory. 8 warps, 32 rows
//           each by a quarter of D columns. Two blocks on a multiprocessor, so that one loads while
//           the other computes.
// Cost      reads and writes heads D L numbers once; 6 heads D^2 L flop on tensor cores.
// Roofline  32 heads of 128 by 4096: 134 MB -> 40 us at 3.35 TB/s; 12.9 Gflop -> 13 us at 989
//           Tflop/s (H100 SXM data sheet).
// Versions  v1: 95 us (side 0) and 78 us (side 1) under ncu on an H100 80GB HBM3, where rounding to
//           bf16 and a dense product take 80 us and 83 us; v2 m read along its rows when
//           transposed, and independent products in between those of one sum (this).
// Numerics  operands keep 16 bits (split_bf16.cuh), sums are f32: what is dropped of a
//           factor is near 2^-16 of it, where rounding to bf16 drops 2^-8.
#include "native/cuda/kernels/head_product.h"

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/head_tile.cuh"
#include "native/cuda/device/split_bf16.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
// Blocks that run at once on the largest GPUs, two a multiprocessor.
constexpr int64_t kBlocks = 264;

struct Heads {
  const float* w;
  const float* m;
  float* y;
  int64_t headStep;
  int32_t ld, length, perKv, parts;
  bool transpose;
};

template <int kD, int kSide>
struct Tile : SplitTile<kD, kSide, kThreads> {
  static constexpr int kMatrixPitch = kD + kHeadPad, kMatrixLow = kD * kMatrixPitch;
  static constexpr int kBytes =
      2 * (kMatrixLow + SplitTile<kD, kSide, kThreads>::kLow) * int(sizeof(__nv_bfloat16));

  // op(m), row by row: on side 0 the left operand, on side 1 the right one.
  static __device__ void loadMatrix(const Heads& x, int64_t kv, __nv_bfloat16* matrix) {
    const float* const m = x.m + kv * (kD * kD);
#pragma unroll 4
    for (int k = threadIdx.x; k < kD * kD / 4; k += kThreads) {
      // Neighbouring threads read neighbouring numbers: along a row, or, transposed, down a column.
      const int row = x.transpose ? k % kD : k / (kD / 4);
      const int column = x.transpose ? k / kD * 4 : k % (kD / 4) * 4;
      Vec<float, 4> value;
      if (x.transpose) {
#pragma unroll
        for (int e = 0; e < 4; e++) value.lane[e] = __ldg(m + (column + e) * kD + row);
      } else {
        value = loadVec<float, 4>(m, k);
      }
      storeSplit(matrix + row * kMatrixPitch + column, kMatrixLow, value);
    }
  }
};

template <int kD, int kSide>
__global__ __launch_bounds__(kThreads, 2) void multiplyHeads(Heads x) {
  using T = Tile<kD, kSide>;
  constexpr int kRowWarps = kSide == 0 ? kD / 32 : kSplitSpan / 32;
  constexpr int kColumnTiles = kD / 32;  // of 8, of a warp: a quarter of D on either side
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  __nv_bfloat16* const matrix = shared;
  __nv_bfloat16* const tile = shared + 2 * T::kMatrixLow;

  const int32_t head = int32_t(blockIdx.x) / x.parts;
  const int32_t tiles = (x.length + kSplitSpan - 1) / kSplitSpan;
  int32_t t = int32_t(blockIdx.x) - head * x.parts;
  typename T::Registers next;
  T::load(x.w + head * x.headStep, x.ld, t * kSplitSpan, x.length, next);
  T::loadMatrix(x, head / x.perKv, matrix);

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row = warp % kRowWarps * 32, column = warp / kRowWarps * (8 * kColumnTiles);
  const auto a = kSide == 0 ? splitOperand<true, false>(matrix + row * T::kMatrixPitch,
                                                        T::kMatrixLow, T::kMatrixPitch)
                            : splitOperand<true, false>(tile + row * T::kPitch, T::kLow, T::kPitch);
  const auto b = kSide == 0
                     ? splitOperand<false, true>(tile + column, T::kLow, T::kPitch)
                     : splitOperand<false, true>(matrix + column, T::kMatrixLow, T::kMatrixPitch);
  for (; t < tiles; t += x.parts) {
    const int32_t first = t * kSplitSpan;
    T::store(next, tile);
    __syncthreads();
    if (t + x.parts < tiles)
      T::load(x.w + head * x.headStep, x.ld, (t + x.parts) * kSplitSpan, x.length, next);

    float sum[2][kColumnTiles][4] = {};
#pragma unroll 1
    for (int term = 0; term < kD / 16; term++) multiplySplit(sum, a, b, term);

    float* const to = x.y + head * x.headStep + T::start(first, x.ld);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int i = row + lane / 4 + 8 * r;
#pragma unroll
      for (int c = 0; c < kColumnTiles; c++) {
        const int j = column + 8 * c + lane % 4 * 2;
        const bool isInside = first + (kSide == 0 ? j : i) < x.length;
        const float* const pair = sum[r / 2][c] + r % 2 * 2;
        if (isInside) storeVec(to + i * x.ld + j, 0, Vec<float, 2>{{pair[0], pair[1]}});
      }
    }
    __syncthreads();  // the tile has been read
  }
}

template <int kD, int kSide>
int32_t launch(aq_queue* queue, const HeadLayout& layout, Heads x, bool* taken, aq_error* err) {
  constexpr int kBytes = Tile<kD, kSide>::kBytes;
  int most = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device));
  if (kBytes > most) return AQ_OK;
  *taken = true;
  CUDA_CHECK(cudaFuncSetAttribute(multiplyHeads<kD, kSide>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int64_t tiles = (layout.length + kSplitSpan - 1) / kSplitSpan;
  x.parts = int32_t(std::clamp<int64_t>(kBlocks / layout.heads, 1, tiles));
  multiplyHeads<kD, kSide>
      <<<unsigned(layout.heads * x.parts), kThreads, kBytes, queue->stream>>>(x);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? AQ_OK : failCuda(err, status, "the launch of head_matmul");
}

}  // namespace

int32_t headProduct(aq_queue* queue, const HeadLayout& layout, const float* w, const float* m,
                    bool transpose, float* y, bool* taken, aq_error* err) {
  const bool suits = (layout.size == 64 || layout.size == 128) && layout.ld % 4 == 0 &&
                     fitsPieces(layout.length, layout.ld) && isAligned16(w) && isAligned16(m) &&
                     isAligned16(y);
  if (!suits) return AQ_OK;
  const Heads x = {w,
                   m,
                   y,
                   layout.headStep,
                   int32_t(layout.ld),
                   int32_t(layout.length),
                   int32_t(layout.perKv()),
                   1,
                   transpose};
  if (layout.size == 64) {
    return layout.side == 0 ? launch<64, 0>(queue, layout, x, taken, err)
                            : launch<64, 1>(queue, layout, x, taken, err);
  }
  return layout.side == 0 ? launch<128, 0>(queue, layout, x, taken, err)
                          : launch<128, 1>(queue, layout, x, taken, err);
}

}  // namespace aq::cuda
