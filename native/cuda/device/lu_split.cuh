// lu_split.cuh: products of 128 x 128 tiles of f32 on the bf16 tensor cores. A number is split into
// the bf16 nearest to it and the bf16 nearest to the rest, which together hold 16 of its 24 bits;
// of the four products the one of both rests is left out. Sums are f32.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "native/cuda/device/mma.cuh"

namespace aq::cuda {

inline constexpr int kSplitTile = 128;

// A panel of split numbers: all the highs, `plane` numbers further on all the lows.
struct SplitMatrix {
  __nv_bfloat16* high;
  int32_t plane;
  int32_t ld;

  __device__ SplitMatrix at(int32_t row, int32_t column) const {
    return {high + row * ld + column, plane, ld};
  }
  // Two neighbours in a row; the column is even.
  __device__ void store(int32_t row, int32_t column, float first, float second) const {
    const __nv_bfloat162 near = {__float2bfloat16_rn(first), __float2bfloat16_rn(second)};
    const __nv_bfloat162 rest = {__float2bfloat16_rn(first - __bfloat162float(near.x)),
                                 __float2bfloat16_rn(second - __bfloat162float(near.y))};
    __nv_bfloat16* const to = high + row * ld + column;
    *reinterpret_cast<__nv_bfloat162*>(to) = near;
    *reinterpret_cast<__nv_bfloat162*>(to + plane) = rest;
  }
};

// 256 threads, 2 warps down and 4 across, each with 64 x 32 of the tile.
struct SplitProduct {
  static constexpr int kThreads = 256;
  static constexpr int kDepth = 32;  // columns of the left tile in a stage
  static constexpr int kStages = 2;
  // Rows 16 bytes longer than their content: eight rows of 16 bytes then lie in different banks.
  static constexpr int kLeftPitch = kDepth + 8, kRightPitch = kSplitTile + 8;
  static constexpr int kLeftPlane = kSplitTile * kLeftPitch, kRightPlane = kDepth * kRightPitch;
  static constexpr int kStage = 2 * (kLeftPlane + kRightPlane);
  static constexpr int kSharedBytes = kStages * kStage * int(sizeof(__nv_bfloat16));

  float sum[4][4][4];  // by 16 rows, 8 columns, and as mma.cuh has it

  // Row and column of sum[i][j][0] and [1]; [2] and [3] are 8 rows below.
  __device__ static int row(int i) {
    return int(threadIdx.x) / 128 * 64 + 16 * i + int(threadIdx.x) % 32 / 4;
  }
  __device__ static int column(int j) {
    return int(threadIdx.x) / 32 % 4 * 32 + 8 * j + int(threadIdx.x) % 4 * 2;
  }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sum[i][j][e] = 0;
      }
    }
  }

  // f(row, column, first, second) for every pair of neighbours that this thread has.
  template <class F>
  __device__ __forceinline__ void visit(F&& f) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        f(row(i), column(j), sum[i][j][0], sum[i][j][1]);
        f(row(i) + 8, column(j), sum[i][j][2], sum[i][j][3]);
      }
    }
  }

  // sum += the tile at w unless `isNew`, and goes there; rows are `ld` apart.
  __device__ __forceinline__ void exchange(float* w, int32_t ld, bool isNew) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // All loads before the first store, which the compiler could not move them across.
      float2 old[2][4] = {};
      if (!isNew) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const float* const from = w + (row(i) + 8 * half) * ld + column(j);
            old[half][j] = __ldcg(reinterpret_cast<const float2*>(from));
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float* const to = w + (row(i) + 8 * half) * ld + column(j);
          sum[i][j][2 * half] += old[half][j].x;
          sum[i][j][2 * half + 1] += old[half][j].y;
          *reinterpret_cast<float2*>(to) = {sum[i][j][2 * half], sum[i][j][2 * half + 1]};
        }
      }
    }
  }

  // sum += left right, both 128 x 128, through `shared` of kSharedBytes; ends with a barrier.
  __device__ __forceinline__ void add(const SplitMatrix& left, const SplitMatrix& right,
                                      __nv_bfloat16* shared) {
    constexpr int kChunks = kSplitTile / kDepth;
    fetch(left, right, 0, shared);
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; chunk++) {
      if (chunk + 1 < kChunks) {
        fetch(left, right, chunk + 1, shared + (chunk + 1) % kStages * kStage);
        waitCopies<1>();
      } else {
        waitCopies<0>();
      }
      __syncthreads();
      multiply(shared + chunk % kStages * kStage);
      __syncthreads();
    }
  }

 private:
  __device__ __forceinline__ static void fetch(const SplitMatrix& left, const SplitMatrix& right,
                                               int chunk, __nv_bfloat16* stage) {
    constexpr int kLeftPieces = kDepth / 8, kRightPieces = kSplitTile / 8;  // of 16 bytes, a row
    constexpr int kLeftRows = kThreads / kLeftPieces, kRightRows = kThreads / kRightPieces;
    const int thread = threadIdx.x;
    const int leftRow = thread / kLeftPieces, leftColumn = thread % kLeftPieces * 8;
    const int rightRow = thread / kRightPieces, rightColumn = thread % kRightPieces * 8;
    const __nv_bfloat16* const leftFrom =
        left.high + leftRow * left.ld + chunk * kDepth + leftColumn;
    const __nv_bfloat16* const rightFrom =
        right.high + (chunk * kDepth + rightRow) * right.ld + rightColumn;
    const uint32_t leftTo = sharedAddress(stage + leftRow * kLeftPitch + leftColumn);
    const uint32_t rightTo =
        sharedAddress(stage + 2 * kLeftPlane + rightRow * kRightPitch + rightColumn);
#pragma unroll
    for (int plane = 0; plane < 2; plane++) {
#pragma unroll
      for (int row = 0; row < kSplitTile; row += kLeftRows) {
        copyAsync16(leftTo + 2 * (plane * kLeftPlane + row * kLeftPitch),
                    leftFrom + plane * left.plane + row * left.ld);
      }
#pragma unroll
      for (int row = 0; row < kDepth; row += kRightRows) {
        copyAsync16(rightTo + 2 * (plane * kRightPlane + row * kRightPitch),
                    rightFrom + plane * right.plane + row * right.ld);
      }
    }
    commitCopies();
  }

  __device__ __forceinline__ void multiply(const __nv_bfloat16* stage) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const __nv_bfloat16* const leftTile =
        stage + (warp / 4 * 64 + lane % 16) * kLeftPitch + lane / 16 * 8;
    const __nv_bfloat16* const rightTile =
        stage + 2 * kLeftPlane + lane % 16 * kRightPitch + warp % 4 * 32 + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t right[2][2][4];  // by plane and 16 columns
#pragma unroll
      for (int plane = 0; plane < 2; plane++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          loadTilesTransposed(right[plane][j], sharedAddress(rightTile + plane * kRightPlane +
                                                             k * kRightPitch + 16 * j));
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32_t left[2][4];
#pragma unroll
        for (int plane = 0; plane < 2; plane++) {
          loadTiles(left[plane],
                    sharedAddress(leftTile + plane * kLeftPlane + 16 * i * kLeftPitch + k));
        }
#pragma unroll
        for (int term = 0; term < 3; term++) {  // the small ones first
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const uint32_t* const b = &right[term == 0 ? 1 : 0][j / 2][j % 2 * 2];
            mma(sum[i][j], left[term == 1 ? 1 : 0], {b[0], b[1]}, __nv_bfloat16());
          }
        }
      }
    }
  }
};

}  // namespace aq::cuda
