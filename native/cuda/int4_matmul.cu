// int4_matmul: activations times packed weights of at most 4 bits, y = x^ W^T + bias.
//
// Math      W = (code - zero) scale, per group of a row; x^ is x, or its codes' values where x has a
//           grid of its own (W4A8, W4A4).
// Layout    here: the choice of the way, and the rewriting of x that it needs. Few rows of x, and codes
//           of x: one pass over the packed weights (int4_small.cu), for more than 32 codes' rows again
//           and again. Many rows on Hopper: int4_batch.cu. Many elsewhere: weights are expanded slab by
//           slab, small enough to stay in L2, and multiplied by the dense product (int4_dense.cu). f64,
//           and f32 at precision f32: always the dense way, in that type.
// Cost      few rows: O I / 2 bytes, bandwidth-bound. Many: 2 M O I flop, bound by the matrix units.
// Roofline  8192 x 8192, groups of 128: 10.5 us for the bytes at 3.35 TB/s; 2048 rows: 278 us for the
//           flop at 989 TFLOP/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  few rows: int4_small.cu. Many: weights are rounded once to the type of the product.
#include <algorithm>
#include <bit>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/int4.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using namespace int4;

constexpr int kThreads = 256, kMaxThreads = 1024;
constexpr int64_t kCodeRows = 65536;  // of x as codes at a time

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Codes of x on its grid, rows ld apart, zeros beyond the columns; a block a row. A run of 32 columns
// is in the order in which the packed weights meet it: bytes 8 t + 4 j + i hold column
// 16 j + 2 t + (0, 8, 1, 9)[i]. A row that holds a NaN gets the scale NaN, as its products would.
template <class X>
__global__ __launch_bounds__(kMaxThreads) void quantizeRows(const X* x, int64_t inputs, int64_t ld,
                                                            const float* scale, const float* zero,
                                                            float top, uchar4* y, float* yScale) {
  waitForKernelBefore();
  // The product's blocks should not find many multiprocessors half taken: some would share one.
  if (gridDim.x <= 4) letNextKernelStart();
  const int64_t row = blockIdx.x;
  const float s = scale[row], z = zero[row];
  bool hasNan = false;
  const auto code = [&](int64_t column) -> uint8_t {
    if (column >= inputs) return 0;
    const float value = float(x[row * inputs + column]);
    hasNan |= isnan(value);
    return isnan(value) ? 0 : uint8_t(codeOf(value, s, z, top));
  };
  for (int64_t quad = threadIdx.x; quad < ld / 4; quad += blockDim.x) {
    const int64_t column = quad / 8 * 32 + quad % 2 * 16 + quad % 8 / 2 * 2;
    y[row * (ld / 4) + quad] =
        make_uchar4(code(column), code(column + 8), code(column + 1), code(column + 9));
  }
  hasNan = __syncthreads_or(hasNan);
  if (threadIdx.x == 0) yScale[row] = hasNan ? NAN : s;
}

// One call: the views of the op under names.
struct Call {
  Weights w;
  Result result;
  aq_view x, scale, zero;
  int64_t rows;
  int32_t bits;
};

Tokens tokensOf(const Call& call) {
  return {call.x, call.scale, call.zero, call.rows, call.w.inputs, call.bits};
}

template <class X>
int32_t quantizeX(aq_queue* queue, const Call& call, int64_t ld, uint8_t* to, float* toScale,
                  aq_error* err) {
  // Few rows: more threads for each.
  const int threads = call.rows >= queue->multiprocessors ? kThreads : kMaxThreads;
  const EarlyLaunch shape(queue, dim3(unsigned(call.rows)), threads);
  CUDA_CHECK(cudaLaunchKernelEx(
      &shape.config, quantizeRows<X>, static_cast<const X*>(call.x.data), int64_t(call.w.inputs),
      ld, static_cast<const float*>(call.scale.data), static_cast<const float*>(call.zero.data),
      float((1 << call.bits) - 1), reinterpret_cast<uchar4*>(to), toScale));
  return AQ_OK;
}

int32_t quantizeTo(aq_queue* queue, const Call& call, int64_t ld, uint8_t* to, float* toScale,
                   aq_error* err) {
  switch (call.x.dtype) {
    case AQ_BF16:
      return quantizeX<__nv_bfloat16>(queue, call, ld, to, toScale, err);
    case AQ_F16:
      return quantizeX<__half>(queue, call, ld, to, toScale, err);
    default:
      return quantizeX<float>(queue, call, ld, to, toScale, err);
  }
}

// Products of codes, exact.
int32_t integerProduct(aq_queue* queue, const Call& all, aq_error* err) {
  const int64_t ld = int64_t(all.w.tiles) * kTileColumns;
  const int64_t most = std::min(all.rows, kCodeRows);
  const uint64_t codeBytes = scratchBytes(uint64_t(most * ld));
  Scratch scratch(queue);
  int32_t code = scratch.allocate(codeBytes + uint64_t(most) * sizeof(float), "int4_matmul", err);
  if (code != AQ_OK) return code;
  float* const scale = scratch.at<float>(codeBytes);
  const int64_t size = all.x.dtype == AQ_F32 ? 4 : 2;
  const auto skip = [](auto& data, int64_t bytes) { data = static_cast<char*>(data) + bytes; };
  for (int64_t first = 0; first < all.rows; first += most) {
    Call call = all;
    call.rows = std::min(most, all.rows - first);
    skip(call.x.data, first * call.w.inputs * size);
    skip(call.result.y, first * call.w.outputs * size);
    skip(call.scale.data, first * int64_t(sizeof(float)));
    skip(call.zero.data, first * int64_t(sizeof(float)));
    code = quantizeTo(queue, call, ld, scratch.at<uint8_t>(), scale, err);
    if (code != AQ_OK) return code;
    const Activations x = {scratch.at<void>(), ld, call.rows, scale,
                           static_cast<const float*>(call.zero.data)};
    code = multiplySmall(queue, Math::kInteger, x, call.w, call.result, err);
    if (code != AQ_OK) return code;
  }
  return AQ_OK;
}

// From the packed weights; `dtype` is bf16 or f16.
int32_t packedProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const bool isBatch = fitsBatch(queue, call.rows, call.w);
  const int64_t run = isBatch ? 64 : 8;  // columns of a copy of x
  const int64_t ld = ceilDiv(call.w.inputs, run) * run;
  Scratch scratch(queue);
  Activations x = {call.x.data, ld, call.rows};
  if (call.x.dtype != dtype || ld != call.w.inputs || !isAligned16(call.x.data)) {
    int32_t code = scratch.allocate(uint64_t(call.rows * ld) * 2, "int4_matmul", err);
    if (code != AQ_OK) return code;
    code = convertTokens(queue, tokensOf(call), dtype, ld, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    x.data = scratch.at<void>();
  }
  const Math math = dtype == AQ_BF16 ? Math::kBf16 : Math::kF16;
  if (isBatch) return multiplyBatch(queue, math, x, call.w, call.result, err);
  return multiplySmall(queue, math, x, call.w, call.result, err);
}

// Slabs of weights as numbers of `dtype`, times x.
int32_t denseProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  if (call.x.dtype == dtype && !call.scale.data)
    return multiplyDense(queue, dtype, call.x.data, call.rows, call.w, nullptr, call.result, err);
  const int64_t size = dtype == AQ_F64 ? 8 : dtype == AQ_F32 ? 4 : 2, inputs = call.w.inputs;
  Scratch scratch(queue);
  int32_t code = scratch.allocate(uint64_t(call.rows * inputs * size), "int4_matmul", err);
  if (code != AQ_OK) return code;
  code = convertTokens(queue, tokensOf(call), dtype, inputs, scratch.at<void>(), err);
  if (code != AQ_OK) return code;
  return multiplyDense(queue, dtype, scratch.at<void>(), call.rows, call.w, nullptr, call.result,
                       err);
}

}  // namespace

int32_t int4_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_int4_matmul_params*>(params);
  const aq_view& x = in[0];
  const int64_t inputs = x.rank ? x.dim[x.rank - 1] : 1;
  if (numel(out[0]) == 0) return AQ_OK;
  const int64_t rows = numel(out[0]) / p.outputs;
  if (inputs > INT32_MAX - kTileColumns || rows > INT32_MAX) {
    return fail(err, AQ_SHAPE, "int4_matmul: %lld rows or %lld inputs of x exceed 2^31 - 1.",
                static_cast<long long>(rows), static_cast<long long>(inputs));
  }
  if (!isAligned16(in[1].data) || !isAligned16(in[2].data) || !isAligned16(in[3].data)) {
    return fail(err, AQ_ARG,
                "int4_matmul: a packed tensor starts off a multiple of 16 bytes; pass what "
                "int4_pack gave, and no part of a larger tensor.");
  }
  // A group over the whole row has more steps than any row.
  const uint32_t groupSteps = p.group ? uint32_t(p.group / kStepColumns) : 1u << 30;
  const int32_t groupShift = std::has_single_bit(groupSteps) ? std::countr_zero(groupSteps) : -1;
  const Call call = {
      .w = {.format = Format::kInt4,
            .codes = static_cast<const uint8_t*>(in[1].data),
            .scale = static_cast<const uint16_t*>(in[2].data),
            .zero = static_cast<const uint8_t*>(in[3].data),
            .bytes = nullptr,
            .outputs = p.outputs,
            .inputs = int32_t(inputs),
            .tileRows = int32_t(in[1].dim[0]),
            .tiles = int32_t(in[1].dim[1]),
            .groups = int32_t(in[2].dim[1]),
            .groupSteps = int32_t(groupSteps),
            .groupShift = groupShift},
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
  const bool fits = call.rows <= kSmallRows || fitsBatch(queue, call.rows, call.w);
  if (dtype == AQ_F32 || !fits) return denseProduct(queue, dtype, call, err);
  return packedProduct(queue, dtype, call, err);
}

}  // namespace aq::cuda
