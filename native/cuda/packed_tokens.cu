// packed_tokens: what ops on packed weights do with their activations before a
// product: looking at sizes, and writing x, or the values or codes of its grid,
// in the product's type.
//
// Cost      a read of x and a write: bandwidth-bound, and for few rows a
// launch.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/packed.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/packed.h"
#include "native/cuda/scratch.h"

namespace aq::cuda::packed {

namespace {

constexpr int kThreads = 256, kMaxThreads = 1024;
constexpr int64_t kCodeRows = 65536;  // of x as codes at a time

// y = x on its grid, if it has one, in another type and with rows ld apart.
template <class X, class Y, class S>
__global__ __launch_bounds__(kElementThreads) void convertRows(const X* x, int64_t rows,
                                                               int64_t inputs, int64_t ld,
                                                               const S* scale, const S* zero, S top,
                                                               Y* y) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; i < rows * ld;
       i += stride) {
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
  convertRows<X, Y, S><<<elementBlocks(tokens.rows * ld), kElementThreads, 0, queue->stream>>>(
      static_cast<const X*>(tokens.x.data), tokens.rows, tokens.inputs, ld,
      static_cast<const S*>(tokens.scale.data), static_cast<const S*>(tokens.zero.data), top,
      static_cast<Y*>(to));
  LAUNCH_CHECK("a packed product (activations)");
  return AQ_OK;
}

// Codes of x, rows ld apart, zeros beyond the columns; a block a row. In
// int4_pack's order bytes 8 t + 4 j + i of a run of 32 columns hold column 16 j
// + 2 t + (0, 8, 1, 9)[i].
template <class X, CodeOrder kOrder>
__global__ __launch_bounds__(kMaxThreads) void quantizeRows(const X* x, int64_t inputs, int64_t ld,
                                                            const float* scale, const float* zero,
                                                            float top, uchar4* y, float* yScale) {
  waitForKernelBefore();
  // The product's blocks should not find many multiprocessors half taken: some
  // would share one.
  if (gridDim.x <= 4) letNextKernelStart();
  constexpr bool kIsInt4 = kOrder == CodeOrder::kInt4;
  const int64_t row = blockIdx.x;
  const float s = scale[row], z = zero[row];
  bool hasNan = false;
  const auto code = [&](int64_t column) -> uint8_t {
    if (column >= inputs) return 0;
    const float value = float(x[row * inputs + column]);
    hasNan |= isnan(value);
    if (isnan(value)) return 0;
    return uint8_t(int32_t(codeOf(value, s, z, top)) - (kIsInt4 ? 0 : 128));
  };
  for (int64_t quad = threadIdx.x; quad < ld / 4; quad += blockDim.x) {
    const int64_t column = kIsInt4 ? quad / 8 * 32 + quad % 2 * 16 + quad % 8 / 2 * 2 : 4 * quad;
    constexpr int kStep[4] = {0, kIsInt4 ? 8 : 1, kIsInt4 ? 1 : 2, kIsInt4 ? 9 : 3};
    y[row * (ld / 4) + quad] = make_uchar4(code(column), code(column + kStep[1]),
                                           code(column + kStep[2]), code(column + kStep[3]));
  }
  hasNan = __syncthreads_or(hasNan);
  if (threadIdx.x == 0) yScale[row] = hasNan ? NAN : s;
}

template <class X>
int32_t quantize(aq_queue* queue, CodeOrder order, const Tokens& tokens, int64_t first,
                 int64_t rows, int64_t ld, void* to, float* toScale, aq_error* err) {
  // Few rows: more threads for each.
  const int threads = rows >= queue->multiprocessors ? kThreads : kMaxThreads;
  const EarlyLaunch shape(queue, dim3(unsigned(rows)), threads);
  const auto kernel = order == CodeOrder::kInt4 ? quantizeRows<X, CodeOrder::kInt4>
                                                : quantizeRows<X, CodeOrder::kInt8>;
  CUDA_CHECK(cudaLaunchKernelEx(
      &shape.config, kernel, static_cast<const X*>(tokens.x.data) + first * tokens.inputs,
      tokens.inputs, ld, static_cast<const float*>(tokens.scale.data) + first,
      static_cast<const float*>(tokens.zero.data) + first, float((1 << tokens.bits) - 1),
      static_cast<uchar4*>(to), toScale));
  return AQ_OK;
}

}  // namespace

int32_t checkPacked(const char* op, const Tokens& tokens,
                    std::initializer_list<const aq_view*> packed, aq_error* err) {
  constexpr int64_t kTile = 128;  // columns, at the most
  if (tokens.inputs > INT32_MAX - kTile || tokens.rows > INT32_MAX) {
    return fail(err, AQ_SHAPE, "%s: %lld rows or %lld inputs of x exceed 2^31 - 1.", op,
                static_cast<long long>(tokens.rows), static_cast<long long>(tokens.inputs));
  }
  for (const aq_view* view : packed) {
    if (isAligned16(view->data)) continue;
    return fail(err, AQ_ARG,
                "%s: a packed tensor starts off a multiple of 16 bytes; pass "
                "what the packing op "
                "gave, and no part of a larger tensor.",
                op);
  }
  return AQ_OK;
}

int32_t productType(const aq_queue* queue, int32_t dtype) {
  if (dtype != AQ_F32 || queue->precision == Precision::kF32) return dtype;
  return queue->precision == Precision::kBf16 ? AQ_BF16 : AQ_F16;
}

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

int32_t multiplyAsCodes(aq_queue* queue, CodeOrder order, const Tokens& tokens, int64_t ld,
                        int64_t outputs, const Result& y, const MultiplyCodes& multiply,
                        aq_error* err) {
  const int64_t most = std::min(tokens.rows, kCodeRows);
  const uint64_t codeBytes = scratchBytes(uint64_t(most * ld));
  Scratch scratch(queue);
  int32_t code =
      scratch.allocate(codeBytes + uint64_t(most) * sizeof(float), "a packed product", err);
  if (code != AQ_OK) return code;
  float* const scale = scratch.at<float>(codeBytes);
  const int64_t size = y.dtype == AQ_F32 ? 4 : 2;
  const auto quantizeX = tokens.x.dtype == AQ_BF16  ? quantize<__nv_bfloat16>
                         : tokens.x.dtype == AQ_F16 ? quantize<__half>
                                                    : quantize<float>;
  for (int64_t first = 0; first < tokens.rows; first += most) {
    const int64_t rows = std::min(most, tokens.rows - first);
    code = quantizeX(queue, order, tokens, first, rows, ld, scratch.at<void>(), scale, err);
    if (code != AQ_OK) return code;
    const Activations x = {scratch.at<void>(), ld, rows, scale,
                           static_cast<const float*>(tokens.zero.data) + first};
    Result part = y;
    part.y = static_cast<char*>(y.y) + first * outputs * size;
    code = multiply(x, part);
    if (code != AQ_OK) return code;
  }
  return AQ_OK;
}

}  // namespace aq::cuda::packed
