// lu_tile.cuh: the inverse of one matrix of up to 128 rows by a block, held in the block's
// registers.
//
// Blocked Gauss-Jordan in place, without pivoting. With k the rows (and columns) of a panel of 16,
// C the matrix's columns k, R its rows k and P = A_kk^-1, a step is
//   T = P in the rows k, -C P in the others;   A <- (A with rows k set to zero) + T R;   A_:k <- T
// so that all the work but 1/8 of it is one product of T [n, 16] and R [16, n], which every thread
// adds to its own kTile x kTile entries. P is a chain of divisions: the warp that has the next
// one's block updates that first and inverts it while the other warps go on.
#pragma once
#include <cstdint>

#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kTilePanel = 16;

// kSize x kSize numbers over (kSize / kTile)^2 threads. A thread's rows are groups of 4 neighbours,
// one in each part of kSize / kGroups rows, and its columns likewise: neighbouring threads so read
// neighbouring vectors of shared memory.
template <int kRows, int kEntries>
struct LuTile {
  static constexpr int kSize = kRows, kTile = kEntries;
  static constexpr int kSide = kSize / kTile;
  static constexpr int kThreads = kSide * kSide;
  static constexpr int kGroups = kTile / 4;
  static constexpr int kPart = kSize / kGroups;
  static constexpr int kWarpsAcross = kSide / 8;  // a warp is 4 threads down, 8 across
  static constexpr int kPitch = kSize + 4;        // spreads the columns of a panel over the banks
  static constexpr int kPanels = kSize / kTilePanel;
  static constexpr int kPanelsOfPart = kPart / kTilePanel;
  static_assert(kSide % 8 == 0 && kPart % kTilePanel == 0 && kThreads >= kSize);

  struct Shared {
    alignas(16) float columns[kTilePanel][kPitch];  // C, by columns
    alignas(16) float factors[kTilePanel][kPitch];  // T, by columns
    // R, by rows; two, since a warp may write the next one while others still read this.
    alignas(16) float rows[2][kTilePanel][kPitch];
    alignas(16) float pivot[kTilePanel][kTilePanel];  // P
    float block[kTilePanel][kTilePanel + 1];          // A_kk, on its way to one warp
  };

  float value[kTile][kTile];
  int down, across;  // of this thread among the threads

  __device__ LuTile() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    down = warp / kWarpsAcross * 4 + lane / 8;
    across = warp % kWarpsAcross * 8 + lane % 8;
  }

  __device__ int row(int r) const { return r / 4 * kPart + down * 4 + r % 4; }
  __device__ int column(int c) const { return c / 4 * kPart + across * 4 + c % 4; }

  // The matrix a [n, n] with rows `ld` apart, continued by ones on the diagonal.
  __device__ void load(const float* a, int64_t ld, int n, bool isWide) {
    if (isWide && n == kSize) {
#pragma unroll
      for (int r = 0; r < kTile; r++) {
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
          const auto four = loadVec<float, 4>(a + row(r) * ld + column(4 * g), 0);
#pragma unroll
          for (int c = 0; c < 4; c++) value[r][4 * g + c] = four.lane[c];
        }
      }
      return;
    }
#pragma unroll
    for (int r = 0; r < kTile; r++) {
#pragma unroll
      for (int c = 0; c < kTile; c++) {
        const int i = row(r), j = column(c);
        value[r][c] = i < n && j < n ? a[i * ld + j] : (i == j ? 1.f : 0.f);
      }
    }
  }

  __device__ void store(float* x, int64_t ld, int n, bool isWide) const {
    if (isWide && n == kSize) {
#pragma unroll
      for (int r = 0; r < kTile; r++) {
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
          Vec<float, 4> four;
#pragma unroll
          for (int c = 0; c < 4; c++) four.lane[c] = value[r][4 * g + c];
          storeVec(x + row(r) * ld + column(4 * g), 0, four);
        }
      }
      return;
    }
#pragma unroll
    for (int r = 0; r < kTile; r++) {
#pragma unroll
      for (int c = 0; c < kTile; c++) {
        const int i = row(r), j = column(c);
        if (i < n && j < n) x[i * ld + j] = value[r][c];
      }
    }
  }

  // Replaces the matrix by its inverse. Where a pivot is zero the result is not finite.
  __device__ void invert(Shared& shared) {
    if (isOwner(0)) {
      float block[4][4];
      copyBlock(block, 0);
      invertBlock(shared, block, 0);
    }
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
#pragma unroll 1
      for (int p = 0; p < kPanelsOfPart; p++) step(shared, g, p);
    }
  }

 private:
  // Whether this thread's warp has the diagonal block of panel p of a part.
  __device__ bool isOwner(int p) const { return down / 4 == p && across / 8 == p / 2; }

  // This thread's entries in rows and columns [4g, 4g + 4) of its own.
  __device__ __forceinline__ void copyBlock(float (&block)[4][4], int g) const {
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
      for (int c = 0; c < 4; c++) block[r][c] = value[4 * g + r][4 * g + c];
    }
  }

  // The next panel's block, number p of part g, as the update of this panel will leave it.
  __device__ __forceinline__ void lookAhead(Shared& shared, const float (&rows)[kTilePanel][kPitch],
                                            int g, int p) const {
    float block[4][4];
    copyBlock(block, g);
#pragma unroll 4
    for (int k = 0; k < kTilePanel; k++) {
      const auto t = loadVec<float, 4>(&shared.factors[k][row(4 * g)], 0);
      const auto u = loadVec<float, 4>(&rows[k][column(4 * g)], 0);
#pragma unroll
      for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int c = 0; c < 4; c++) block[r][c] = fmaf(t.lane[r], u.lane[c], block[r][c]);
      }
    }
    invertBlock(shared, block, p);
  }

  // P from the entries of the warp's threads.
  __device__ __forceinline__ void invertBlock(Shared& shared, const float (&block)[4][4],
                                              int p) const {
    if (across / 4 == p) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
          shared.block[down % 4 * 4 + r][across % 4 * 4 + c] = block[r][c];
        }
      }
    }
    __syncwarp();
    invertPivot(shared);
  }

  // One panel: number p of part g, whose entries this thread has, if at all, in [4g, 4g + 4).
  __device__ __forceinline__ void step(Shared& shared, int g, int p) {
    float(&rows)[kTilePanel][kPitch] = shared.rows[p & 1];
    const bool hasRows = down / 4 == p, hasColumns = across / 4 == p;
    const int first = g * kPart + p * kTilePanel;
    if (hasRows) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int h = 0; h < kGroups; h++) {
          Vec<float, 4> four;
#pragma unroll
          for (int c = 0; c < 4; c++) four.lane[c] = value[4 * g + r][4 * h + c];
          storeVec(&rows[down % 4 * 4 + r][column(4 * h)], 0, four);
        }
#pragma unroll
        for (int c = 0; c < kTile; c++) value[4 * g + r][c] = 0;
      }
    }
    // Rows of the panel were set to zero above; theirs come from P, not from C.
    if (hasColumns) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
#pragma unroll
        for (int h = 0; h < kGroups; h++) {
          Vec<float, 4> four;
#pragma unroll
          for (int r = 0; r < 4; r++) four.lane[r] = value[4 * h + r][4 * g + c];
          storeVec(&shared.columns[across % 4 * 4 + c][row(4 * h)], 0, four);
        }
      }
    }
    __syncthreads();
    makeFactors(shared, first);
    __syncthreads();

    if (p + 1 < kPanelsOfPart) {
      if (isOwner(p + 1)) lookAhead(shared, rows, g, p + 1);
    } else if (g + 1 < kGroups) {
      if (isOwner(0)) lookAhead(shared, rows, g + 1, 0);
    }
#pragma unroll 4
    for (int k = 0; k < kTilePanel; k++) {
      float left[kTile], right[kTile];
#pragma unroll
      for (int h = 0; h < kGroups; h++) {
        const auto t = loadVec<float, 4>(&shared.factors[k][row(4 * h)], 0);
        const auto u = loadVec<float, 4>(&rows[k][column(4 * h)], 0);
#pragma unroll
        for (int e = 0; e < 4; e++) {
          left[4 * h + e] = t.lane[e];
          right[4 * h + e] = u.lane[e];
        }
      }
#pragma unroll
      for (int r = 0; r < kTile; r++) {
#pragma unroll
        for (int c = 0; c < kTile; c++) value[r][c] = fmaf(left[r], right[c], value[r][c]);
      }
    }
    if (hasColumns) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
#pragma unroll
        for (int r = 0; r < kTile; r++) {
          value[r][4 * g + c] = shared.factors[across % 4 * 4 + c][row(r)];
        }
      }
    }
  }

  // P from shared.block by one warp: lane l has half l / 16 of row l % 16. Two rows a step, by the
  // inverse of their 2 x 2 block: the steps are a chain of latencies, and so it is half as long.
  __device__ static void invertPivot(Shared& shared) {
    constexpr int kHalf = kTilePanel / 2;
    const int lane = threadIdx.x % 32, i = lane % 16, half = lane / 16;
    float a[kHalf];
#pragma unroll
    for (int c = 0; c < kHalf; c++) a[c] = shared.block[i][half * kHalf + c];
#pragma unroll
    for (int k = 0; k < kTilePanel; k += 2) {
      const int at = k % kHalf;          // where the half that has columns k and k + 1 holds them
      const int owner = k / kHalf * 16;  // first lane of that half
      const float p00 = __shfl_sync(~0u, a[at], owner + k);
      const float p11 = __shfl_sync(~0u, a[at + 1], owner + k + 1);
      const float p01 = __shfl_sync(~0u, a[at + 1], owner + k);
      const float p10 = __shfl_sync(~0u, a[at], owner + k + 1);
      const float left0 = __shfl_sync(~0u, a[at], owner + i);
      const float left1 = __shfl_sync(~0u, a[at + 1], owner + i);
      float row0[kHalf], row1[kHalf];
#pragma unroll
      for (int c = 0; c < kHalf; c++) {
        row0[c] = __shfl_sync(~0u, a[c], half * 16 + k);
        row1[c] = __shfl_sync(~0u, a[c], half * 16 + k + 1);
      }
      // One Newton step makes the quick reciprocal as good as a division.
      const float determinant = fmaf(p00, p11, -p01 * p10);
      const float guess = __fdividef(1.f, determinant);
      const float inverse = fmaf(guess, fmaf(-determinant, guess, 1.f), guess);
      const bool isFirst = i == k, isSecond = i == k + 1;
      // The row times [p11 -p01; -p10 p00] inverse; in the two rows, rows of the inverse
      // themselves.
      const float weight0 = isFirst ? -1.f : isSecond ? 0.f : left0;
      const float weight1 = isFirst ? 0.f : isSecond ? -1.f : left1;
      const float factor0 = fmaf(weight1, p10, -weight0 * p11) * inverse;
      const float factor1 = fmaf(weight0, p01, -weight1 * p00) * inverse;
#pragma unroll
      for (int c = 0; c < kHalf; c++) {
        const float old = isFirst || isSecond ? 0.f : a[c];
        a[c] = fmaf(factor0, row0[c], fmaf(factor1, row1[c], old));
      }
      if (half == k / kHalf) {
        a[at] = factor0;
        a[at + 1] = factor1;
      }
    }
#pragma unroll
    for (int c = 0; c < kHalf; c++) shared.pivot[i][half * kHalf + c] = a[c];
  }

  // T: a thread makes kShare neighbouring entries of one row.
  __device__ static void makeFactors(Shared& shared, int first) {
    constexpr int kParts = kThreads / kSize < 4 ? kThreads / kSize : 4;
    constexpr int kShare = kTilePanel / kParts;
    const int i = threadIdx.x % kSize, from = threadIdx.x / kSize * kShare;
    if (threadIdx.x >= kSize * kParts) return;
    float sum[kShare] = {};
    if (i >= first && i < first + kTilePanel) {
#pragma unroll
      for (int c = 0; c < kShare; c++) sum[c] = shared.pivot[i - first][from + c];
    } else {
#pragma unroll
      for (int m = 0; m < kTilePanel; m++) {
        const float left = shared.columns[m][i];
#pragma unroll
        for (int c = 0; c < kShare; c++) {
          sum[c] = fmaf(-left, shared.pivot[m][from + c], sum[c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kShare; c++) shared.factors[from + c][i] = sum[c];
  }
};

}  // namespace aq::cuda
