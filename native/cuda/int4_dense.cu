// int4_dense: packed weights as dense products see them: x in their type, weights expanded slab by
// slab. For what no packed kernel takes: f64, f32 at precision f32, and many rows before Hopper.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/int4.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda::int4 {

namespace {

constexpr int kThreads = 256;
// Of expanded weights at a time: they, x and y share an L2 of 40 to 50 MB.
constexpr int64_t kSlabBytes = 32 << 20;
constexpr int64_t kSlabRows = 128;  // a multiple of it

// y = x on its grid, if it has one, in another type and with rows ld apart.
template <class X, class Y, class S>
__global__ __launch_bounds__(kThreads) void convertRows(const X* x, int64_t rows, int64_t inputs,
                                                        int64_t ld, const S* scale, const S* zero,
                                                        S top, Y* y) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < rows * ld; i += stride) {
    const int64_t row = i / ld, column = i % ld;
    S value = column < inputs ? S(x[row * inputs + column]) : S(0);
    if (scale && column < inputs)
      value = (codeOf(value, scale[row], zero[row], top) - zero[row]) * scale[row];
    y[i] = Y(value);
  }
}

template <class X, class Y, class S>
int32_t convert(aq_queue* queue, const Tokens& tokens, int64_t ld, void* to, aq_error* err) {
  const S top = S((int64_t(1) << tokens.bits) - 1);
  convertRows<X, Y, S><<<elementBlocks(tokens.rows * ld), kThreads, 0, queue->stream>>>(
      static_cast<const X*>(tokens.x.data), tokens.rows, tokens.inputs, ld,
      static_cast<const S*>(tokens.scale.data), static_cast<const S*>(tokens.zero.data), top,
      static_cast<Y*>(to));
  LAUNCH_CHECK("int4_matmul (activations)");
  return AQ_OK;
}

// y[row, first + i] = sums[row, i] + bias[first + i].
template <bool kScales>
__global__ __launch_bounds__(kThreads) void finishRows(const float* sums, int64_t rows,
                                                       int64_t count, int64_t first,
                                                       int64_t outputs, Result y) {
  const float factor = kScales ? Factors(y).of(y) : 1.0f;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < rows * count; i += stride) {
    const int64_t row = i / count, o = first + i % count;
    const float bias = y.bias ? loadAs(y.dtype, y.bias, o) : 0.0f;
    const float sum = kScales ? sums[i] * factor : sums[i];
    storeAs(y.dtype, y.y, row * outputs + o, sum + bias);
  }
}

}  // namespace

int32_t convertTokens(aq_queue* queue, const Tokens& tokens, int32_t dtype, int64_t ld, void* to,
                      aq_error* err) {
  using Bf = __nv_bfloat16;
  switch (tokens.x.dtype) {
    case AQ_F64:
      return convert<double, double, double>(queue, tokens, ld, to, err);
    case AQ_BF16:
      return convert<Bf, Bf, float>(queue, tokens, ld, to, err);
    case AQ_F16:
      if (dtype == AQ_BF16) return convert<__half, Bf, float>(queue, tokens, ld, to, err);
      return convert<__half, __half, float>(queue, tokens, ld, to, err);
    default:
      if (dtype == AQ_BF16) return convert<float, Bf, float>(queue, tokens, ld, to, err);
      if (dtype == AQ_F16) return convert<float, __half, float>(queue, tokens, ld, to, err);
      return convert<float, float, float>(queue, tokens, ld, to, err);
  }
}

int32_t multiplyDense(aq_queue* queue, int32_t dtype, const void* x, int64_t rows, const Weights& w,
                      const void* factor, const Result& y, aq_error* err) {
  const int64_t size = dtype == AQ_F64 ? 8 : dtype == AQ_F32 ? 4 : 2, inputs = w.inputs;
  const bool isFloats = w.format != Format::kInt4, isExact = dtype == AQ_F64 || dtype == AQ_F32;
  // gemm writes y: of whole numbers where y is wide, of floats where its factor is in the weights.
  const bool isWide = isFloats ? isExact : y.dtype == AQ_F64 || y.dtype == AQ_F32;
  const int64_t fit = kSlabBytes / std::max<int64_t>(1, inputs * size) / kSlabRows * kSlabRows;
  const int64_t slab = std::clamp<int64_t>(fit, kSlabRows, (w.outputs + 15) / 16 * 16);
  const uint64_t slabBytes = scratchBytes(uint64_t(slab * inputs * size));
  const uint64_t sumBytes = isWide ? 0 : uint64_t(rows * slab) * sizeof(float);
  Scratch scratch(queue);
  int32_t code = scratch.allocate(slabBytes + sumBytes, "int4_matmul", err);
  if (code != AQ_OK) return code;
  float* const sums = scratch.at<float>(slabBytes);
  const int64_t ySize = y.dtype == AQ_F64 ? 8 : 4;
  for (int64_t first = 0; first < w.outputs; first += slab) {
    const int64_t count = std::min(slab, w.outputs - first);
    code = isFloats ? expandFloats(queue, w, isExact ? factor : nullptr, first, count, dtype,
                                   scratch.at<void>(), err)
                    : expand(queue, w, first, count, dtype, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    Gemm product;
    product.m = rows;
    product.n = count;
    product.k = inputs;
    product.dtype = dtype;
    product.a = {.data = x, .ld = inputs};
    product.b = {.data = scratch.at<void>(), .ld = inputs, .transpose = true};
    if (isWide) {
      product.c = static_cast<char*>(y.y) + first * ySize;
      product.ldc = w.outputs;
      if (y.bias) product.bias = static_cast<const char*>(y.bias) + first * ySize;
    } else {
      product.c = sums;
      product.ldc = count;
    }
    code = gemm(queue, product, err);
    if (code != AQ_OK) return code;
    if (isWide) continue;
    const auto finish = isFloats ? finishRows<true> : finishRows<false>;
    finish<<<elementBlocks(rows * count), kThreads, 0, queue->stream>>>(sums, rows, count, first,
                                                                        w.outputs, y);
    LAUNCH_CHECK("int4_matmul (results)");
  }
  return AQ_OK;
}

}  // namespace aq::cuda::int4
