// lu_blocked.cuh: the state of a blocked inversion and its phases, each run by all blocks of a grid
// between two of its barriers. lu_inverse_large.cu says what they add up to.
#pragma once
#include <cstdint>

#include "native/cuda/device/lu_split.cuh"
#include "native/cuda/device/lu_tile.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kLuThreads = SplitProduct::kThreads;
inline constexpr int kLuBlock = kSplitTile;
using LuBlockTile = LuTile<kLuBlock, 8>;
static_assert(LuBlockTile::kThreads == kLuThreads);

inline constexpr int kLuSharedBytes = SplitProduct::kSharedBytes > int(sizeof(LuBlockTile::Shared))
                                          ? SplitProduct::kSharedBytes
                                          : int(sizeof(LuBlockTile::Shared));

// `count` matrices of n rows, padded to `padded` = kLuBlock blocks rows by ones on the diagonal.
struct LuBlocked {
  const float* a;  // [count, n, n]
  float* w;        // [count, padded, padded]: becomes the inverses
  // Split panels of each matrix; left and right by the parity of the step that uses them.
  __nv_bfloat16* left;    // T: [2, count, 2, padded, kLuBlock]
  __nv_bfloat16* right;   // R: [2, count, 2, kLuBlock, padded]
  __nv_bfloat16* column;  // C: [count, 2, padded, kLuBlock]
  const int32_t* wanted;  // [count]: a matrix with 0 there is left alone
  uint32_t* taken;        // [blocks], starts at 0: tiles of a step that were handed out
  int64_t count;
  int32_t n, padded, blocks;

  __device__ bool isWanted(int64_t b) const { return __ldcg(wanted + b) != 0; }
  __device__ float* matrix(int64_t b) const { return w + b * padded * padded; }
  __device__ int32_t plane() const { return padded * kLuBlock; }
  __device__ SplitMatrix leftOf(int64_t b, int step) const {
    return {left + (step % 2 * count + b) * 2 * plane(), plane(), kLuBlock};
  }
  __device__ SplitMatrix rightOf(int64_t b, int step) const {
    return {right + (step % 2 * count + b) * 2 * plane(), plane(), padded};
  }
  __device__ SplitMatrix columnOf(int64_t b) const {
    return {column + b * 2 * plane(), plane(), kLuBlock};
  }
};

// w = a, padded, and the panels of step 0. A warp a row.
template <int kVec>
__device__ void startBlocked(const LuBlocked& m) {
  static_assert(kVec == 2 || kVec == 4);
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (kLuThreads / kWarp);
  const int64_t first = int64_t(blockIdx.x) * (kLuThreads / kWarp) + threadIdx.x / kWarp;
  for (int64_t at = first; at < m.count * m.padded; at += warps) {
    const int64_t b = at / m.padded;
    if (!m.isWanted(b)) continue;
    const int32_t i = int32_t(at % m.padded);
    const float* const from = m.a + (b * m.n + i) * m.n;
    float* const to = m.matrix(b) + int64_t(i) * m.padded;
    const SplitMatrix column = m.columnOf(b), right = m.rightOf(b, 0);
#pragma unroll 4
    for (int32_t j = lane * kVec; j < m.padded; j += kWarp * kVec) {
      Vec<float, kVec> v;
      if (kVec == 4 && i < m.n) {  // n is whole vectors then
        if (j < m.n) {
          v = loadVec<float, kVec>(from + j, 0);
        } else {
          for (float& value : v.lane) value = 0;
        }
      } else {
#pragma unroll
        for (int e = 0; e < kVec; e++) {
          v.lane[e] = i < m.n && j + e < m.n ? from[j + e] : (i == j + e ? 1.f : 0.f);
        }
      }
      storeVec(to + j, 0, v);
#pragma unroll
      for (int e = 0; e < kVec; e += 2) {
        if (j < kLuBlock && i >= kLuBlock) column.store(i, j + e, v.lane[e], v.lane[e + 1]);
        if (j >= kLuBlock && i < kLuBlock) right.store(i, j + e, v.lane[e], v.lane[e + 1]);
      }
    }
  }
}

// The diagonal block of a step becomes its inverse, and the rows `step` of T.
__device__ __noinline__ void invertDiagonal(const LuBlocked& m, int64_t b, int step, char* shared) {
  LuBlockTile tile;
  float* const block = m.matrix(b) + int64_t(step) * kLuBlock * (m.padded + 1);
  tile.load(block, m.padded, kLuBlock, true);
  tile.invert(*reinterpret_cast<LuBlockTile::Shared*>(shared));
  tile.store(block, m.padded, kLuBlock, true);
  const SplitMatrix left = m.leftOf(b, step);
#pragma unroll
  for (int r = 0; r < LuBlockTile::kTile; r++) {
#pragma unroll
    for (int c = 0; c < LuBlockTile::kTile; c += 2) {
      left.store(step * kLuBlock + tile.row(r), tile.column(c), tile.value[r][c],
                 tile.value[r][c + 1]);
    }
  }
}

// T = -C P for the other rows, which is also the inverse's part so far in the columns of the step.
__device__ __noinline__ void makeLeft(const LuBlocked& m, int step, char* shared) {
  const int64_t jobs = m.count * (m.blocks - 1);
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t b = job / (m.blocks - 1);
    if (!m.isWanted(b)) continue;
    const int at = int(job % (m.blocks - 1)), i = at < step ? at : at + 1;
    const SplitMatrix left = m.leftOf(b, step);
    SplitProduct product;
    product.clear();
    product.add(m.columnOf(b).at(i * kLuBlock, 0), left.at(step * kLuBlock, 0),
                reinterpret_cast<__nv_bfloat16*>(shared));
    float* const w = m.matrix(b) + int64_t(i) * kLuBlock * m.padded + step * kLuBlock;
    const SplitMatrix nextRight = m.rightOf(b, step + 1);
    product.visit([&](int row, int column, float& first, float& second) {
      left.store(i * kLuBlock + row, column, -first, -second);
      if (i == step + 1) nextRight.store(row, step * kLuBlock + column, -first, -second);
      storeVec(w + row * m.padded + column, 0, Vec<float, 2>{-first, -second});
    });
  }
}

// Tile (i, column `at` of those that are not the step's) of one matrix in updateRest.
__device__ __noinline__ void updateTile(const LuBlocked& m, int64_t b, int step, int i, int at,
                                        char* shared) {
  const int j = at < step ? at : at + 1;
  float* const w = m.matrix(b) + int64_t(i) * kLuBlock * m.padded + j * kLuBlock;
  // What is added at the end is on its way to the L2 cache meanwhile: sums start at zero, since the
  // tensor cores cut off the digits of small terms beside large ones.
  for (int line = threadIdx.x; line < kLuBlock * 4; line += kLuThreads) {
    prefetchL2(w + line / 4 * m.padded + line % 4 * 32);
  }
  SplitProduct product;
  product.clear();
  product.add(m.leftOf(b, step).at(i * kLuBlock, 0), m.rightOf(b, step).at(0, j * kLuBlock),
              reinterpret_cast<__nv_bfloat16*>(shared));
  product.exchange(w, m.padded, i == step);
  const int next = step + 1;
  if (i == next && j == next) {
    __syncthreads();  // the tile is in memory, for this block
    invertDiagonal(m, b, next, shared);
  } else if (i == next) {
    const SplitMatrix right = m.rightOf(b, next);
    product.visit([&](int row, int column, float& one, float& two) {
      right.store(row, j * kLuBlock + column, one, two);
    });
  } else if (j == next) {
    const SplitMatrix column = m.columnOf(b);
    product.visit([&](int row, int c, float& one, float& two) {
      column.store(i * kLuBlock + row, c, one, two);
    });
  }
}

// A <- (A with rows `step` set to zero) + T R beside the columns of the step. Tiles are handed out
// as blocks ask for them; first those whose inverse the next step waits for.
__device__ inline void updateRest(const LuBlocked& m, int step, char* shared) {
  __shared__ uint32_t granted;
  const bool isLast = step + 1 == m.blocks;
  const uint32_t across = m.blocks - 1, tiles = m.blocks * across;
  const uint32_t urgent = (step + 1) * across + step;  // tile (step + 1, step + 1)
  const uint32_t first = isLast ? 0 : uint32_t(m.count), rest = isLast ? tiles : tiles - 1;
  const uint32_t jobs = uint32_t(m.count) * tiles;
  for (uint32_t job = blockIdx.x; job < jobs;) {
    // Asked for now and needed after this tile, so that the answer is not waited for.
    uint32_t next = 0;
    if (threadIdx.x == 0) next = gridDim.x + atomicAdd(m.taken + step, 1u);
    int64_t b = job;
    uint32_t tile = urgent;
    if (job >= first) {
      b = (job - first) / rest;
      tile = (job - first) % rest;
      // Every other step goes backwards and so begins with what the L2 cache still holds.
      if (step % 2) tile = rest - 1 - tile;
      if (!isLast && tile >= urgent) tile++;
    }
    if (m.isWanted(b)) updateTile(m, b, step, int(tile / across), int(tile % across), shared);
    if (threadIdx.x == 0) granted = next;
    __syncthreads();
    job = granted;
    __syncthreads();
  }
}

}  // namespace aq::cuda
