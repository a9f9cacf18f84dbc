// attention_grad_simt.cuh: the kernels of attention's gradient on the ordinary units, in T.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_grad_args.cuh"
#include "native/cuda/device/attention_simt.cuh"

namespace aq::cuda {

namespace {

// Rows of a tile, in sixteens: four tiles and two squares in 99 KB of shared memory.
template <class T, int kD>
inline constexpr int kGradRows = kD * sizeof(T) <= 128   ? 4
                                 : kD * sizeof(T) <= 512 ? 2
                                                         : 1;

template <class T, int kD>
using GradTiles = SimtTiles<T, kD, kGradRows<T, kD>>;

template <class T, int kD>
constexpr size_t gradShared(int squares) {
  return (4 * GradTiles<T, kD>::kTile + squares * GradTiles<T, kD>::kSquare) * sizeof(T);
}

template <class T, int kD>
__global__ __launch_bounds__(kSimtThreads) void gradKeysSimt(Backward<T, T> x) {
  using Tiles = GradTiles<T, kD>;
  constexpr int kR = kGradRows<T, kD>, kRows = Tiles::kRows;
  extern __shared__ __align__(1024) char shared[];
  T* const kTile = reinterpret_cast<T*>(shared);
  T* const vTile = kTile + Tiles::kTile;
  T* const qTile = vTile + Tiles::kTile;
  T* const goTile = qTile + Tiles::kTile;
  T* const pSquare = goTile + Tiles::kTile;
  T* const dsSquare = pSquare + Tiles::kSquare;

  const KeyPlace at(x.shape, x.parts, kRows);
  const int64_t rows = x.shape.padded, firstKey = at.kvHead * rows + at.key0;
  Tiles::load(kTile, x.k + firstKey * kD);
  Tiles::load(vTile, x.v + firstKey * kD);
  T gk[kR][Tiles::kColumns] = {}, gv[kR][Tiles::kColumns] = {};
  for (int64_t head = at.head; head < at.head + at.heads; head++)
    for (int query0 = at.key0; query0 < x.shape.tokens; query0 += kRows) {
      const int64_t firstQuery = head * rows + query0;
      __syncthreads();  // all threads have left the tiles before
      Tiles::load(qTile, x.q + firstQuery * kD);
      Tiles::load(goTile, x.go + firstQuery * kD);
      __syncthreads();
      T p[kR][kR], ds[kR][kR];  // keys by queries
      Tiles::multiplyRows(p, kTile, qTile);
      Tiles::multiplyRows(ds, vTile, goTile);
#pragma unroll
      for (int j = 0; j < kR; j++) {
        const int column = Tiles::x() + kSimtSide * j;
        const T lse2 = x.lse2[firstQuery + column], delta = x.delta[firstQuery + column];
#pragma unroll
        for (int i = 0; i < kR; i++) {
          const bool isSeen = at.key0 + Tiles::y() + kSimtSide * i <= query0 + column;
          p[i][j] = isSeen ? exp2(p[i][j] * x.power - lse2) : T(0);
          ds[i][j] = p[i][j] * (ds[i][j] - delta);
        }
      }
      Tiles::storeScores(pSquare, p);
      Tiles::storeScores(dsSquare, ds);
      __syncthreads();
      Tiles::addUpRows(gv, pSquare, goTile);
      Tiles::addUpRows(gk, dsSquare, qTile);
    }

#pragma unroll
  for (int i = 0; i < kR; i++) {
    const int key = at.key0 + Tiles::y() + kSimtSide * i;
    if (key >= x.shape.tokens) continue;
    const int64_t start = at.row(x.shape, key);
    Tiles::storeRow(x.gk + start, x.shape.size, gk[i], T(x.shape.scale));
    Tiles::storeRow(x.gv + start, x.shape.size, gv[i], T(1));
  }
}

template <class T, int kD>
__global__ __launch_bounds__(kSimtThreads) void gradQueriesSimt(Backward<T, T> x) {
  using Tiles = GradTiles<T, kD>;
  constexpr int kR = kGradRows<T, kD>, kRows = Tiles::kRows;
  extern __shared__ __align__(1024) char shared[];
  T* const qTile = reinterpret_cast<T*>(shared);
  T* const goTile = qTile + Tiles::kTile;
  T* const kTile = goTile + Tiles::kTile;
  T* const vTile = kTile + Tiles::kTile;
  T* const square = vTile + Tiles::kTile;

  const QueryPlace at(x.shape, x.blocks, kRows);
  const int64_t rows = x.shape.padded, firstQuery = at.head * rows + at.row0;
  Tiles::load(qTile, x.q + firstQuery * kD);
  Tiles::load(goTile, x.go + firstQuery * kD);
  T gq[kR][Tiles::kColumns] = {}, lse2[kR], delta[kR];
#pragma unroll
  for (int i = 0; i < kR; i++) {
    lse2[i] = x.lse2[firstQuery + Tiles::y() + kSimtSide * i];
    delta[i] = x.delta[firstQuery + Tiles::y() + kSimtSide * i];
  }
  for (int key0 = 0; key0 <= at.row0; key0 += kRows) {
    const int64_t firstKey = at.kvHead * rows + key0;
    __syncthreads();  // all threads have left the tiles before
    Tiles::load(kTile, x.k + firstKey * kD);
    Tiles::load(vTile, x.v + firstKey * kD);
    __syncthreads();
    T p[kR][kR], ds[kR][kR];
    Tiles::multiplyRows(p, qTile, kTile);
    Tiles::multiplyRows(ds, goTile, vTile);
#pragma unroll
    for (int i = 0; i < kR; i++)
#pragma unroll
      for (int j = 0; j < kR; j++) {
        const int row = at.row0 + Tiles::y() + kSimtSide * i;
        const bool isSeen = key0 + Tiles::x() + kSimtSide * j <= row;
        const T weight = isSeen ? exp2(p[i][j] * x.power - lse2[i]) : T(0);
        ds[i][j] = weight * (ds[i][j] - delta[i]);
      }
    Tiles::storeScores(square, ds);
    __syncthreads();
    Tiles::addUpRows(gq, square, kTile);
  }

#pragma unroll
  for (int i = 0; i < kR; i++) {
    const int row = at.row0 + Tiles::y() + kSimtSide * i;
    if (row >= x.shape.tokens) continue;
    const int64_t start = ((at.b * x.shape.tokens + row) * x.shape.heads + at.h) * x.shape.size;
    Tiles::storeRow(x.gq + start, x.shape.size, gq[i], T(x.shape.scale));
  }
}

}  // namespace

}  // namespace aq::cuda
