// scale_weight, scale_weight_grad: a weight times a diagonal on either side, and the gradients of
// both diagonals.
//
// Math      y_oi = r_o w_oi c_i.  gr_o = sum_i g_oi w_oi c_i, gc_i = sum_o g_oi w_oi r_o; an absent
//           r or c counts as ones.
// Layout    w, g, y [O, I] row-major, 16-byte accesses where I and the addresses allow. Forward: a
//           thread takes one vector of columns of four rows. Gradient: a block takes a tile of 256
//           columns and some rows, a warp one row at a time, so that a lane keeps its columns' sums
//           and factors in registers; the next rows are copied to shared memory in the background.
//           Row sums per tile and column sums per tile go to scratch, and a second small kernel
//           adds them up.
// Cost      forward reads and writes O I numbers, the gradient reads w and g once: bandwidth-bound.
//           The scratch is about 2 % of that for [11008, 4096].
// Roofline  11008 x 4096 f32: 361 MB either way -> 108 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured on an H100 80GB HBM3: 124 us and 133 us, 99 % and 92 % of what a copy reaches;
//           of the gradient, the tiles take 124 us and the final sums 6 us under ncu.
//           f16 and bf16 at [4096, 4096]: forward 27 us, where a copy takes 26 us.
// Versions  v1 rows through registers; v2 rows on their way in shared memory, longer tiles, short
//           types (this).
// Numerics  all in T; sums are in tiles, in an order that only the shape decides.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/row_pairs.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;

inline int64_t divideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------- forward

// Rows of one thread: enough loads in flight, and one load of the columns' factors for all.
constexpr int kRows = 4;

template <class S, int kVec>
__global__ __launch_bounds__(kThreads) void scaleRows(const S* __restrict__ w,
                                                      const Wide<S>* __restrict__ r,
                                                      const Wide<S>* __restrict__ c,
                                                      S* __restrict__ y, int64_t rows,
                                                      int64_t perRow) {
  using T = Wide<S>;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t tile = item / perRow;
  const int64_t first = tile * kRows, k = item - tile * perRow;
  Vec<S, kVec> x[kRows];
  T factor[kRows];
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    if (first + i >= rows) continue;
    x[i] = loadVec<S, kVec>(w, (first + i) * perRow + k);
    factor[i] = r ? r[first + i] : T(1);
  }
  Vec<T, kVec> columns;
  if (c) {
    columns = loadRun<T, kVec>(c, k);
  } else {
#pragma unroll
    for (int e = 0; e < kVec; e++) columns.lane[e] = T(1);
  }
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    if (first + i >= rows) continue;
    Vec<T, kVec> scaled = widen(x[i]);
#pragma unroll
    for (int e = 0; e < kVec; e++) scaled.lane[e] *= factor[i] * columns.lane[e];
    storeVec(y, (first + i) * perRow + k, narrow<S>(scaled));
  }
}

template <class S, int kVec>
int32_t scale(aq_queue* queue, const aq_view* in, const aq_view& out, int64_t rows, int64_t columns,
              aq_error* err) {
  using T = Wide<S>;
  const int64_t items = divideUp(rows, kRows) * (columns / kVec);
  scaleRows<S, kVec><<<unsigned(divideUp(items, kThreads)), kThreads, 0, queue->stream>>>(
      static_cast<const S*>(in[0].data), static_cast<const T*>(in[1].data),
      static_cast<const T*>(in[2].data), static_cast<S*>(out.data), rows, columns / kVec);
  LAUNCH_CHECK("scale_weight");
  return AQ_OK;
}

// ---------------------------------------------------------------- gradient

constexpr int kWarps = kThreads / kWarp;
template <class S, int kVec>
inline constexpr int kVectors = kVec == 1 ? 4 : (kIsShort<S> ? 1 : 2);  // of a lane
template <class S, int kVec>
inline constexpr int kTileColumns = kWarp* kVectors<S, kVec>* kVec;

// Tiles that the largest GPUs work on at once, three on a multiprocessor: long ones, so that what
// is on its way seldom runs dry. Not taken from the device at hand: the sums are to be the same
// everywhere.
constexpr int64_t kTiles = 384;

template <class S>
struct ScaleGrad {
  using T = Wide<S>;
  const S* w;
  const GradientOf<S>* g;
  const T* r;
  const T* c;
  T* rowSums;     // [columnTiles, rows]
  T* columnSums;  // [rowTiles, columns]
  T* gr;
  T* gc;
  int64_t rows, columns;
  int64_t tileRows, rowTiles, columnTiles;
};

template <class S, int kVec>
using WeightRows = RowPairs<S, GradientOf<S>, kVec, kVectors<S, kVec>, kWarp, kThreads>;

template <class S, int kVec>
__global__ __launch_bounds__(kThreads, 3) void sumTiles(const __grid_constant__ ScaleGrad<S> x) {
  using T = Wide<S>;
  constexpr int kOwn = kVectors<S, kVec>, kColumns = kTileColumns<S, kVec>;
  extern __shared__ uint4 memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t rowTile = blockIdx.x / x.columnTiles;
  const int64_t columnTile = blockIdx.x - rowTile * x.columnTiles;
  const int64_t k0 = columnTile * (kWarp * kOwn) + lane;
  const int64_t begin = rowTile * x.tileRows + warp;
  const int64_t end = min(x.rows, (rowTile + 1) * x.tileRows);

  WeightRows<S, kVec> rows(x.w, x.g, x.columns / kVec, k0, begin, kWarps, end, memory);
  Vec<T, kVec> columns[kOwn], sums[kOwn];
#pragma unroll
  for (int v = 0; v < kOwn; v++) {
    const int64_t k = k0 + v * kWarp;
    const bool isGiven = x.c && k < x.columns / kVec;
    if (isGiven) columns[v] = loadRun<T, kVec>(x.c, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      if (!isGiven) columns[v].lane[e] = T(1);
      sums[v].lane[e] = T(0);
    }
  }

  const auto factorOf = [&](int64_t row) { return x.r && row < end ? __ldg(x.r + row) : T(1); };
  T next = factorOf(begin);
  for (int64_t row = begin; row < end; row += kWarps) {
    const T factor = next;
    next = factorOf(row + kWarps);
    const auto part = rows.next();
    T mine = 0;
#pragma unroll
    for (int v = 0; v < kOwn; v++) {
      const Vec<T, kVec> w = widen(part.a[v]), g = widen(part.b[v]);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const T product = w.lane[e] * g.lane[e];
        sums[v].lane[e] += factor * product;
        mine += product * columns[v].lane[e];
      }
    }
    mine = warpSum(mine);
    if (lane == 0) x.rowSums[columnTile * x.rows + row] = mine;
  }

  waitCopies<0>();
  __syncthreads();
  T* const parts = reinterpret_cast<T*>(memory);  // [kWarps, kColumns]
#pragma unroll
  for (int v = 0; v < kOwn; v++) storeVec(parts + warp * kColumns, v * kWarp + lane, sums[v]);
  __syncthreads();
  for (int column = threadIdx.x; column < kColumns; column += kThreads) {
    T sum = 0;
#pragma unroll
    for (int part = 0; part < kWarps; part++) sum += parts[part * kColumns + column];
    const int64_t at = columnTile * kColumns + column;
    if (at < x.columns) x.columnSums[rowTile * x.columns + at] = sum;
  }
}

// Blocks 0 .. ceil(columns / 32) - 1 add up the column sums, 32 columns each, the warps sharing the
// tiles; the others add up the row sums, one row a thread.
template <class S>
__global__ __launch_bounds__(kThreads) void addTiles(ScaleGrad<S> x) {
  using T = Wide<S>;
  const int64_t columnBlocks = (x.columns + kWarp - 1) / kWarp;
  if (blockIdx.x < columnBlocks) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t column = int64_t(blockIdx.x) * kWarp + lane;
    T sum = 0;
    if (column < x.columns) {
#pragma unroll 8
      for (int64_t tile = warp; tile < x.rowTiles; tile += kWarps) {
        sum += x.columnSums[tile * x.columns + column];
      }
    }
    __shared__ T parts[kWarps][kWarp];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= x.columns) return;
    sum = 0;
#pragma unroll
    for (int part = 0; part < kWarps; part++) sum += parts[part][lane];
    x.gc[column] = sum;
  } else {
    const int64_t row = (int64_t(blockIdx.x) - columnBlocks) * kThreads + threadIdx.x;
    if (row >= x.rows) return;
    T sum = 0;
#pragma unroll 8
    for (int64_t tile = 0; tile < x.columnTiles; tile++) sum += x.rowSums[tile * x.rows + row];
    x.gr[row] = sum;
  }
}

template <class S, int kVec>
int32_t scaleGrad(aq_queue* queue, const aq_view* in, const aq_view* out, int64_t rows,
                  int64_t columns, aq_error* err) {
  using T = Wide<S>;
  ScaleGrad<S> x = {};
  x.w = static_cast<const S*>(in[0].data);
  x.r = static_cast<const T*>(in[1].data);
  x.c = static_cast<const T*>(in[2].data);
  x.g = static_cast<const GradientOf<S>*>(in[3].data);
  x.gr = static_cast<T*>(out[0].data);
  x.gc = static_cast<T*>(out[1].data);
  x.rows = rows;
  x.columns = columns;
  x.columnTiles = divideUp(columns, kTileColumns<S, kVec>);
  x.tileRows = divideUp(std::max<int64_t>(divideUp(rows * x.columnTiles, kTiles), 1), kWarps);
  x.tileRows *= kWarps;
  x.rowTiles = divideUp(rows, x.tileRows);

  const uint64_t rowBytes = scratchBytes(sizeof(T) * uint64_t(x.columnTiles * rows));
  const uint64_t columnBytes = scratchBytes(sizeof(T) * uint64_t(x.rowTiles * columns));
  Scratch scratch(queue);
  if (scratch.allocate(rowBytes + columnBytes, "scale_weight_grad", err) != AQ_OK) return err->code;
  x.rowSums = scratch.at<T>();
  x.columnSums = scratch.at<T>(rowBytes);

  const unsigned tiles = unsigned(x.rowTiles * x.columnTiles);
  constexpr int kBytes = WeightRows<S, kVec>::kSharedBytes;
  CUDA_CHECK(
      cudaFuncSetAttribute(sumTiles<S, kVec>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  sumTiles<S, kVec><<<tiles, kThreads, kBytes, queue->stream>>>(x);
  LAUNCH_CHECK("scale_weight_grad (tiles)");
  const unsigned blocks = unsigned(divideUp(columns, kWarp) + divideUp(rows, kThreads));
  addTiles<S><<<blocks, kThreads, 0, queue->stream>>>(x);
  LAUNCH_CHECK("scale_weight_grad (sums)");
  return AQ_OK;
}

}  // namespace

int32_t scale_weight(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                     const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t count = numel(in[0]);
  if (count == 0) return AQ_OK;
  const int64_t columns = in[0].dim[in[0].rank - 1], rows = count / columns;
  return visitStored(in[0].dtype, err, [&]<class S>() {
    const bool isWide = columns % kVecWidth<S> == 0 && isAligned16(in[0].data) &&
                        isAligned16(in[2].data) && isAligned16(out[0].data);
    return isWide ? scale<S, kVecWidth<S>>(queue, in, out[0], rows, columns, err)
                  : scale<S, 1>(queue, in, out[0], rows, columns, err);
  });
}

int32_t scale_weight_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitStored(in[0].dtype, err, [&]<class S>() -> int32_t {
    using T = Wide<S>;
    const int64_t rows = numel(out[0]), columns = numel(out[1]);
    if (rows == 0 || columns == 0) {
      CUDA_CHECK(cudaMemsetAsync(out[0].data, 0, sizeof(T) * size_t(rows), queue->stream));
      CUDA_CHECK(cudaMemsetAsync(out[1].data, 0, sizeof(T) * size_t(columns), queue->stream));
      return AQ_OK;
    }
    const bool isWide = columns % kVecWidth<S> == 0 && isAligned16(in[0].data) &&
                        isAligned16(in[2].data) && isAligned16(in[3].data);
    return isWide ? scaleGrad<S, kVecWidth<S>>(queue, in, out, rows, columns, err)
                  : scaleGrad<S, 1>(queue, in, out, rows, columns, err);
  });
}

}  // namespace aq::cuda
