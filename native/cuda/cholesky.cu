// The inverse of a Cholesky factor, in f64 and in place.
//
// Math      A = L Lt from left to right in blocks of kBlock columns: the inverse of the corner's L,
//           the panel below it multiplied by that inverse, and the panel's product with itself
//           taken off the rest. Then L^-1 from the corners' inverses, doubling the size s of what
//           is inverted: of two neighbours, X_21 = -X_22 (L_21 X_11).
// Layout    row-major. A corner belongs to one block of threads, in registers; everything else is a
//           product of gemm.h, all pairs of one size in one batch.
// Cost      n^3/3 + 2/3 n^3 flop, as products do not skip the zeros of triangles, and a quarter of
//           the matrix as memory; n/kBlock corners, which wait for each other. Measured on an H100
//           80GB HBM3: n = 4096 5.4 ms, n = 8192 26 ms.
// Versions  v2 doubles, and holds corners in registers; v1 inverted block row by block row, in
//           products of 64 rows that left most of the GPU idle, and worked in shared memory.
// Numerics  f64. The corner's inverse stands in for a triangular solve, which is as accurate here
//           because corners of a damped matrix are well conditioned.
#include "native/cuda/cholesky.h"

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/gemm.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kBlock = 64;
constexpr int kStrip = 2048;  // columns of one product on the rest: what is above them is spared
constexpr int kSide = 16;     // a corner's threads are a square of this side,
constexpr int kTile = kBlock / kSide;  // and each holds every kSide-th row and column

// inverse [kBlock, kBlock] <- L^-1 of the corner L Lt [width, width] at `a` (rows `ld` apart),
// zeros above its diagonal. Row operations that turn the corner into an upper triangle are applied
// to the identity as well: with A = L' D L't, L' of unit diagonal, they leave L'^-1, and L^-1 is
// D^-1/2 L'^-1.
// `last` is the column that the corner's first row stands for.
__global__ __launch_bounds__(kSide* kSide) void invertCorner(const double* __restrict__ a,
                                                             int64_t ld, int width, int64_t last,
                                                             double* __restrict__ inverse,
                                                             Fault* fault) {
  // Column j of what is left of A and row j of the inverse, of the current and of the last step.
  __shared__ double column[2][kBlock], row[2][kBlock], pivots[kBlock];
  const int tx = int(threadIdx.x) % kSide, ty = int(threadIdx.x) / kSide;
  double left[kTile][kTile], made[kTile][kTile];
#pragma unroll
  for (int p = 0; p < kTile; p++) {
#pragma unroll
    for (int q = 0; q < kTile; q++) {
      const int i = ty + p * kSide, c = tx + q * kSide;
      const bool isInside = i < width && c < width;
      left[p][q] = isInside ? a[max(i, c) * ld + min(i, c)] : (i == c ? 1.0 : 0.0);
      made[p][q] = i == c ? 1.0 : 0.0;
    }
  }

#pragma unroll
  for (int part = 0; part < kTile; part++) {
    for (int owner = 0; owner < kSide; owner++) {
      const int j = part * kSide + owner, turn = owner % 2;
      if (tx == owner) {
#pragma unroll
        for (int p = 0; p < kTile; p++) column[turn][ty + p * kSide] = left[p][part];
      }
      if (ty == owner) {
#pragma unroll
        for (int q = 0; q < kTile; q++) row[turn][tx + q * kSide] = made[part][q];
      }
      __syncthreads();
      double pivot = column[turn][j];
      if (!(pivot > 0 && isfinite(pivot))) {
        if (threadIdx.x == 0) raiseFault(fault, FaultKind::kNotPositive, last - j);
        pivot = 1;
      }
      if (threadIdx.x == 0) pivots[j] = pivot;
      const double scale = 1 / pivot;
#pragma unroll
      for (int p = 0; p < kTile; p++) {
        const int i = ty + p * kSide;
        const double factor = i > j ? column[turn][i] * scale : 0.0;
#pragma unroll
        for (int q = 0; q < kTile; q++) {
          left[p][q] -= factor * column[turn][tx + q * kSide];
          made[p][q] -= factor * row[turn][tx + q * kSide];
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int p = 0; p < kTile; p++) {
    const int i = ty + p * kSide;
    const double root = sqrt(pivots[i]);
#pragma unroll
    for (int q = 0; q < kTile; q++) inverse[i * kBlock + tx + q * kSide] = made[p][q] / root;
  }
}

// The corners' inverses on the diagonal and zeros above it; below the corners L stays.
__global__ __launch_bounds__(kElementThreads) void placeCorners(
    double* __restrict__ matrix, int64_t n, const double* __restrict__ corners) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < n * n; k += stride) {
    const int64_t i = k / n, j = k % n;
    if (j / kBlock < i / kBlock) continue;
    matrix[k] = j > i ? 0.0 : corners[i * kBlock + j % kBlock];
  }
}

GemmMatrix rowsOf(const double* data, int64_t ld, bool transpose = false) {
  GemmMatrix m;
  m.data = data;
  m.ld = ld;
  m.transpose = transpose;
  return m;
}

Gemm product(int64_t m, int64_t n, int64_t k, const GemmMatrix& a, const GemmMatrix& b, double* c,
             int64_t ldc) {
  Gemm p;
  p.m = m;
  p.n = n;
  p.k = k;
  p.dtype = AQ_F64;
  p.a = a;
  p.b = b;
  p.c = c;
  p.ldc = ldc;
  return p;
}

// matrix <- L^-1 of `count` pairs of neighbours on the diagonal, the first pair at `at`: of sizes s
// and rows, both inverted already, with L between them.
int32_t joinPairs(aq_queue* queue, double* matrix, int64_t n, int64_t at, int64_t s, int64_t rows,
                  int64_t count, double* temp, aq_error* err) {
  double* const first = matrix + at * (n + 1);
  double* const between = first + s * n;
  const int64_t apart = 2 * s * (n + 1);  // from pair to pair
  Gemm p = product(rows, s, s, rowsOf(between, n), rowsOf(first, n), temp, s);
  p.batch = count;
  p.a.stride = p.b.stride = apart;
  p.strideC = rows * s;
  if (gemm(queue, p, err) != AQ_OK) return err->code;
  p = product(rows, s, rows, rowsOf(between + s, n), rowsOf(temp, s), between, n);
  p.batch = count;
  p.a.stride = p.strideC = apart;
  p.b.stride = rows * s;
  p.alpha = -1;
  return gemm(queue, p, err);
}

int32_t factorize(aq_queue* queue, double* matrix, int64_t n, double* corners, double* panel,
                  aq_error* err) {
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t width = std::min<int64_t>(kBlock, n - k), end = k + width, rest = n - end;
    double* const corner = corners + k * kBlock;
    invertCorner<<<1, kSide * kSide, 0, queue->stream>>>(matrix + k * n + k, n, int(width),
                                                         n - 1 - k, corner, queue->fault);
    LAUNCH_CHECK("gptq (corner)");
    if (rest == 0) break;
    double* const below = matrix + end * n + k;
    Gemm p =
        product(rest, width, width, rowsOf(below, n), rowsOf(corner, kBlock, true), panel, kBlock);
    if (gemm(queue, p, err) != AQ_OK) return err->code;
    CUDA_CHECK(cudaMemcpy2DAsync(below, size_t(n) * sizeof(double), panel, kBlock * sizeof(double),
                                 size_t(width) * sizeof(double), size_t(rest),
                                 cudaMemcpyDeviceToDevice, queue->stream));
    for (int64_t c = 0; c < rest;
         c += kStrip) {  // the rest -= panel panelT, from its diagonal down
      const double* const rows = panel + c * kBlock;
      p = product(rest - c, std::min<int64_t>(kStrip, rest - c), width, rowsOf(rows, kBlock),
                  rowsOf(rows, kBlock, true), matrix + (end + c) * (n + 1), n);
      p.alpha = -1;
      p.beta = 1;
      if (gemm(queue, p, err) != AQ_OK) return err->code;
    }
  }
  return AQ_OK;
}

// Doubles of `work` for what joinPairs multiplies: the largest of all sizes.
int64_t pairElements(int64_t n) {
  int64_t most = 0;
  for (int64_t s = kBlock; s < n; s *= 2) {
    most = std::max({most, n / (2 * s) * s * s, (n % (2 * s) - s) * s});
  }
  return most;
}

}  // namespace

uint64_t inverseFactorBytes(int64_t n) {
  const int64_t corners = (n + kBlock - 1) / kBlock * kBlock * kBlock;
  return scratchBytes(uint64_t(corners + std::max(n * kBlock, pairElements(n))) * sizeof(double));
}

int32_t inverseFactor(aq_queue* queue, double* matrix, int64_t n, double* work, aq_error* err) {
  double* const corners = work;  // [blocks, kBlock, kBlock]
  double* const temp = work + (n + kBlock - 1) / kBlock * kBlock * kBlock;
  if (factorize(queue, matrix, n, corners, temp, err) != AQ_OK) return err->code;
  placeCorners<<<elementBlocks(n * n), kElementThreads, 0, queue->stream>>>(matrix, n, corners);
  LAUNCH_CHECK("gptq (corners)");
  for (int64_t s = kBlock; s < n; s *= 2) {
    const int64_t pairs = n / (2 * s), at = pairs * 2 * s, rows = n - at - s;
    if (pairs > 0 && joinPairs(queue, matrix, n, 0, s, s, pairs, temp, err) != AQ_OK) {
      return err->code;
    }
    if (rows > 0 && joinPairs(queue, matrix, n, at, s, rows, 1, temp, err) != AQ_OK) {
      return err->code;
    }
  }
  return AQ_OK;
}

}  // namespace aq::cuda
