// attention, attention_operand: causal softmax attention over blocks of queries, forward; and with the
// quantizer of whole rows of its result.
//
// Math      o = softmax(scale q kT) v over the keys up to the query's own, query head h with kv
//           head h / (H / Hkv); lse = log sum exp of the scaled logits. q, k, v are put on their
//           grids.
// Layout    packHeads lays q, k and v out by head once, for the gradient to read again where it is to
//           keep them; then a block of queries stays while tiles of keys and values pass, with the
//           running maximum and sum of each row. Tiles above the diagonal are skipped; long blocks
//           start first. On Hopper, heads of 33 to 128 channels: attention_hopper.cuh. Other tensor
//           cores: a warp has 32 queries (16 from 256 channels on), scores and sums stay in its
//           registers, keys and values arrive by cp.async, double-buffered. Ordinary units: 16 x 16
//           threads, scores through shared memory.
//           The quantizer behind it is quant_operand: a block has one head of a row, whose grid goes
//           over all heads. Its codes written beside attention's last blocks, from extremes that each
//           head left and a count of its heads a block of queries, gained nothing (a W4A4 step of 5.72
//           ms with it, 5.73 without).
// Cost      2 T^2 D H flop (half the square, two products) and, packing included, about 10 bytes
//           per number of q, k, v, o: compute-bound from T of about 500 on.
// Roofline  T 2048, H 32, D 128: 34 GFLOP -> 35 us at 989 TFLOP/s, and 150 MB to pack -> 45 us at
//           3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB HBM3, driver 580, bf16: 134
//           us (packing 51, attention 77), where PyTorch's attention takes 84 us from bf16 tensors
//           laid out by head; with mma.sync 186 us; in f32 1.1 ms.
// Versions  v1 mma.sync; v2 with wgmma for Hopper; v3 softmax beside the tile before (this).
// Numerics  sums, maxima and softmax in f32 (f64 for f64 tensors); on the tensor cores q, k, v and
//           the probabilities are rounded to bf16 or f16. The order of sums is fixed.
#include "native/abi/params.h"
#include "native/cuda/device/attention_hopper.cuh"
#include "native/cuda/device/attention_mma.cuh"
#include "native/cuda/device/attention_pack.cuh"
#include "native/cuda/device/attention_shape.cuh"
#include "native/cuda/device/attention_simt.cuh"
#include "native/cuda/device/attention_softmax.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// ---------------------------------------------------------------- tensor cores

template <int kD>
struct MmaTiles {
  static constexpr int kM = kD <= 128 ? 2 : 1;  // fragments of 16 queries, a warp
  static constexpr int kWarps = 4, kThreads = kWarps * 32;
  static constexpr int kRows = kWarps * 16 * kM, kKeys = kD <= 128 ? 64 : 32;
  static constexpr uint32_t kQueryBytes = kRows * kD * 2;
  static constexpr uint32_t kKeyBytes = kKeys * kD * 2;
  static constexpr uint32_t kShared = kQueryBytes + 4 * kKeyBytes;  // q, then two of k and v
};

template <class E, int kD>
__global__ __launch_bounds__(MmaTiles<kD>::kThreads) void forwardMma(Forward<float, E> x) {
  using Tiles = MmaTiles<kD>;
  constexpr int kM = Tiles::kM, kKeys = Tiles::kKeys;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t qTile = sharedAddress(shared), kTiles = qTile + Tiles::kQueryBytes;
  const uint32_t vTiles = kTiles + 2 * Tiles::kKeyBytes;
  const QueryPlace at(x.shape, x.blocks, Tiles::kRows);
  const int rows = x.shape.padded;
  const E* const k = x.k + at.kvHead * rows * kD;
  const E* const v = x.v + at.kvHead * rows * kD;
  const auto fetchKeys = [&](int tile) {
    const uint32_t offset = (tile & 1) * Tiles::kKeyBytes;
    copyTile<kD, kKeys, Tiles::kThreads>(kTiles + offset, k, rows, tile * kKeys);
    copyTile<kD, kKeys, Tiles::kThreads>(vTiles + offset, v, rows, tile * kKeys);
    commitCopies();
  };
  copyTile<kD, Tiles::kRows, Tiles::kThreads>(qTile, x.q + at.head * rows * kD, rows, at.row0);
  fetchKeys(0);

  const int warpRow0 = int(threadIdx.x) / 32 * 16 * kM;
  const uint32_t qLane = laneOfRows<kD>(qTile) + warpRow0 * kRowBytes<kD>;
  const int firstRow = at.row0 + warpRow0, lastRow = firstRow + 16 * kM - 1;
  float o[kM][kD / 8][4] = {};
  RowState state[kM][2];
#pragma unroll
  for (int m = 0; m < kM; m++) state[m][0] = state[m][1] = {-INFINITY, 0};

  const int tiles = (at.row0 + Tiles::kRows) / kKeys;
  for (int tile = 0; tile < tiles; tile++) {
    waitCopies<0>();
    __syncthreads();  // the tile is there, and all warps have left the one before
    if (tile + 1 < tiles) fetchKeys(tile + 1);
    const int key0 = tile * kKeys;
    if (key0 > lastRow) continue;
    const uint32_t offset = (tile & 1) * Tiles::kKeyBytes;
    float s[kM][kKeys / 8][4];
    multiplyRows<E, kD, Tiles::kRows, kM, kKeys>(s, qLane, laneOfColumns<kD>(kTiles + offset));
#pragma unroll
    for (int m = 0; m < kM; m++) {
      const int row0 = firstRow + 16 * m;
      if (key0 + kKeys - 1 > row0) hideKeys(s[m], row0, key0);
      float fade[2];
      softmaxStep(s[m], state[m], x.power, fade);
      fadeRows(o[m], fade);
    }
    addUpRows<E, kD, kM, kKeys>(o, s, laneOfRows<kD>(vTiles + offset));
  }

#pragma unroll
  for (int m = 0; m < kM; m++) storeRows<kD>(x, at, firstRow + 16 * m, o[m], state[m]);
}

// ---------------------------------------------------------------- ordinary units

// Rows of a tile, in sixteens: as many as 99 KB of shared memory take.
template <class T, int kD>
inline constexpr int kForwardRows = kD * sizeof(T) <= 512    ? 4
                                    : kD * sizeof(T) <= 1024 ? 2
                                                             : 1;

template <class T, int kD>
__global__ __launch_bounds__(kSimtThreads) void forwardSimt(Forward<T, T> x) {
  constexpr int kR = kForwardRows<T, kD>;
  using Tiles = SimtTiles<T, kD, kR>;
  extern __shared__ __align__(1024) char shared[];
  T* const qTile = reinterpret_cast<T*>(shared);
  T* const kvTile = qTile + Tiles::kTile;
  T* const square = kvTile + Tiles::kTile;
  const QueryPlace at(x.shape, x.blocks, Tiles::kRows);
  const int64_t rows = x.shape.padded;
  Tiles::load(qTile, x.q + (at.head * rows + at.row0) * kD);

  T o[kR][Tiles::kColumns] = {}, top[kR], sum[kR] = {};
#pragma unroll
  for (int i = 0; i < kR; i++) top[i] = -INFINITY;
  for (int key0 = 0; key0 < at.row0 + Tiles::kRows; key0 += Tiles::kRows) {
    __syncthreads();
    Tiles::load(kvTile, x.k + (at.kvHead * rows + key0) * kD);
    __syncthreads();
    T s[kR][kR];
    Tiles::multiplyRows(s, qTile, kvTile);
#pragma unroll
    for (int i = 0; i < kR; i++) {
      const int row = at.row0 + Tiles::y() + kSimtSide * i;
      T most = top[i];
#pragma unroll
      for (int j = 0; j < kR; j++) {
        const bool isSeen = key0 + Tiles::x() + kSimtSide * j <= row;
        s[i][j] = isSeen ? s[i][j] * x.power : T(-INFINITY);
        most = fmax(most, s[i][j]);
      }
#pragma unroll
      for (int step = kSimtSide / 2; step > 0; step /= 2)
        most = fmax(most, __shfl_xor_sync(~0u, most, step));
      const T fade = exp2(top[i] - most);
      top[i] = most;
      sum[i] *= fade;
#pragma unroll
      for (int c = 0; c < Tiles::kColumns; c++) o[i][c] *= fade;
#pragma unroll
      for (int j = 0; j < kR; j++) {
        s[i][j] = exp2(s[i][j] - most);
        sum[i] += s[i][j];
      }
    }
    Tiles::storeScores(square, s);
    __syncthreads();
    Tiles::load(kvTile, x.v + (at.kvHead * rows + key0) * kD);
    __syncthreads();
    Tiles::addUpRows(o, square, kvTile);
  }

#pragma unroll
  for (int i = 0; i < kR; i++) {
#pragma unroll
    for (int step = kSimtSide / 2; step > 0; step /= 2)
      sum[i] += __shfl_xor_sync(~0u, sum[i], step);
    const int row = at.row0 + Tiles::y() + kSimtSide * i;
    if (row >= x.shape.tokens) continue;
    const int64_t start = ((at.b * x.shape.tokens + row) * x.shape.heads + at.h) * x.shape.size;
    Tiles::storeRow(x.o + start, x.shape.size, o[i], 1 / sum[i]);
    if (Tiles::x() == 0)
      x.lse[at.head * x.shape.tokens + row] = (top[i] + log2(sum[i])) * T(1 / kLog2E);
  }
}

// ---------------------------------------------------------------- host

template <class T, class E>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view* out, const AttentionShape& shape,
            aq_error* err) {
  const uint64_t qBytes = scratchBytes(packedHeadBytes<E>(shape, shape.queryHeads()));
  const uint64_t kBytes = scratchBytes(packedHeadBytes<E>(shape, shape.keyHeads()));
  Scratch scratch(queue);
  // What is packed is the gradient's to read, or scratch.
  const bool isKept = sizeof(E) == 2 && numel(out[2]) > 0;
  if (!isKept) {
    if (int32_t code = scratch.allocate(qBytes + 2 * kBytes, "attention", err)) return code;
  }
  E* const q = isKept ? static_cast<E*>(out[2].data) : scratch.at<E>();
  E* const k = q + qBytes / sizeof(E);
  E* const v = k + kBytes / sizeof(E);
  Packer<T, E> packer(shape);
  packer.add(in[0], in + 3, shape.heads, q);
  packer.add(in[1], in + 5, shape.kvHeads, k);
  packer.add(in[2], in + 7, shape.kvHeads, v);
  if (int32_t code = packer.run(queue, "attention (packing)", err)) return code;

  Forward<T, E> x = {q,
                     k,
                     v,
                     static_cast<T*>(out[0].data),
                     static_cast<T*>(out[1].data),
                     shape,
                     T(shape.scale * kLog2E),
                     shape.size % 2 == 0 && isAligned16(out[0].data),
                     0};
  return visitWidth(shape.width, [&]<int kD>() {
    if constexpr (std::is_same_v<T, E>) {
      using Tiles = SimtTiles<T, kD, kForwardRows<T, kD>>;
      x.blocks = (shape.tokens + Tiles::kRows - 1) / Tiles::kRows;
      return launchTiles(queue, forwardSimt<T, kD>, "attention", shape.queryHeads() * x.blocks,
                         kSimtThreads, (2 * Tiles::kTile + Tiles::kSquare) * sizeof(T), err, x);
    } else {
      if constexpr (kD == 64 || kD == 128) {
        if (hasWarpgroups(queue)) {
          using Tiles = HopperTiles<kD>;
          x.blocks = (shape.tokens + Tiles::kRows - 1) / Tiles::kRows;
          return launchTiles(queue, forwardHopper<E, kD>, "attention",
                             shape.queryHeads() * x.blocks, Tiles::kThreads, Tiles::kShared, err,
                             x);
        }
      }
      using Tiles = MmaTiles<kD>;
      x.blocks = (shape.tokens + Tiles::kRows - 1) / Tiles::kRows;
      return launchTiles(queue, forwardMma<E, kD>, "attention", shape.queryHeads() * x.blocks,
                         Tiles::kThreads, Tiles::kShared, err, x);
    }
  });
}

int32_t runInPrecision(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const AttentionShape& shape, aq_error* err) {
  if (usesTensorCores(queue, in[0].dtype, shape)) {
    return visitPrecision(queue->precision,
                          [&]<class E>() { return run<float, E>(queue, in, out, shape, err); });
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return run<T, T>(queue, in, out, shape, err); });
}

}  // namespace

int32_t attention(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                  const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_attention_params*>(params);
  AttentionShape shape = {};
  if (int32_t code = attentionShape(in[0], p, "attention", shape, err)) return code;
  if (shape.isEmpty()) return AQ_OK;
  return runInPrecision(queue, in, out, shape, err);
}

int32_t attention_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_attention_operand_params*>(params);
  AttentionShape shape = {};
  if (int32_t code = attentionShape(in[0], o, "attention_operand", shape, err)) return code;
  if (shape.isEmpty()) return AQ_OK;
  if (int32_t code = runInPrecision(queue, in, out, shape, err)) return code;
  return quantizeRows(queue, out[0], in[9], o.row_bits, o.floor, out + 3, err);
}

}  // namespace aq::cuda
