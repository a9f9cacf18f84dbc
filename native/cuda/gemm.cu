// gemm: dense products for the other kernels, on cuBLASLt (cublaslt.cu) or our tiles
// (gemm_tiles.cu).
//
// Math      C = alpha factor op(A) op(B) + beta C + bias. f32 operands in precision bf16 or f16 are first
//           rounded to it, to nearest and ties to even; sums are f32, and so is what a BF16 C is
//           rounded from.
// Layout    what is rounded is written without gaps, rows padded to 16 bytes, so that products of
//           sliced or odd-sized operands too run at full speed.
// Cost      the rounding reads 4 and writes 2 bytes an element; the product 2 m n k flop.
// Roofline  of the rounding: bandwidth. Of the product: the tensor cores.
// Versions  v1 (this).
// Numerics  a plan always computes in the same order; f32 is f32 throughout (never TF32).
#include "native/cuda/gemm.h"

#include <algorithm>
#include <utility>

#include "native/cuda/check.h"
#include "native/cuda/cublaslt.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/gemm_tiles.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// c = sums + beta c + bias, for products that have no terms (no sums) and where the product cannot
// add the bias (nor those) or its result is to be rounded. Sums lie without gaps.
template <class C, class R>
__global__ __launch_bounds__(kElementThreads) void startResult(C* c, const R* sums, const R* bias,
                                                               R beta, int64_t m, int64_t n,
                                                               int64_t ldc, int64_t strideC,
                                                               int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count; k += stride) {
    const int64_t j = k % n, row = k / n;
    C* const at = c + row / m * strideC + row % m * ldc + j;
    R value = sums ? sums[k] : R(0);
    if (bias) value += bias[j];
    if (beta != R(0)) value += beta * R(*at);
    *at = C(value);
  }
}

template <class C, class R>
int32_t start(aq_queue* queue, const Gemm& g, const void* sums, aq_error* err) {
  const int64_t count = g.batch * g.m * g.n;
  startResult<C, R><<<elementBlocks(count), kElementThreads, 0, queue->stream>>>(
      static_cast<C*>(g.c), static_cast<const R*>(sums), static_cast<const R*>(g.bias), R(g.beta),
      g.m, g.n, g.ldc, g.strideC, count);
  LAUNCH_CHECK("gemm (start)");
  return AQ_OK;
}

int32_t startAny(aq_queue* queue, const Gemm& g, aq_error* err) {
  if (g.dtype == AQ_F64) return start<double, double>(queue, g, nullptr, err);
  if (g.dtype == AQ_I8) return start<int32_t, int32_t>(queue, g, nullptr, err);
  if (g.hasShortResult()) return start<__nv_bfloat16, float>(queue, g, nullptr, err);
  return start<float, float>(queue, g, nullptr, err);
}

int32_t multiply(aq_queue* queue, const Gemm& g, aq_error* err);

// A BF16 result by way of an f32 one in scratch, where the library makes none.
int32_t multiplyThenRound(aq_queue* queue, const Gemm& g, aq_error* err) {
  Scratch sums(queue);
  if (sums.allocate(uint64_t(g.batch * g.m * g.n) * 4, "gemm", err) != AQ_OK) return err->code;
  Gemm wide = g;
  wide.resultDtype = AQ_F32;
  wide.c = sums.at<float>();
  wide.ldc = g.n;
  wide.strideC = g.batch == 1 ? 0 : g.m * g.n;
  wide.beta = 0;
  wide.bias = nullptr;
  if (multiply(queue, wide, err) != AQ_OK) return err->code;
  return start<__nv_bfloat16, float>(queue, g, wide.c, err);
}

// Computes with the operands as they stand.
int32_t multiply(aq_queue* queue, const Gemm& g, aq_error* err) {
  bool done = false;
  if (blasProduct(queue, g, &done, err) != AQ_OK) return err->code;
  if (done) return AQ_OK;
  if (g.hasShortResult()) return multiplyThenRound(queue, g, err);
  if (g.bias) {
    // The library may refuse only the bias: without it the product can still be the library's.
    Gemm plain = g;
    plain.bias = nullptr;
    plain.beta = 1;
    if (startAny(queue, g, err) != AQ_OK) return err->code;
    if (blasProduct(queue, plain, &done, err) != AQ_OK) return err->code;
    return done ? AQ_OK : tileProduct(queue, plain, err);
  }
  return tileProduct(queue, g, err);
}

// ---------------------------------------------------------------- rounding

// x, matrices of rows x cols with their strides, to y without gaps but for rows of `pitch`, whose
// padding is not written. count: of runs of 8 columns where kWide, else of columns.
template <class E, bool kWide>
__global__ __launch_bounds__(kElementThreads) void roundAll(const float* __restrict__ x,
                                                            E* __restrict__ y, int64_t rows,
                                                            int64_t cols, int64_t ld,
                                                            int64_t strideX, int64_t pitch,
                                                            int64_t count) {
  constexpr int kRun = kWide ? 8 : 1;
  const int64_t stride = int64_t(gridDim.x) * kElementThreads, perRow = cols / kRun;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count; k += stride) {
    // Matrices without gaps come as one row: a 64-bit division costs more than the conversion.
    const int64_t row = k < perRow ? 0 : k / perRow, z = row < rows ? 0 : row / rows;
    const int64_t col = (k - row * perRow) * kRun;
    const float* const from = x + z * strideX + (row - z * rows) * ld + col;
    E* const to = y + row * pitch + col;
    if constexpr (kWide) {
      const Vec<float, 4> low = loadVec<float, 4>(from, 0), high = loadVec<float, 4>(from, 1);
      Vec<E, 8> rounded;
#pragma unroll
      for (int e = 0; e < 4; e++) {
        rounded.lane[e] = E(low.lane[e]);
        rounded.lane[e + 4] = E(high.lane[e]);
      }
      storeVec(to, 0, rounded);
    } else {
      *to = E(*from);
    }
  }
}

// A stored operand: its rows and columns, and how many matrices of the batch differ.
struct Stored {
  int64_t rows, cols, count;
  int64_t pitch() const { return (cols + 7) / 8 * 8; }
  uint64_t bytes() const { return scratchBytes(uint64_t(count * rows * pitch()) * 2); }
};

Stored storedOf(const GemmMatrix& x, int64_t rows, int64_t cols, int64_t batch) {
  if (x.transpose) std::swap(rows, cols);
  return {rows, cols, x.stride == 0 ? 1 : batch};
}

template <class E>
int32_t roundOperand(aq_queue* queue, GemmMatrix* x, const Stored& s, E* to, aq_error* err) {
  const float* const from = static_cast<const float*>(x->data);
  const int64_t count = s.count * s.rows * s.cols;
  const bool isOneRun =
      x->ld == s.cols && s.pitch() == s.cols && (s.count == 1 || x->stride == s.rows * s.cols);
  const int64_t rows = isOneRun ? 1 : s.rows, cols = isOneRun ? count : s.cols;
  const bool isWide = isAligned16(from) && cols % 8 == 0 && x->ld % 4 == 0 && x->stride % 4 == 0;
  const int64_t runs = isWide ? count / 8 : count;
  const auto kernel = isWide ? roundAll<E, true> : roundAll<E, false>;
  kernel<<<elementBlocks(runs), kElementThreads, 0, queue->stream>>>(from, to, rows, cols, x->ld,
                                                                     x->stride, s.pitch(), runs);
  LAUNCH_CHECK("gemm (rounding)");
  x->data = to;
  x->ld = s.pitch();
  x->stride = x->stride == 0 ? 0 : s.rows * s.pitch();
  return AQ_OK;
}

template <class E>
int32_t multiplyRounded(aq_queue* queue, Gemm g, int32_t dtype, aq_error* err) {
  const Stored a = storedOf(g.a, g.m, g.k, g.batch), b = storedOf(g.b, g.k, g.n, g.batch);
  // X^T X and the like: one matrix in both places is rounded once.
  const bool isSame = g.a.data == g.b.data && g.a.ld == g.b.ld && g.a.stride == g.b.stride &&
                      a.rows == b.rows && a.cols == b.cols;
  Scratch scratch(queue);
  if (scratch.allocate(a.bytes() + (isSame ? 0 : b.bytes()), "gemm", err) != AQ_OK)
    return err->code;
  if (roundOperand(queue, &g.a, a, scratch.at<E>(), err) != AQ_OK) return err->code;
  if (isSame) {
    const bool transpose = g.b.transpose;
    g.b = g.a;
    g.b.transpose = transpose;
  } else if (roundOperand(queue, &g.b, b, scratch.at<E>(a.bytes()), err) != AQ_OK) {
    return err->code;
  }
  g.dtype = dtype;
  return multiply(queue, g, err);
}

// Where an operand or result has one row, or a batch one matrix, the distance to the next is not
// given or looked at; the library wants one that could be.
Gemm normalized(Gemm g) {
  const auto fix = [&](GemmMatrix& x, int64_t cols) {
    x.ld = std::max(x.ld, cols);
    if (g.batch == 1) x.stride = 0;
  };
  fix(g.a, g.a.transpose ? g.m : g.k);
  fix(g.b, g.b.transpose ? g.k : g.n);
  g.ldc = std::max(g.ldc, g.n);
  if (g.batch == 1) g.strideC = 0;
  return g;
}

}  // namespace

int32_t gemm(aq_queue* queue, const Gemm& product, aq_error* err) {
  const Gemm g = normalized(product);
  if (g.m <= 0 || g.n <= 0 || g.batch <= 0) return AQ_OK;
  if (g.dtype == AQ_I8 &&
      (g.a.transpose || !g.b.transpose || g.alpha != 1 || g.beta != 0 || g.factor || g.bias))
    return fail(err, AQ_INTERNAL, "gemm: an i8 product takes A as it is and B transposed, alone.");
  if (g.resultDtype != AQ_F32 && g.resultDtype != AQ_BF16)
    return fail(err, AQ_INTERNAL, "gemm: a result is f32 or bf16, not dtype %d.", g.resultDtype);
  if (g.k <= 0) return startAny(queue, g, err);
  if (g.dtype == AQ_F32 && g.precision == Precision::kBf16)
    return multiplyRounded<__nv_bfloat16>(queue, g, AQ_BF16, err);
  if (g.dtype == AQ_F32 && g.precision == Precision::kF16)
    return multiplyRounded<__half>(queue, g, AQ_F16, err);
  return multiply(queue, g, err);
}

}  // namespace aq::cuda
