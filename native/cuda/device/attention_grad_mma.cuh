// attention_grad_mma.cuh: the kernels of attention's gradient on the tensor cores.
//
// gradKeysMma works on turned scores, keys by queries: a warp has 16 keys, whose sums gk and gv
// stay in its registers, and pT and dsT become operands where they are. gradQueriesMma has rows of
// queries, 32 a warp. What passes by (q and go, or k and v) is double-buffered through cp.async.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_grad_args.cuh"
#include "native/cuda/device/attention_mma.cuh"
#include "native/cuda/device/attention_pack.cuh"

namespace aq::cuda {

namespace {

// Wider heads do not leave room for two sums of 16 rows in registers.
constexpr int kWidestMmaGradHead = 128;

template <int kD>
struct KeyTiles {
  static constexpr int kWarps = kD <= 64 ? 4 : 8, kThreads = kWarps * 32;
  static constexpr int kKeys = 16 * kWarps, kQueries = kD <= 64 ? 64 : 32;
  static constexpr uint32_t kKeyBytes = kKeys * kD * 2;
  static constexpr uint32_t kQueryBytes = kQueries * kD * 2;
  static constexpr uint32_t kRowSums = kQueries * 4;  // bytes of lse2 or delta
  // k and v, then two of q, two of go, two of lse2 and two of delta.
  static constexpr uint32_t kShared = 2 * kKeyBytes + 4 * kQueryBytes + 4 * kRowSums;
};

template <class E, int kD>
__global__ __launch_bounds__(KeyTiles<kD>::kThreads) void gradKeysMma(Backward<float, E> x) {
  using Tiles = KeyTiles<kD>;
  constexpr int kThreads = Tiles::kThreads, kQueries = Tiles::kQueries;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t kTile = sharedAddress(shared), vTile = kTile + Tiles::kKeyBytes;
  const uint32_t qTiles = vTile + Tiles::kKeyBytes, goTiles = qTiles + 2 * Tiles::kQueryBytes;
  const uint32_t lseRows = goTiles + 2 * Tiles::kQueryBytes;
  const uint32_t deltaRows = lseRows + 2 * Tiles::kRowSums;
  const float* const sums = reinterpret_cast<const float*>(shared + (lseRows - kTile));

  const KeyPlace at(x.shape, x.parts, Tiles::kKeys);
  const int rows = x.shape.padded;
  // Steps run over the block's query heads, and in each over its queries from the first key on.
  const int firstTile = at.key0 / kQueries;
  const int perHead = (x.shape.tokens + kQueries - 1) / kQueries - firstTile;
  const int steps = perHead * at.heads;
  const auto fetchQueries = [&](int step) {
    const int64_t head = at.head + step / perHead;
    const int query0 = (firstTile + step % perHead) * kQueries, stage = step & 1;
    const uint32_t offset = stage * Tiles::kQueryBytes;
    copyTile<kD, kQueries, kThreads>(qTiles + offset, x.q + head * rows * kD, rows, query0);
    copyTile<kD, kQueries, kThreads>(goTiles + offset, x.go + head * rows * kD, rows, query0);
    const int64_t row = head * rows + query0;
    const int i = int(threadIdx.x) % (kQueries / 4) * 4;
    const uint32_t to = stage * Tiles::kRowSums + i * 4;
    if (threadIdx.x < kQueries / 4)
      copyAsync16(lseRows + to, x.lse2 + row + i);
    else if (threadIdx.x < kQueries / 2)
      copyAsync16(deltaRows + to, x.delta + row + i);
    commitCopies();
  };
  const int64_t kvHead = at.kvHead * rows * kD;
  copyTile<kD, Tiles::kKeys, kThreads>(kTile, x.k + kvHead, rows, at.key0);
  copyTile<kD, Tiles::kKeys, kThreads>(vTile, x.v + kvHead, rows, at.key0);
  fetchQueries(0);

  const int lane = int(threadIdx.x) & 31, warpRow0 = int(threadIdx.x) / 32 * 16;
  const uint32_t kLane = laneOfRows<kD>(kTile) + warpRow0 * kRowBytes<kD>;
  const uint32_t vLane = laneOfRows<kD>(vTile) + warpRow0 * kRowBytes<kD>;
  const int key0 = at.key0 + warpRow0;
  float gk[1][kD / 8][4] = {}, gv[1][kD / 8][4] = {};

  for (int step = 0; step < steps; step++) {
    waitCopies<0>();
    __syncthreads();  // the tile is there, and all warps have left the one before
    if (step + 1 < steps) fetchQueries(step + 1);
    const int query0 = (firstTile + step % perHead) * kQueries;
    if (query0 + kQueries <= key0) continue;
    const int stage = step & 1;
    const uint32_t qTile = qTiles + stage * Tiles::kQueryBytes;
    const uint32_t goTile = goTiles + stage * Tiles::kQueryBytes;
    const float* const lse2 = sums + stage * kQueries + 2 * (lane & 3);
    const float* const delta = lse2 + 2 * kQueries;

    float p[1][kQueries / 8][4];
    multiplyRows<E, kD, Tiles::kKeys, 1, kQueries>(p, kLane, laneOfColumns<kD>(qTile));
    const bool isCut = query0 < key0 + 15;  // the mask cuts the tile
    const int least = key0 + lane / 4 - query0 - 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < kQueries / 8; n++) {
      const float2 row = *reinterpret_cast<const float2*>(lse2 + n * 8);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        p[0][n][e] = powerOfTwo(p[0][n][e] * x.power - (e & 1 ? row.y : row.x));
        if (isCut && n * 8 + (e & 1) < least + e / 2 * 8) p[0][n][e] = 0;
      }
    }
    addUpRows<E, kD, 1, kQueries>(gv, p, laneOfRows<kD>(goTile));

    float ds[1][kQueries / 8][4];
    multiplyRows<E, kD, Tiles::kKeys, 1, kQueries>(ds, vLane, laneOfColumns<kD>(goTile));
#pragma unroll
    for (int n = 0; n < kQueries / 8; n++) {
      const float2 row = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
      for (int e = 0; e < 4; e++)
        ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - (e & 1 ? row.y : row.x));
    }
    addUpRows<E, kD, 1, kQueries>(gk, ds, laneOfRows<kD>(qTile));
  }

  const float unscale = 1 / gradientFactor(x.peak), scale = float(x.shape.scale) * unscale;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int key = key0 + 8 * half + lane / 4;
    if (key >= x.shape.tokens) continue;
    const int64_t start = at.row(x.shape, key);
    storeRow<kD>(x.gk + start, x.shape.size, x.isPaired, gk[0], half, scale);
    storeRow<kD>(x.gv + start, x.shape.size, x.isPaired, gv[0], half, unscale);
  }
}

template <int kD>
struct QueryTiles {
  static constexpr int kM = 2;  // fragments of 16 queries, a warp
  static constexpr int kWarps = 4, kThreads = kWarps * 32;
  static constexpr int kRows = kWarps * 16 * kM, kKeys = kD <= 64 ? 64 : 32;
  static constexpr uint32_t kQueryBytes = kRows * kD * 2;
  static constexpr uint32_t kKeyBytes = kKeys * kD * 2;
  static constexpr uint32_t kShared = 2 * kQueryBytes + 4 * kKeyBytes;  // q, go; two of k and of v
};

template <class E, int kD>
__global__ __launch_bounds__(QueryTiles<kD>::kThreads) void gradQueriesMma(Backward<float, E> x) {
  using Tiles = QueryTiles<kD>;
  constexpr int kThreads = Tiles::kThreads, kM = Tiles::kM, kKeys = Tiles::kKeys;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t qTile = sharedAddress(shared), goTile = qTile + Tiles::kQueryBytes;
  const uint32_t kTiles = goTile + Tiles::kQueryBytes, vTiles = kTiles + 2 * Tiles::kKeyBytes;

  const QueryPlace at(x.shape, x.blocks, Tiles::kRows);
  const int rows = x.shape.padded;
  const int64_t firstQuery = at.head * rows + at.row0;
  const E* const k = x.k + at.kvHead * rows * kD;
  const E* const v = x.v + at.kvHead * rows * kD;
  const auto fetchKeys = [&](int tile) {
    const uint32_t offset = (tile & 1) * Tiles::kKeyBytes;
    copyTile<kD, kKeys, kThreads>(kTiles + offset, k, rows, tile * kKeys);
    copyTile<kD, kKeys, kThreads>(vTiles + offset, v, rows, tile * kKeys);
    commitCopies();
  };
  copyTile<kD, Tiles::kRows, kThreads>(qTile, x.q + at.head * rows * kD, rows, at.row0);
  copyTile<kD, Tiles::kRows, kThreads>(goTile, x.go + at.head * rows * kD, rows, at.row0);
  fetchKeys(0);

  const int lane = int(threadIdx.x) & 31, warpRow0 = int(threadIdx.x) / 32 * 16 * kM;
  const uint32_t qLane = laneOfRows<kD>(qTile) + warpRow0 * kRowBytes<kD>;
  const uint32_t goLane = laneOfRows<kD>(goTile) + warpRow0 * kRowBytes<kD>;
  const int firstRow = at.row0 + warpRow0, lastRow = firstRow + 16 * kM - 1;
  float lse2[kM][2], delta[kM][2], gq[kM][kD / 8][4] = {};
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t row = firstQuery + warpRow0 + 16 * m + 8 * half + lane / 4;
      lse2[m][half] = x.lse2[row];
      delta[m][half] = x.delta[row];
    }

  const int tiles = (at.row0 + Tiles::kRows) / kKeys;
  for (int tile = 0; tile < tiles; tile++) {
    waitCopies<0>();
    __syncthreads();  // the tile is there, and all warps have left the one before
    if (tile + 1 < tiles) fetchKeys(tile + 1);
    const int key0 = tile * kKeys;
    if (key0 > lastRow) continue;
    const uint32_t offset = (tile & 1) * Tiles::kKeyBytes;
    float p[kM][kKeys / 8][4], ds[kM][kKeys / 8][4];
    multiplyRows<E, kD, Tiles::kRows, kM, kKeys>(p, qLane, laneOfColumns<kD>(kTiles + offset));
    multiplyRows<E, kD, Tiles::kRows, kM, kKeys>(ds, goLane, laneOfColumns<kD>(vTiles + offset));
#pragma unroll
    for (int m = 0; m < kM; m++) {
      const bool isCut = key0 + kKeys - 1 > firstRow + 16 * m;  // the mask cuts the tile
      const int seen = firstRow + 16 * m + lane / 4 - key0 - 2 * (lane & 3);
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float weight = powerOfTwo(p[m][n][e] * x.power - lse2[m][e / 2]);
          ds[m][n][e] = weight * (ds[m][n][e] - delta[m][e / 2]);
          if (isCut && n * 8 + (e & 1) > seen + e / 2 * 8) ds[m][n][e] = 0;
        }
    }
    addUpRows<E, kD, kM, kKeys>(gq, ds, laneOfRows<kD>(kTiles + offset));
  }

  const float scale = float(x.shape.scale) / gradientFactor(x.peak);
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = firstRow + 16 * m + 8 * half + lane / 4;
      if (row >= x.shape.tokens) continue;
      const int64_t start = ((at.b * x.shape.tokens + row) * x.shape.heads + at.h) * x.shape.size;
      storeRow<kD>(x.gq + start, x.shape.size, x.isPaired, gq[m], half, scale);
    }
}

}  // namespace

}  // namespace aq::cuda
