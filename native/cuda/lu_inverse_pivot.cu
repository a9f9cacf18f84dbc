// lu_inverse_pivot: inverses with partial pivoting, f32 and f64, for what cannot be inverted
// without.
//
// Math      Gauss-Jordan in place. Up to 256 rows column by column (device/lu_pivot.cuh). Beyond in
//           panels of 32 columns: a panel is eliminated with pivots, which gives T [n, 32] and 32
//           swaps of rows; these are done in the other columns, whose rows of the panel become R,
//           and A <- (A with the panel's rows set to zero) + T R there, A <- T in the panel.
// Layout    up to 256 rows a block a matrix, else the whole device for one after the other: each
//           block keeps its rows of a panel in shared memory, so that a column costs one barrier of
//           the grid, at which the blocks show each other their candidates for the pivot's row.
// Cost      2 n^3 flop on the plain cores, n barriers, n / 4 bytes of traffic for each byte of A.
// Roofline  4096^2 f32: 4096 barriers of about 3 us, 12 ms. Measured on an H100 80GB HBM3, driver
//           580, behind 5 ms of attempts without pivots: 45 ms.
// Versions  v1 by columns in memory: 556 ms; v2 (this).
// Numerics  T throughout. The same pivots whatever the number of blocks.
#include <cooperative_groups.h>

#include <algorithm>
#include <utility>

#include "native/cuda/check.h"
#include "native/cuda/device/lu_pivot.cuh"
#include "native/cuda/lu_inverse.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
// Largest matrix that is left to one block: beyond, all of the device is worth its barriers.
constexpr int32_t kBlockSize = 256;
constexpr int kPanel = kWarp;  // a lane a column
constexpr int kTile = 64;      // rows and columns of a block's part of an update, 4 x 4 a thread
constexpr int kTilePitch = kTile + 1;

// One matrix at a time, and what its blocks share.
template <class T>
struct Pivoted {
  const T* a;
  T* x;
  T* left;          // T: [n, kPanel]
  T* right;         // R: [kPanel, n]
  T* held;          // [blocks, n]: a row of each block
  T* shown;         // [2, blocks + 1, kPanel]: rows of the candidates, and row k
  Pivot<T>* best;   // [2, blocks]
  int32_t* source;  // [n]: row k of what is eliminated is row source[k] of a
  int32_t n, rowsPerBlock;
};

template <class T>
struct PanelShared {
  Pivot<T> best;
  T pivotRow[kPanel], rowK[kPanel];
  int32_t swaps[kPanel];
};

__device__ inline void syncGrid() { cooperative_groups::this_grid().sync(); }

// T of the panel from column `first` on, into m.left, and its swaps; false, to all, without a
// pivot. `panel` [rowsPerBlock, kPanel + 1] is shared memory.
template <class T>
__device__ bool eliminatePanel(const Pivoted<T>& m, int32_t first, T* panel,
                               PanelShared<T>& shared) {
  constexpr int kPitch = kPanel + 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int blocks = gridDim.x, block = blockIdx.x;
  const int32_t own = block * m.rowsPerBlock, width = min(kPanel, m.n - first);
  const int32_t rows = max(0, min(m.rowsPerBlock, m.n - own));
  for (int32_t r = warp; r < rows; r += kWarps) {
    panel[r * kPitch + lane] = lane < width ? m.x[int64_t(own + r) * m.n + first + lane] : T(0);
  }
  __syncthreads();
  for (int c = 0; c < width; c++) {
    const int32_t k = first + c;
    // By turns: a block that is ahead writes what the others do not read any more.
    Pivot<T>* const best = m.best + c % 2 * blocks;
    T* const shown = m.shown + c % 2 * (blocks + 1) * kPanel;
    if (warp == 0) {
      Pivot<T> mine;
      for (int32_t r = lane; r < rows; r += kWarp) {
        if (own + r >= k) mine.join(fabs(panel[r * kPitch + c]), own + r);
      }
      mine = joinWarp(mine);
      if (lane == 0) best[block] = mine;
      if (mine.index >= 0) {
        shown[block * kPanel + lane] = panel[(mine.index - own) * kPitch + lane];
      }
      if (k >= own && k < own + rows) {
        shown[blocks * kPanel + lane] = panel[(k - own) * kPitch + lane];
      }
    }
    syncGrid();
    if (warp == 0) {
      Pivot<T> all;
      for (int b = lane; b < blocks; b += kWarp)
        all.join(__ldcg(&best[b].size), __ldcg(&best[b].index));
      all = joinWarp(all);
      const int winner = all.index < 0 ? 0 : all.index / m.rowsPerBlock;
      const T mine = __ldcg(shown + winner * kPanel + lane);
      const T inverse = T(1) / __shfl_sync(~0u, mine, c);
      shared.pivotRow[lane] = lane == c ? inverse : mine * inverse;
      shared.rowK[lane] = __ldcg(shown + blocks * kPanel + lane);
      if (lane == 0) {
        shared.best = all;
        shared.swaps[c] = all.index;
      }
    }
    __syncthreads();
    const int32_t p = shared.best.index;
    if (!shared.best.isUsable()) return false;
    for (int32_t r = warp; r < rows; r += kWarps) {
      T* const row = panel + r * kPitch;
      const bool isSwapped = own + r == p;
      const T factor = isSwapped ? shared.rowK[c] : row[c];
      const T old = lane == c ? T(0) : isSwapped ? shared.rowK[lane] : row[lane];
      const T pivot = shared.pivotRow[lane];
      __syncwarp();
      row[lane] = own + r == k ? pivot : old - factor * pivot;
    }
    if (block == 0 && threadIdx.x == 0) {
      const int32_t held = m.source[k];
      m.source[k] = m.source[p];
      m.source[p] = held;
    }
    __syncthreads();
  }
  for (int32_t r = warp; r < rows; r += kWarps) {
    m.left[int64_t(own + r) * kPanel + lane] = lane < width ? panel[r * kPitch + lane] : T(0);
  }
  return true;
}

// The panel's swaps in the other columns; the panel's rows go to R and become zeros. A thread a
// column.
template <class T>
__device__ void swapRows(const Pivoted<T>& m, int32_t first, const int32_t* swaps) {
  const int32_t width = min(kPanel, m.n - first);
  const int32_t threads = int32_t(gridDim.x) * kThreads;
  for (int32_t j = int32_t(blockIdx.x) * kThreads + threadIdx.x; j < m.n; j += threads) {
    if (j >= first && j < first + width) continue;
    T* const column = m.x + j;
    for (int c = 0; c < width; c++) {
      T* const upper = column + int64_t(first + c) * m.n;
      T* const pivot = column + int64_t(swaps[c]) * m.n;
      const T held = *upper;
      m.right[int64_t(c) * m.n + j] = *pivot;
      *pivot = held;
      // A later swap may still fetch what now lies in the panel's rows below, never this row.
      *upper = T(0);
    }
    for (int c = width; c < kPanel; c++) m.right[int64_t(c) * m.n + j] = T(0);
  }
}

// A <- A + T R beside the panel, A <- T in it.
template <class T>
__device__ void updateTiles(const Pivoted<T>& m, int32_t first, T* shared) {
  T(*const left)[kTilePitch] = reinterpret_cast<T(*)[kTilePitch]>(shared);  // transposed
  T(*const right)[kTilePitch] = left + kPanel;
  const int32_t across = (m.n + kTile - 1) / kTile;
  const int down = threadIdx.x / 16, side = threadIdx.x % 16;
  for (int32_t tile = blockIdx.x; tile < across * across; tile += gridDim.x) {
    const int32_t i0 = tile / across * kTile, j0 = tile % across * kTile;
    __syncthreads();
    for (int at = threadIdx.x; at < kPanel * kTile; at += kThreads) {
      const int32_t i = i0 + at / kPanel, j = j0 + at % kTile;
      left[at % kPanel][at / kPanel] =
          i < m.n ? __ldcg(m.left + int64_t(i) * kPanel + at % kPanel) : T(0);
      const bool isPanel = j >= first && j < first + kPanel;  // R has nothing there
      right[at / kTile][at % kTile] =
          j < m.n && !isPanel ? __ldcg(m.right + int64_t(at / kTile) * m.n + j) : T(0);
    }
    __syncthreads();
    T sum[4][4] = {};
#pragma unroll 8
    for (int c = 0; c < kPanel; c++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int s = 0; s < 4; s++) sum[r][s] += left[c][down + 16 * r] * right[c][side + 16 * s];
      }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
      for (int s = 0; s < 4; s++) {
        const int32_t i = i0 + down + 16 * r, j = j0 + side + 16 * s;
        if (i >= m.n || j >= m.n) continue;
        T* const x = m.x + int64_t(i) * m.n + j;
        const bool isPanel = j >= first && j < first + kPanel;
        *x = isPanel ? left[j - first][i - i0] : __ldcg(x) + sum[r][s];
      }
    }
  }
}

// x = a^-1. False in some thread where that fails.
template <class T>
__device__ bool invertByGrid(const Pivoted<T>& m, T* memory, PanelShared<T>& shared) {
  const int64_t threads = int64_t(gridDim.x) * kThreads;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t at = thread; at < int64_t(m.n) * m.n; at += threads) m.x[at] = m.a[at];
  for (int64_t i = thread; i < m.n; i += threads) m.source[i] = int32_t(i);
  syncGrid();
  for (int32_t first = 0; first < m.n; first += kPanel) {
    if (!eliminatePanel(m, first, memory, shared)) return false;
    syncGrid();
    swapRows(m, first, shared.swaps);
    syncGrid();
    updateTiles(m, first, memory);
    syncGrid();
  }
  // Column k of the inverse of the swapped rows is column source[k] of the inverse.
  bool isFinite = true;
  T* const held = m.held + int64_t(blockIdx.x) * m.n;
  for (int32_t i = blockIdx.x; i < m.n; i += gridDim.x) {
    T* const row = m.x + int64_t(i) * m.n;
    for (int32_t k = threadIdx.x; k < m.n; k += kThreads) {
      held[k] = __ldcg(row + k);
      isFinite = isFinite && isfinite(held[k]);
    }
    __syncthreads();
    for (int32_t k = threadIdx.x; k < m.n; k += kThreads) row[__ldcg(m.source + k)] = held[k];
    __syncthreads();
  }
  return isFinite;
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void pivotGrid(LuBatch<T> batch, const int32_t* wanted,
                                                         Pivoted<T> m, Fault* fault) {
  extern __shared__ double memory[];
  __shared__ PanelShared<T> shared;
  if (wanted) {
    bool isAny = false;
    for (int64_t b = threadIdx.x; b < batch.count; b += kThreads) isAny |= wanted[b] != 0;
    if (!__syncthreads_or(isAny)) return;
  }
  for (int64_t b = 0; b < batch.count; b++) {
    if (wanted && wanted[b] == 0) continue;
    const int64_t skip = b * batch.size * batch.size;
    m.a = batch.a + skip;
    m.x = batch.x + skip;
    if (!invertByGrid(m, reinterpret_cast<T*>(memory), shared)) {
      raiseFault(fault, FaultKind::kSingular, batch.first + b);
    }
    syncGrid();  // what the blocks share is free again
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void pivotBlocks(LuBatch<T> batch, const int32_t* wanted,
                                                        Fault* fault) {
  if (wanted && wanted[blockIdx.x] == 0) return;
  __shared__ PivotShared<T, kBlockSize> shared;
  const int64_t at = int64_t(blockIdx.x) * batch.size * batch.size;
  const bool isGood = invertPivoting<T, kThreads>(batch.a + at, batch.x + at, batch.size, shared);
  if (!isGood) raiseFault(fault, FaultKind::kSingular, batch.first + blockIdx.x);
}

template <class T>
int32_t pivotByGrid(aq_queue* queue, const LuBatch<T>& batch, const int32_t* wanted,
                    aq_error* err) {
  const int64_t n = batch.size;
  // Few blocks for small matrices: a barrier costs more, the more take part.
  const int64_t blocks = std::clamp<int64_t>(n / 8, 1, 2 * queue->multiprocessors);
  const int64_t rows = (n + blocks - 1) / blocks;
  const int64_t sharedBytes =
      int64_t(sizeof(T)) * std::max<int64_t>(rows * (kPanel + 1), 2 * kPanel * kTilePitch);
  const uint64_t panel = scratchBytes(uint64_t(n) * kPanel * sizeof(T));
  const uint64_t held = scratchBytes(uint64_t(blocks * n) * sizeof(T));
  const uint64_t shown = scratchBytes(uint64_t(2 * (blocks + 1) * kPanel) * sizeof(T));
  const uint64_t best = scratchBytes(uint64_t(2 * blocks) * sizeof(Pivot<T>));
  Scratch memory(queue);
  const uint64_t total = 2 * panel + held + shown + best + uint64_t(n) * 4;
  if (memory.allocate(total, "lu_inverse", err) != AQ_OK) return err->code;
  uint64_t used = 0;
  const auto take = [&](uint64_t bytes) { return std::exchange(used, used + bytes); };
  Pivoted<T> m = {};
  m.left = memory.at<T>(take(panel));
  m.right = memory.at<T>(take(panel));
  m.held = memory.at<T>(take(held));
  m.shown = memory.at<T>(take(shown));
  m.best = memory.at<Pivot<T>>(take(best));
  m.source = memory.at<int32_t>(used);
  m.n = batch.size;
  m.rowsPerBlock = int32_t(rows);
  LuBatch<T> copy = batch;
  void* args[] = {&copy, &wanted, &m, &queue->fault};
  const void* const kernel = reinterpret_cast<const void*>(&pivotGrid<T>);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sharedBytes)));
  CUDA_CHECK(cudaLaunchCooperativeKernel(kernel, dim3(unsigned(blocks)), dim3(kThreads), args,
                                         size_t(sharedBytes), queue->stream));
  return AQ_OK;
}

}  // namespace

template <class T>
int32_t invertWithPivots(aq_queue* queue, const LuBatch<T>& batch, const int32_t* wanted,
                         aq_error* err) {
  if (batch.size > kBlockSize) return pivotByGrid(queue, batch, wanted, err);
  pivotBlocks<T>
      <<<unsigned(batch.count), kThreads, 0, queue->stream>>>(batch, wanted, queue->fault);
  LAUNCH_CHECK("lu_inverse (pivoting)");
  return AQ_OK;
}

template int32_t invertWithPivots(aq_queue*, const LuBatch<float>&, const int32_t*, aq_error*);
template int32_t invertWithPivots(aq_queue*, const LuBatch<double>&, const int32_t*, aq_error*);

}  // namespace aq::cuda
