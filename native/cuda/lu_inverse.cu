// lu_inverse: inverses of batches of matrices, without pivoting where that is safe.
//
// Math      x = a^-1. Rows that are strictly diagonally dominant, as the gradual mask and
//           masked_adam's projection keep them, need no pivoting: no entry grows beyond twice its
//           size. So every matrix is first inverted without, and the result taken if it is one: if
//           the residual |I - A X|_F / sqrt(n), estimated with random vectors (lu_residual.cuh), is
//           small. Others, and all with `pivot` 1, get partial pivoting, in the same launch or in
//           one that follows: the host waits for nothing.
// Layout    up to 128 rows: one block a matrix, which stays in registers (device/lu_tile.cuh),
//           sizes in between continued by ones on the diagonal. Larger f32: lu_inverse_newton.cu
//           and lu_inverse_large.cu. f64, and whatever needs pivots: lu_inverse_pivot.cu.
// Cost      2 n^3 flop and 12 n^2 bytes a matrix (a is read again by the check, from the L2 cache).
// Roofline  1024 x 128^2 f32: 4.3 Gflop, 64 us at the 67 Tflop/s of an H100's FP32 units; 45 us for
//           the bytes. Measured there, H100 80GB HBM3, driver 580: 225 us; 32 x 128^2 42 us,
//           64 x 64^2 17 us.
// Versions  v1 P between two barriers: 250 us; v2 P beside the update of the step before (this).
// Numerics  f32 throughout; sums in a fixed order.
#include "native/cuda/lu_inverse.h"

#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/lu_pivot.cuh"
#include "native/cuda/device/lu_residual.cuh"
#include "native/cuda/device/lu_tile.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/kernels.h"

namespace aq::cuda {

namespace {

constexpr int kProbes = 2;

// Shared memory of a block, by turns.
template <class Tile>
union SmallShared {
  typename Tile::Shared panel;
  PivotShared<float, Tile::kSize> pivot;
  struct {
    float part[kProbes][Tile::kWarpsAcross][Tile::kSize];
    float image[kProbes][Tile::kSize];  // X v
  } rows;

  __device__ SmallShared() {}
};

// Sums of `mine` over the threads of each row, into part[.][row].
template <class Tile>
__device__ void sumRows(const Tile& tile, const float (&mine)[Tile::kTile],
                        float (&part)[Tile::kWarpsAcross][Tile::kSize]) {
#pragma unroll
  for (int r = 0; r < Tile::kTile; r++) {
    float sum = mine[r];
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (tile.across % 8 == 0) part[tile.across / 8][tile.row(r)] = sum;
  }
}

// Whether tile, the inverse of a, is one as far as the probes see.
template <class Tile>
__device__ bool isInverse(const Tile& tile, SmallShared<Tile>& shared, const float* a, int32_t n,
                          bool isWide) {
  auto& rows = shared.rows;
#pragma unroll
  for (int s = 0; s < kProbes; s++) {
    float sum[Tile::kTile] = {};
#pragma unroll
    for (int c = 0; c < Tile::kTile; c++) {
      const uint32_t signs = probeSigns(tile.column(c));
#pragma unroll
      for (int r = 0; r < Tile::kTile; r++) sum[r] += probed(tile.value[r][c], signs, s);
    }
    sumRows(tile, sum, rows.part[s]);
  }
  __syncthreads();
  for (int at = threadIdx.x; at < kProbes * Tile::kSize; at += Tile::kThreads) {
    const int s = at / Tile::kSize, i = at % Tile::kSize;
    float sum = 0;
    for (int w = 0; w < Tile::kWarpsAcross; w++) sum += rows.part[s][w][i];
    rows.image[s][i] = sum;
  }
  __syncthreads();
  float sum[kProbes][Tile::kTile] = {};
#pragma unroll
  for (int r = 0; r < Tile::kTile; r++) {
    const int i = tile.row(r);
#pragma unroll
    for (int g = 0; g < Tile::kGroups; g++) {
      const int j = tile.column(4 * g);
      Vec<float, 4> four;
      if (isWide && n == Tile::kSize) {
        four = loadVec<float, 4>(a + int64_t(i) * n + j, 0);
      } else {
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const bool isInside = i < n && j + c < n;
          four.lane[c] = isInside ? a[int64_t(i) * n + j + c] : (i == j + c ? 1.f : 0.f);
        }
      }
#pragma unroll
      for (int s = 0; s < kProbes; s++) {
        const auto u = loadVec<float, 4>(&rows.image[s][j], 0);
#pragma unroll
        for (int c = 0; c < 4; c++) sum[s][r] = fmaf(four.lane[c], u.lane[c], sum[s][r]);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kProbes; s++) sumRows(tile, sum[s], rows.part[s]);
  __syncthreads();
  float square = 0;
  for (int at = threadIdx.x; at < kProbes * Tile::kSize; at += Tile::kThreads) {
    const int s = at / Tile::kSize, i = at % Tile::kSize;
    float residual = -probed(1.f, probeSigns(i), s);
    for (int w = 0; w < Tile::kWarpsAcross; w++) residual += rows.part[s][w][i];
    square = fmaf(residual, residual, square);
  }
  const float total = rowSum<Tile::kThreads>(square);
  return total <= kLuBlockLimit * kLuBlockLimit * kProbes * float(n);
}

// One block a matrix of up to kSize rows.
template <int kSize, int kTile>
__global__ __launch_bounds__(
    LuTile<kSize, kTile>::kThreads,
    512 / LuTile<kSize, kTile>::kThreads) void invertSmall(const float* __restrict__ as,
                                                           float* __restrict__ xs, int32_t n,
                                                           bool isWide, Fault* fault) {
  using Tile = LuTile<kSize, kTile>;
  __shared__ SmallShared<Tile> shared;
  const int64_t matrix = blockIdx.x;
  const float* const a = as + matrix * n * n;
  float* const x = xs + matrix * n * n;
  {
    Tile tile;
    tile.load(a, n, n, isWide);
    tile.invert(shared.panel);
    __syncthreads();
    if (isInverse(tile, shared, a, n, isWide)) {
      tile.store(x, n, n, isWide);
      return;
    }
  }
  __syncthreads();
  const bool isGood = invertPivoting<float, Tile::kThreads>(a, x, n, shared.pivot);
  if (!isGood) raiseFault(fault, FaultKind::kSingular, matrix);
}

int32_t invertBlocks(aq_queue* queue, const LuBatch<float>& batch, aq_error* err) {
  const unsigned blocks = unsigned(batch.count);
  const bool isWide = batch.size % 4 == 0 && isAligned16(batch.a) && isAligned16(batch.x);
  const auto launch = [&]<int kSize, int kTile>() {
    invertSmall<kSize, kTile><<<blocks, LuTile<kSize, kTile>::kThreads, 0, queue->stream>>>(
        batch.a, batch.x, batch.size, isWide, queue->fault);
  };
  if (batch.size <= 32) {
    launch.operator()<32, 4>();
  } else if (batch.size <= 64) {
    launch.operator()<64, 4>();
  } else {
    launch.operator()<128, 8>();
  }
  LAUNCH_CHECK("lu_inverse");
  return AQ_OK;
}

template <class T>
int32_t run(aq_queue* queue, const LuBatch<T>& batch, bool alwaysPivot, aq_error* err) {
  if (batch.count == 0 || batch.size == 0) return AQ_OK;
  if constexpr (std::is_same_v<T, float>) {
    if (!alwaysPivot) {
      return batch.size <= kLuBlockSize ? invertBlocks(queue, batch, err)
                                        : invertLarge(queue, batch, err);
    }
  }
  return invertWithPivots(queue, batch, nullptr, err);
}

}  // namespace

int32_t lu_inverse(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_lu_inverse_params*>(params);
  const int64_t count = in[0].dim[0], size = in[0].dim[2];
  if (size > 32768 || count > INT32_MAX) {
    return fail(err, AQ_SHAPE,
                "lu_inverse: %lld matrices of %lld rows are more than 2^31 - 1 "
                "matrices or 32768 rows; invert them in parts.",
                static_cast<long long>(count), static_cast<long long>(size));
  }
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return run<T>(queue,
                  {static_cast<const T*>(in[0].data), static_cast<T*>(out[0].data),
                   static_cast<const T*>(in[1].data), count, int32_t(size)},
                  p.pivot != 0, err);
  });
}

}  // namespace aq::cuda
