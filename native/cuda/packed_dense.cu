// packed_dense: packed weights as dense products see them: x in their type,
// weights expanded slab by slab. For what no packed kernel takes: f64, f32 at
// precision f32, and many rows where no kernel unpacks on the way.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/launch.h"
#include "native/cuda/packed.h"
#include "native/cuda/scratch.h"

namespace aq::cuda::packed {

namespace {

// Of expanded weights at a time: they, x and y share an L2 of 40 to 50 MB.
constexpr int64_t kSlabBytes = 32 << 20;
constexpr int64_t kSlabRows = 128;  // a multiple of it

int64_t bytesOf(int32_t dtype) { return dtype == AQ_F64 ? 8 : dtype == AQ_F32 ? 4 : 2; }

// y[row, first + i] = sums[row, i] + bias[first + i].
template <bool kScales>
__global__ __launch_bounds__(kElementThreads) void finishRows(const float* sums, int64_t rows,
                                                              int64_t count, int64_t first,
                                                              int64_t outputs, Result y) {
  const float factor = kScales ? int4::Factors(y).of(y) : 1.0f;
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; i < rows * count;
       i += stride) {
    const int64_t row = i / count, o = first + i % count;
    const float bias = y.bias ? loadAs(y.dtype, y.bias, o) : 0.0f;
    const float sum = kScales ? sums[i] * factor : sums[i];
    storeAs(y.dtype, y.y, row * outputs + o, sum + bias);
  }
}

}  // namespace

int32_t multiplyDense(aq_queue* queue, int32_t dtype, const void* x, int64_t rows,
                      const DenseWeights& w, const Result& y, aq_error* err) {
  const int64_t size = bytesOf(dtype);
  const bool isExact = dtype == AQ_F64 || dtype == AQ_F32;
  // gemm writes y: of unscaled sums where y is wide, else where the factor is
  // in the weights.
  const bool isWide = w.scalesSums ? isExact : y.dtype == AQ_F64 || y.dtype == AQ_F32;
  const int64_t fit = kSlabBytes / std::max<int64_t>(1, w.inputs * size) / kSlabRows * kSlabRows;
  const int64_t slab = std::clamp<int64_t>(fit, kSlabRows, (w.outputs + 15) / 16 * 16);
  const uint64_t slabBytes = scratchBytes(uint64_t(slab * w.inputs * size));
  const uint64_t sumBytes = isWide ? 0 : uint64_t(rows * slab) * sizeof(float);
  Scratch scratch(queue);
  int32_t code = scratch.allocate(slabBytes + sumBytes, "a packed product", err);
  if (code != AQ_OK) return code;
  float* const sums = scratch.at<float>(slabBytes);
  for (int64_t first = 0; first < w.outputs; first += slab) {
    const int64_t count = std::min(slab, w.outputs - first);
    code = w.expand(first, count, scratch.at<void>());
    if (code != AQ_OK) return code;
    Gemm product;
    product.m = rows;
    product.n = count;
    product.k = w.inputs;
    product.dtype = dtype;
    product.a = {.data = x, .ld = w.inputs};
    product.b = {.data = scratch.at<void>(), .ld = w.inputs, .transpose = true};
    if (isWide) {
      product.c = static_cast<char*>(y.y) + first * bytesOf(y.dtype);
      product.ldc = w.outputs;
      if (y.bias) product.bias = static_cast<const char*>(y.bias) + first * bytesOf(y.dtype);
    } else {
      product.c = sums;
      product.ldc = count;
    }
    code = gemm(queue, product, err);
    if (code != AQ_OK) return code;
    if (isWide) continue;
    const auto finish = w.scalesSums ? finishRows<true> : finishRows<false>;
    finish<<<elementBlocks(rows * count), kElementThreads, 0, queue->stream>>>(sums, rows, count,
                                                                               first, w.outputs, y);
    LAUNCH_CHECK("a packed product (results)");
  }
  return AQ_OK;
}

int32_t multiplyDense(aq_queue* queue, int32_t dtype, const Tokens& tokens, const DenseWeights& w,
                      const Result& y, aq_error* err) {
  if (tokens.x.dtype == dtype && !tokens.scale.data)
    return multiplyDense(queue, dtype, tokens.x.data, tokens.rows, w, y, err);
  Scratch scratch(queue);
  int32_t code =
      scratch.allocate(uint64_t(tokens.rows * w.inputs * bytesOf(dtype)), "a packed product", err);
  if (code != AQ_OK) return code;
  code = convertTokens(queue, tokens, dtype, w.inputs, scratch.at<void>(), err);
  if (code != AQ_OK) return code;
  return multiplyDense(queue, dtype, scratch.at<void>(), tokens.rows, w, y, err);
}

}  // namespace aq::cuda::packed
