// attention_simt.cuh: products of tiles on the ordinary units, in T throughout, for heads of kD
// columns: 16 x 16 threads, thread (x, y) with rows y + 16 i and columns x + 16 j of a square of
// scores, i, j < kR.
#pragma once
#include <cstdint>

#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kSimtSide = 16, kSimtThreads = kSimtSide * kSimtSide;

template <class T, int kD, int kR>
struct SimtTiles {
  static constexpr int kRows = kSimtSide * kR;    // of every tile
  static constexpr int kVec = kVecWidth<T>;       // numbers of a 16-byte access
  static constexpr int kLd = kD + kVec;           // odd in units of 16 bytes, against conflicts
  static constexpr int kSquareLd = kRows + kVec;  // of scores
  static constexpr int kTile = kRows * kLd, kSquare = kRows * kSquareLd;  // sizes
  static constexpr int kColumns = kD / kSimtSide;                         // of a row, a thread
  static constexpr int kRun = kColumns < kVec ? kColumns : kVec;          // of which side by side

  static __device__ int x() { return int(threadIdx.x) % kSimtSide; }
  static __device__ int y() { return int(threadIdx.x) / kSimtSide; }
  // Column of a thread's c-th number in a row of kD.
  static __device__ int column(int c) { return (c / kRun * kSimtSide + x()) * kRun + c % kRun; }

  // Copies kRows rows, contiguous in memory, into a tile; all threads of the block.
  static __device__ void load(T* tile, const T* from) {
    constexpr int kChunks = kD / kVec;
    for (int i = int(threadIdx.x); i < kRows * kChunks; i += kSimtThreads) {
      *reinterpret_cast<Vec<T, kVec>*>(tile + i / kChunks * kLd + i % kChunks * kVec) =
          loadVec<T, kVec>(from, i);
    }
  }

  // s = A Bt.
  static __device__ void multiplyRows(T (&s)[kR][kR], const T* a, const T* b) {
#pragma unroll
    for (int i = 0; i < kR; i++)
#pragma unroll
      for (int j = 0; j < kR; j++) s[i][j] = 0;
#pragma unroll 4
    for (int d = 0; d < kD; d += kVec) {
      Vec<T, kVec> left[kR], right[kR];
#pragma unroll
      for (int i = 0; i < kR; i++)
        left[i] = *reinterpret_cast<const Vec<T, kVec>*>(a + (y() + kSimtSide * i) * kLd + d);
#pragma unroll
      for (int j = 0; j < kR; j++)
        right[j] = *reinterpret_cast<const Vec<T, kVec>*>(b + (x() + kSimtSide * j) * kLd + d);
#pragma unroll
      for (int e = 0; e < kVec; e++)
#pragma unroll
        for (int i = 0; i < kR; i++)
#pragma unroll
          for (int j = 0; j < kR; j++) s[i][j] += left[i].lane[e] * right[j].lane[e];
    }
  }

  // Puts a thread's scores into a square in shared memory.
  static __device__ void storeScores(T* square, const T (&s)[kR][kR]) {
#pragma unroll
    for (int i = 0; i < kR; i++)
#pragma unroll
      for (int j = 0; j < kR; j++)
        square[(y() + kSimtSide * i) * kSquareLd + x() + kSimtSide * j] = s[i][j];
  }

  // sums += P B, P a square of scores.
  static __device__ void addUpRows(T (&sums)[kR][kColumns], const T* p, const T* b) {
#pragma unroll 2
    for (int k = 0; k < kRows; k += kVec) {
      Vec<T, kVec> weight[kR];
#pragma unroll
      for (int i = 0; i < kR; i++)
        weight[i] =
            *reinterpret_cast<const Vec<T, kVec>*>(p + (y() + kSimtSide * i) * kSquareLd + k);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
#pragma unroll
        for (int c = 0; c < kColumns; c += kRun) {
          const auto part = *reinterpret_cast<const Vec<T, kRun>*>(b + (k + e) * kLd + column(c));
#pragma unroll
          for (int f = 0; f < kRun; f++)
#pragma unroll
            for (int i = 0; i < kR; i++) sums[i][c + f] += weight[i].lane[e] * part.lane[f];
        }
      }
    }
  }

  // Writes row i of a thread's sums, the columns below `size`, times `factor`.
  static __device__ void storeRow(T* row, int size, const T (&sums)[kColumns], T factor) {
#pragma unroll
    for (int c = 0; c < kColumns; c++)
      if (column(c) < size) row[column(c)] = sums[c] * factor;
  }
};

}  // namespace aq::cuda
