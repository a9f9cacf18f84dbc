// headProductShort: the weights of attention heads, of two-byte numbers, times one small matrix per
// kv head, in one pass.
//
// Math      side 0: y_h [D, L] = op(m) w_h.  side 1: y_h [L, D] = w_h op(m).
// Layout    as head_product.cu, but a block, one on a multiprocessor, takes every parts-th piece of
//           128 of its head, half of its warps one half. m, rounded to the type of w, passes
//           through shared memory into registers, where it stays: every warp holds what its 32 rows
//           by a quarter of D columns need. Pieces are copied in the background, three ahead; the
//           result goes through shared memory, so that it is stored in 16-byte accesses.
// Cost      reads and writes heads D L numbers once; 2 heads D^2 L flop on tensor cores.
// Roofline  32 heads of 128 by 4096: 67 MB -> 20 us at 3.35 TB/s; 4.3 Gflop -> 4 us at 989 Tflop/s
//           (H100 SXM data sheet).
//           Measured on an H100 80GB HBM3: side 1 32 us, where a copy of as many bytes takes 26 us.
// Versions  v1 pieces of 64 and two blocks of 256 threads: 47 us (side 0) and 35 us (side 1); v2
//           pieces of 128: 36 us and 33 us; v3 one block of 512 threads: 45 us and 32 us,
//           where on side 0 only 1 KiB of every 8 was being read at any time; v4 heads begin at
//           different places (this).
// Numerics  w as it is, m rounded to its type, f32 sums, rounded once.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/head_tile.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/kernels/head_product.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kStages = 3;
constexpr int kHalf = kShortSpan / 2;  // of a piece along the length
constexpr int64_t kBlocks = 132;       // that run at once on the largest GPUs

template <class E>
struct Heads {
  const E* w;
  const float* m;
  E* y;
  int64_t headStep;
  int32_t ld, length, perKv, parts;
  bool transpose;
};

template <int kD, int kSide>
struct Tile : ShortTile<kD, kSide, kThreads> {
  using Base = ShortTile<kD, kSide, kThreads>;
  static constexpr int kMatrixPitch = kD + kHeadPad;
  // The matrix, in whose place the results follow.
  static constexpr int kFront = std::max(kD * kMatrixPitch, int(Base::kSize));
  static constexpr int kBytes = 2 * (kFront + kStages * Base::kSize);

  template <class E>
  static __device__ void loadMatrix(const float* m, E* matrix) {
    constexpr int kLoads = kD * kD / 4 / kThreads;
    Vec<float, 4> value[kLoads];  // all under way at once
#pragma unroll
    for (int i = 0; i < kLoads; i++) value[i] = loadVec<float, 4>(m, i * kThreads + threadIdx.x);
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const int k = i * kThreads + int(threadIdx.x);
      E* const to = matrix + k / (kD / 4) * kMatrixPitch + k % (kD / 4) * 4;
      storeVec(to, 0, narrow<E>(value[i]));
    }
  }
};

// What a warp needs of op(m): as it is read from shared memory, term by term of the sums.
template <class E, int kParts, int kTerms>
struct Fragments {
  uint32_t part[kParts][kTerms][4];

  template <class Operand>
  __device__ void load(const Operand& own) {
#pragma unroll
    for (int i = 0; i < kParts; i++) {
#pragma unroll
      for (int term = 0; term < kTerms; term++) own.load(part[i][term], i, term);
    }
  }
};

template <class E, int kD, int kSide>
__global__ __launch_bounds__(kThreads, 1) void multiplyShort(Heads<E> x) {
  using T = Tile<kD, kSide>;
  constexpr int kRowWarps = (kSide == 0 ? kD : kHalf) / 32;
  constexpr int kColumnTiles = kD / 32;  // of 8, of a warp: a quarter of D on either side
  constexpr int kTerms = kD / 16;
  // Parts of 16 of the matrix along its other dimension, and of half a piece along its own.
  constexpr int kOfMatrix = kSide == 0 ? 2 : kColumnTiles / 2;
  constexpr int kOfPiece = kSide == 0 ? kColumnTiles / 2 : 2;
  constexpr int kHalfStep = kSide == 0 ? kHalf : kHalf * T::kPitch;
  extern __shared__ __align__(16) unsigned char bytes[];
  E* const front = reinterpret_cast<E*>(bytes);
  E* const stages = front + T::kFront;

  const int32_t head = int32_t(blockIdx.x) / x.parts;
  const int32_t tiles = (x.length + kShortSpan - 1) / kShortSpan;
  int32_t t = int32_t(blockIdx.x) - head * x.parts;
  // Heads begin at different places, so that at any time all of a row is being read somewhere: only
  // some columns of many rows would keep only some of the memory's channels busy.
  const int32_t shift = int32_t(int64_t(head) * x.parts % tiles);
  const auto firstOf = [&](int tile) {
    return (tile + shift < tiles ? tile + shift : tile + shift - tiles) * kShortSpan;
  };
  const auto copy = [&](int tile, int stage) {
    if (tile < tiles) {
      T::template copy<false>(x.w + head * x.headStep, x.ld, firstOf(tile), x.length,
                              stages + stage * T::kSize);
    }
    commitCopies();
  };
#pragma unroll
  for (int s = 0; s < kStages; s++) copy(t + s * x.parts, s);

  constexpr int kHalfWarps = kThreads / 64;
  const int half = int(threadIdx.x) / 32 / kHalfWarps, warp = int(threadIdx.x) / 32 % kHalfWarps;
  const int lane = int(threadIdx.x) % 32;
  const int row = warp % kRowWarps * 32, column = warp / kRowWarps * (8 * kColumnTiles);
  Fragments<E, kOfMatrix, kTerms> m;
  T::loadMatrix(x.m + head / x.perKv * (kD * kD), front);
  __syncthreads();
  {
    // Where this warp's part begins along the rows, or the columns, of op(m).
    const int own = kSide == 0 ? row : column;
    if (x.transpose == (kSide == 0)) {
      m.load(splitOperand<kSide == 0, true>(front + own, 0, T::kMatrixPitch));
    } else {
      m.load(splitOperand<kSide == 0, false>(front + own * T::kMatrixPitch, 0, T::kMatrixPitch));
    }
  }

  for (int stage = 0; t < tiles; t += x.parts) {
    waitCopies<kStages - 1>();
    __syncthreads();  // the piece is there; the last result has been stored
    const E* const piece = stages + stage * T::kSize + half * kHalfStep;
    const auto own = splitOperand<kSide == 1, kSide == 0>(
        piece + (kSide == 0 ? column : row * T::kPitch), 0, T::kPitch);
    float sum[2][kColumnTiles][4] = {};
#pragma unroll
    for (int term = 0; term < kTerms; term++) {
#pragma unroll
      for (int i = 0; i < kOfPiece; i++) {
        uint32_t w[4];
        own.load(w, i, term);
        // Of the piece and of the matrix in turn: rows of the result, and columns in eights.
#pragma unroll
        for (int other = 0; other < kOfMatrix; other++) {
          auto& matrix = m.part[other][term];
          const int r = kSide == 0 ? other : i, c = kSide == 0 ? i : other;
#pragma unroll
          for (int eight = 0; eight < 2; eight++) {
            auto& right = kSide == 0 ? w : matrix;
            const uint32_t pair[2] = {right[2 * eight], right[2 * eight + 1]};
            mma(sum[r][2 * c + eight], kSide == 0 ? matrix : w, pair, E());
          }
        }
      }
    }
    E* const to = front + half * kHalfStep + (row + lane / 4) * T::kPitch + column + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; c++) {
        const float* const pair = sum[r / 2][c] + r % 2 * 2;
        storeVec(to + 8 * r * T::kPitch + 8 * c, 0, narrow<E>(Vec<float, 2>{{pair[0], pair[1]}}));
      }
    }
    __syncthreads();  // the result is whole, and the piece has been read
    copy(t + kStages * x.parts, stage);
    T::store(front, x.y + head * x.headStep, x.ld, firstOf(t), x.length);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
}

template <class E, int kD, int kSide>
int32_t launch(aq_queue* queue, const HeadLayout& layout, Heads<E> x, bool* taken, aq_error* err) {
  constexpr int kBytes = Tile<kD, kSide>::kBytes;
  int most = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device));
  if (kBytes > most) return AQ_OK;
  *taken = true;
  const auto kernel = multiplyShort<E, kD, kSide>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  x.parts = int32_t(blocksOf(layout.heads, layout.pieces(kShortSpan), kBlocks, kBlocks));
  kernel<<<unsigned(layout.heads * x.parts), kThreads, kBytes, queue->stream>>>(x);
  LAUNCH_CHECK("head_matmul");
  return AQ_OK;
}

template <class E>
int32_t launchAny(aq_queue* queue, const HeadLayout& layout, const void* w, const float* m,
                  bool transpose, void* y, bool* taken, aq_error* err) {
  Heads<E> x = {};
  x.w = static_cast<const E*>(w);
  x.m = m;
  x.y = static_cast<E*>(y);
  x.headStep = layout.headStep;
  x.ld = int32_t(layout.ld);
  x.length = int32_t(layout.length);
  x.perKv = int32_t(layout.perKv());
  x.transpose = transpose;
  if (layout.size == 64) {
    return layout.side == 0 ? launch<E, 64, 0>(queue, layout, x, taken, err)
                            : launch<E, 64, 1>(queue, layout, x, taken, err);
  }
  return layout.side == 0 ? launch<E, 128, 0>(queue, layout, x, taken, err)
                          : launch<E, 128, 1>(queue, layout, x, taken, err);
}

}  // namespace

int32_t headProductShort(aq_queue* queue, const HeadLayout& layout, int32_t dtype, const void* w,
                         const float* m, bool transpose, void* y, bool* taken, aq_error* err) {
  const bool suits = (layout.size == 64 || layout.size == 128) && layout.ld % 8 == 0 &&
                     fitsPieces(layout.length, layout.ld) && isAligned16(w) && isAligned16(m) &&
                     isAligned16(y);
  if (!suits) return AQ_OK;
  return dtype == AQ_F16 ? launchAny<__half>(queue, layout, w, m, transpose, y, taken, err)
                         : launchAny<__nv_bfloat16>(queue, layout, w, m, transpose, y, taken, err);
}

}  // namespace aq::cuda
