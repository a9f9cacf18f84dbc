// int8_matmul: activations times packed weights of at most 8 bits, y = x^ W^T + bias.
//
// Math      W = (code - zero) scale, per group of a row; x^ is x, or its codes' values where x has a
//           grid of its own (W8A8).
// Layout    here: the choice of the way, and the rewriting of x that it needs. Few rows of x, and codes of
//           x: passes over the packed weights (int8_small.cu). Many: weights are expanded slab by slab,
//           small enough to stay in L2, and multiplied by the dense product (gemm.h). f64, and f32 at
//           precision f32 without a grid: always so, in that type.
// Cost      few rows: O I bytes, bandwidth-bound. Many: 2 M O I flop, bound by the matrix units.
// Roofline  8192 x 8192: 20 us for the bytes at 3.35 TB/s; 2048 rows: 278 us for the flop at 989
//           TFLOP/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  few rows: int8_small.cu. Many: weights are rounded once to the type of the product.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/int8.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using namespace int8;

constexpr int kThreads = kElementThreads;
// Of expanded weights at a time: they, x and y share an L2 of 40 to 50 MB.
constexpr int64_t kSlabBytes = 32 << 20;
constexpr int64_t kSlabRows = 128;    // a multiple of it
constexpr int64_t kCodeRows = 65536;  // of x as codes at a time

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
__device__ T codeOf(T x, T scale, T zero, T top) {
  const T code = rint(x / scale) + zero;
  return code < T(0) ? T(0) : code > top ? top : code;  // a NaN stays
}

// One call: the views of the op under names.
struct Call {
  Weights w;
  Result result;
  aq_view x, scale, zero;
  int64_t rows;
  int32_t bits;
};

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
int32_t convert(aq_queue* queue, const Call& call, int64_t ld, void* to, aq_error* err) {
  const S top = S((int64_t(1) << call.bits) - 1);
  convertRows<X, Y, S><<<elementBlocks(call.rows * ld), kThreads, 0, queue->stream>>>(
      static_cast<const X*>(call.x.data), call.rows, call.w.inputs, ld,
      static_cast<const S*>(call.scale.data), static_cast<const S*>(call.zero.data), top,
      static_cast<Y*>(to));
  LAUNCH_CHECK("int8_matmul (activations)");
  return AQ_OK;
}

// x in the type `dtype` of the product.
int32_t convertTo(aq_queue* queue, int32_t dtype, const Call& call, int64_t ld, void* to,
                  aq_error* err) {
  using Bf = __nv_bfloat16;
  switch (call.x.dtype) {
    case AQ_F64:
      return convert<double, double, double>(queue, call, ld, to, err);
    case AQ_BF16:
      return convert<Bf, Bf, float>(queue, call, ld, to, err);
    case AQ_F16:
      return convert<__half, __half, float>(queue, call, ld, to, err);
    default:
      if (dtype == AQ_BF16) return convert<float, Bf, float>(queue, call, ld, to, err);
      if (dtype == AQ_F16) return convert<float, __half, float>(queue, call, ld, to, err);
      return convert<float, float, float>(queue, call, ld, to, err);
  }
}

// Codes of x on its grid minus 128, rows ld apart, zeros beyond the columns; a block a row. A row that
// holds a NaN gets the scale NaN, as its products would.
template <class X>
__global__ __launch_bounds__(kThreads) void quantizeRows(const X* x, int64_t inputs, int64_t ld,
                                                         const float* scale, const float* zero,
                                                         float top, char4* y, float* yScale) {
  const int64_t row = blockIdx.x;
  const float s = scale[row], z = zero[row];
  bool hasNan = false;
  const auto code = [&](int64_t column) -> int8_t {
    if (column >= inputs) return 0;
    const float value = float(x[row * inputs + column]);
    hasNan |= isnan(value);
    return isnan(value) ? 0 : int8_t(int32_t(codeOf(value, s, z, top)) - 128);
  };
  for (int64_t quad = threadIdx.x; quad < ld / 4; quad += kThreads)
    y[row * (ld / 4) + quad] =
        make_char4(code(4 * quad), code(4 * quad + 1), code(4 * quad + 2), code(4 * quad + 3));
  hasNan = __syncthreads_or(hasNan);
  if (threadIdx.x == 0) yScale[row] = hasNan ? NAN : s;
}

template <class X>
int32_t quantizeTo(aq_queue* queue, const Call& call, int64_t first, int64_t rows, int64_t ld,
                   void* to, float* toScale, aq_error* err) {
  quantizeRows<X><<<unsigned(rows), kThreads, 0, queue->stream>>>(
      static_cast<const X*>(call.x.data) + first * call.w.inputs, call.w.inputs, ld,
      static_cast<const float*>(call.scale.data) + first,
      static_cast<const float*>(call.zero.data) + first, float((1 << call.bits) - 1),
      static_cast<char4*>(to), toScale);
  LAUNCH_CHECK("int8_matmul (codes)");
  return AQ_OK;
}

// Products of codes, exact.
int32_t integerProduct(aq_queue* queue, const Call& call, aq_error* err) {
  const int64_t ld = int64_t(call.w.tiles) * kTileColumns;
  const int64_t most = std::min(call.rows, kCodeRows);
  const uint64_t codeBytes = scratchBytes(uint64_t(most * ld));
  Scratch scratch(queue);
  int32_t code = scratch.allocate(codeBytes + uint64_t(most) * sizeof(float), "int8_matmul", err);
  if (code != AQ_OK) return code;
  float* const scale = scratch.at<float>(codeBytes);
  const int64_t size = call.x.dtype == AQ_F32 ? 4 : 2;
  for (int64_t first = 0; first < call.rows; first += most) {
    const int64_t rows = std::min(most, call.rows - first);
    const auto quantize = call.x.dtype == AQ_BF16  ? quantizeTo<__nv_bfloat16>
                          : call.x.dtype == AQ_F16 ? quantizeTo<__half>
                                                   : quantizeTo<float>;
    code = quantize(queue, call, first, rows, ld, scratch.at<void>(), scale, err);
    if (code != AQ_OK) return code;
    const Activations x = {scratch.at<void>(), ld, rows, scale,
                           static_cast<const float*>(call.zero.data) + first};
    Result y = call.result;
    y.y = static_cast<char*>(y.y) + first * call.w.outputs * size;
    code = multiplySmall(queue, Math::kInteger, x, call.w, y, err);
    if (code != AQ_OK) return code;
  }
  return AQ_OK;
}

// From the packed weights; `dtype` is bf16 or f16.
int32_t packedProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const int64_t ld = int64_t(call.w.tiles) * kTileColumns;
  Scratch scratch(queue);
  Activations x = {call.x.data, ld, call.rows};
  if (call.x.dtype != dtype || ld != call.w.inputs || !isAligned16(call.x.data)) {
    int32_t code = scratch.allocate(uint64_t(call.rows * ld) * 2, "int8_matmul", err);
    if (code != AQ_OK) return code;
    code = convertTo(queue, dtype, call, ld, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    x.data = scratch.at<void>();
  }
  const Math math = dtype == AQ_BF16 ? Math::kBf16 : Math::kF16;
  return multiplySmall(queue, math, x, call.w, call.result, err);
}

// y[row, first + i] = sums[row, i] + bias[first + i].
template <class Y>
__global__ __launch_bounds__(kThreads) void finishRows(const float* sums, int64_t rows,
                                                       int64_t count, int64_t first,
                                                       int64_t outputs, const Y* bias, Y* y) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < rows * count; i += stride) {
    const int64_t row = i / count, o = first + i % count;
    y[row * outputs + o] = Y(sums[i] + (bias ? float(bias[o]) : 0.0f));
  }
}

template <class Y>
int32_t finish(aq_queue* queue, const Call& call, const float* sums, int64_t count, int64_t first,
               aq_error* err) {
  finishRows<Y><<<elementBlocks(call.rows * count), kThreads, 0, queue->stream>>>(
      sums, call.rows, count, first, call.w.outputs, static_cast<const Y*>(call.result.bias),
      static_cast<Y*>(call.result.y));
  LAUNCH_CHECK("int8_matmul (results)");
  return AQ_OK;
}

// Slabs of weights as numbers of `dtype`, times x.
int32_t denseProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const Weights& w = call.w;
  const int64_t size = dtype == AQ_F64 ? 8 : dtype == AQ_F32 ? 4 : 2, inputs = w.inputs;
  const bool isWide = call.x.dtype == AQ_F64 || call.x.dtype == AQ_F32;  // then gemm writes y
  const bool converts = call.x.dtype != dtype || call.scale.data;
  const int64_t fit = kSlabBytes / std::max<int64_t>(1, inputs * size) / kSlabRows * kSlabRows;
  const int64_t slab = std::clamp<int64_t>(fit, kSlabRows, ceilDiv(w.outputs, 16) * 16);
  const uint64_t slabBytes = scratchBytes(uint64_t(slab * inputs * size));
  const uint64_t xBytes = converts ? scratchBytes(uint64_t(call.rows * inputs * size)) : 0;
  const uint64_t sumBytes = isWide ? 0 : uint64_t(call.rows * slab) * sizeof(float);
  Scratch scratch(queue);
  int32_t code = scratch.allocate(slabBytes + xBytes + sumBytes, "int8_matmul", err);
  if (code != AQ_OK) return code;
  const void* x = call.x.data;
  if (converts) {
    code = convertTo(queue, dtype, call, inputs, scratch.at<void>(slabBytes), err);
    if (code != AQ_OK) return code;
    x = scratch.at<void>(slabBytes);
  }
  const int64_t ySize = call.result.dtype == AQ_F64 ? 8 : 4;
  for (int64_t first = 0; first < w.outputs; first += slab) {
    const int64_t count = std::min(slab, w.outputs - first);
    code = expand(queue, w, first, count, dtype, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    float* const sums = scratch.at<float>(slabBytes + xBytes);
    Gemm product;
    product.m = call.rows;
    product.n = count;
    product.k = inputs;
    product.dtype = dtype;
    product.a = {.data = x, .ld = inputs};
    product.b = {.data = scratch.at<void>(), .ld = inputs, .transpose = true};
    product.c =
        isWide ? static_cast<char*>(call.result.y) + first * ySize : static_cast<void*>(sums);
    product.ldc = isWide ? w.outputs : count;
    if (isWide && call.result.bias)
      product.bias = static_cast<const char*>(call.result.bias) + first * ySize;
    code = gemm(queue, product, err);
    if (code != AQ_OK) return code;
    if (call.x.dtype == AQ_BF16) code = finish<__nv_bfloat16>(queue, call, sums, count, first, err);
    if (call.x.dtype == AQ_F16) code = finish<__half>(queue, call, sums, count, first, err);
    if (code != AQ_OK) return code;
  }
  return AQ_OK;
}

}  // namespace

int32_t int8_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_int8_matmul_params*>(params);
  const aq_view& x = in[0];
  const int64_t inputs = lastDim(x);
  if (numel(out[0]) == 0) return AQ_OK;
  const int64_t rows = numel(out[0]) / p.outputs;
  if (inputs > INT32_MAX - kTileColumns || rows > INT32_MAX) {
    return fail(err, AQ_SHAPE, "int8_matmul: %lld rows or %lld inputs of x exceed 2^31 - 1.",
                static_cast<long long>(rows), static_cast<long long>(inputs));
  }
  if (!isAligned16(in[1].data)) {
    return fail(err, AQ_ARG,
                "int8_matmul: the packed tensor starts off a multiple of 16 bytes; pass what "
                "int8_pack gave, and no part of a larger tensor.");
  }
  const int32_t tiles = int32_t(in[1].dim[1]);
  const Call call = {
      .w = {.codes = static_cast<const uint8_t*>(in[1].data),
            .scale = static_cast<const uint16_t*>(in[2].data),
            .zero = static_cast<const uint8_t*>(in[3].data),
            .outputs = p.outputs,
            .inputs = int32_t(inputs),
            .tileRows = int32_t(in[1].dim[0]),
            .tiles = tiles,
            .groups = int32_t(in[2].dim[1]),
            .group = p.group ? p.group : std::max(tiles, 1) * kTileColumns},
      .result = {.y = out[0].data, .bias = in[4].data, .dtype = x.dtype},
      .x = x,
      .scale = in[5],
      .zero = in[6],
      .rows = rows,
      .bits = p.x_bits,
  };
  if (x.dtype == AQ_F64) return denseProduct(queue, AQ_F64, call, err);
  if (call.scale.data) return integerProduct(queue, call, err);
  int32_t dtype = x.dtype;
  if (dtype == AQ_F32 && queue->precision != Precision::kF32)
    dtype = queue->precision == Precision::kBf16 ? AQ_BF16 : AQ_F16;
  if (dtype == AQ_F32 || call.rows > kSmallRows) return denseProduct(queue, dtype, call, err);
  return packedProduct(queue, dtype, call, err);
}

}  // namespace aq::cuda
