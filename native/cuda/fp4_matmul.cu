// fp4_matmul: activations times packed weights of 4-bit floats, y = factor x^
// W^T + bias.
//
// Math      W = q s with e2m1 elements q and a scale s for 16 (NVFP4) or 32
// columns (MXFP4); x^ is x, or
//           x quantized like it with a global scale of its own.
// Layout    here: the choice of the way, and the rewriting of x that it needs.
// Few rows of x: one pass
//           over the packed weights (fp4_small.cu). Many on Hopper:
//           fp4_batch.cu. Many elsewhere, f64, and f32 at precision f32: the
//           dense way (packed_dense.cu). Quantized x is written as q s, by a
//           lane for four columns; a quarter or an eighth of a warp has a
//           group.
// Cost      few rows: O I / 2 bytes and O I / 16 (32) of scales,
// bandwidth-bound. Many: 2 M O I flop,
//           bound by the matrix units.
// Versions  v1 (this).
// Numerics  q s of weights and of x is exact in bf16, in NVFP4 also in f16;
// MXFP4's products are of bf16
//           where they would be of f16. Sums are of f32, times the factors
//           once. The dense way in f64 and f32: the factor is in the weights
//           and 1 / g in x, each rounded once.
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/fp4_decode.cuh"
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
constexpr int kLaneColumns = 4;
constexpr int64_t kFewBlocks = 4;

// y = q s of x, rows ld apart and zero beyond the columns; over g where
// kDivides.
template <int kFormat, class T, class X, class Y, bool kDivides>
__global__ __launch_bounds__(kMaxThreads) void quantizeTokens(const X* x, int64_t quads,
                                                              int64_t inputs, int64_t ld,
                                                              const T* xGlobal, Y* y) {
  waitForKernelBefore();
  // The product's blocks should not find many multiprocessors half taken: some
  // would share one.
  if (gridDim.x <= kFewBlocks) letNextKernelStart();
  const int64_t quad = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = quad * kLaneColumns / ld, column = quad * kLaneColumns % ld;
  const bool live = quad < quads && column < inputs;  // the same for all lanes of a group
  T v[kLaneColumns] = {};
  T largest = 0;
#pragma unroll
  for (int i = 0; i < kLaneColumns; i++) {
    if (live) v[i] = T(x[row * inputs + column + i]);
    largest = maxOrNaN(largest, fabs(v[i]));
  }
#pragma unroll
  for (int mask = kFp4Group<kFormat> / kLaneColumns / 2; mask > 0; mask /= 2)
    largest = maxOrNaN(largest, __shfl_xor_sync(~0u, largest, mask));
  if (quad >= quads) return;
  const T g = kFormat == aq::cuda::kNvFp4 ? fp4Global(xGlobal) : T(1);
  const T s = Fp4Scale<T, kFormat>(T(1), largest, g).rounded();
  const T inverse = fp4Inverse(g, s);
#pragma unroll
  for (int i = 0; i < kLaneColumns; i++) {
    const T u = mulRn(v[i], inverse);
    const T q = roundE2m1(atMost(atLeast(u, -kFp4Most<T>), kFp4Most<T>));
    const T value = q * s;
    y[row * ld + column + i] = Y(live ? kDivides ? value / g : value : T(0));
  }
}

// One call: the views of the op under names.
struct Call {
  Weights w;
  Result result;
  Tokens tokens;
  bool quantizes;
  const void *factor, *xGlobal;
};

template <int kFormat, class T, class X, class Y, bool kDivides>
int32_t quantize(aq_queue* queue, const Call& call, int64_t ld, void* to, aq_error* err) {
  // Groups do not reach from one row into the next: ld is a multiple of 4
  // columns, and of a group where rows have one behind the other.
  const int64_t quads = call.tokens.rows * ld / kLaneColumns;
  if (quads == 0) return AQ_OK;
  const int threads = quads <= kFewBlocks * kMaxThreads ? kMaxThreads : kThreads;
  const EarlyLaunch shape(queue, dim3(unsigned((quads + threads - 1) / threads)), threads);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, quantizeTokens<kFormat, T, X, Y, kDivides>,
                                static_cast<const X*>(call.tokens.x.data), quads,
                                call.tokens.inputs, ld, static_cast<const T*>(call.xGlobal),
                                static_cast<Y*>(to)));
  return AQ_OK;
}

template <int kFormat>
int32_t quantizeTo(aq_queue* queue, const Call& call, int32_t dtype, int64_t ld, void* to,
                   aq_error* err) {
  using Bf = __nv_bfloat16;
  switch (call.tokens.x.dtype) {
    case AQ_F64:
      return quantize<kFormat, double, double, double, true>(queue, call, ld, to, err);
    case AQ_BF16:
      return quantize<kFormat, float, Bf, Bf, false>(queue, call, ld, to, err);
    case AQ_F16:
      if (dtype == AQ_BF16)
        return quantize<kFormat, float, __half, Bf, false>(queue, call, ld, to, err);
      return quantize<kFormat, float, __half, __half, false>(queue, call, ld, to, err);
    default:
      if (dtype == AQ_BF16)
        return quantize<kFormat, float, float, Bf, false>(queue, call, ld, to, err);
      if (dtype == AQ_F16)
        return quantize<kFormat, float, float, __half, false>(queue, call, ld, to, err);
      return quantize<kFormat, float, float, float, true>(queue, call, ld, to, err);
  }
}

// x, quantized or not, in the type of the product.
int32_t writeX(aq_queue* queue, const Call& call, int32_t dtype, int64_t ld, void* to,
               aq_error* err) {
  if (!call.quantizes) return convertTokens(queue, call.tokens, dtype, ld, to, err);
  if (call.w.format == Format::kMxFp4)
    return quantizeTo<aq::cuda::kMxFp4>(queue, call, dtype, ld, to, err);
  return quantizeTo<aq::cuda::kNvFp4>(queue, call, dtype, ld, to, err);
}

bool isReady(const Call& call, int32_t dtype) {
  return !call.quantizes && call.tokens.x.dtype == dtype;
}

// What the operands of weights lack.
float unitOf(Format format, int32_t dtype) {
  if (format == Format::kMxFp4) return FloatScale<Format::kMxFp4, __nv_bfloat16>::kUnit;
  if (dtype == AQ_F16) return FloatScale<Format::kNvFp4, __half>::kUnit;
  return FloatScale<Format::kNvFp4, __nv_bfloat16>::kUnit;
}

// From the packed weights; `dtype` is bf16 or f16.
int32_t packedProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const int64_t rows = call.tokens.rows, inputs = call.tokens.inputs;
  const bool isBatch = fitsBatch(queue, rows, call.w);
  const int64_t run = isBatch ? 64 : 16;  // columns of a copy of x
  const int64_t ld = (inputs + run - 1) / run * run;
  Scratch scratch(queue);
  Activations x = {call.tokens.x.data, ld, rows};
  if (!isReady(call, dtype) || ld != inputs || !isAligned16(call.tokens.x.data)) {
    int32_t code = scratch.allocate(uint64_t(rows * ld) * 2, "fp4_matmul", err);
    if (code != AQ_OK) return code;
    code = writeX(queue, call, dtype, ld, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    x.data = scratch.at<void>();
  }
  Result result = call.result;
  result.unit = unitOf(call.w.format, dtype);
  const Math math = dtype == AQ_BF16 ? Math::kBf16 : Math::kF16;
  if (isBatch) return multiplyBatch(queue, math, x, call.w, result, err);
  return multiplySmall(queue, math, x, call.w, result, err);
}

int32_t denseProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const Tokens& tokens = call.tokens;
  const bool isExact = dtype == AQ_F64 || dtype == AQ_F32;
  const auto expandSlab = [&](int64_t first, int64_t count, void* to) {
    return expandFloats(queue, call.w, isExact ? call.factor : nullptr, first, count, dtype, to,
                        err);
  };
  const DenseWeights w = {call.w.outputs, call.w.inputs, true, expandSlab};
  if (!call.quantizes) return multiplyDense(queue, dtype, tokens, w, call.result, err);
  const int64_t size = dtype == AQ_F64 ? 8 : dtype == AQ_F32 ? 4 : 2;
  Scratch scratch(queue);
  int32_t code = scratch.allocate(uint64_t(tokens.rows * w.inputs * size), "fp4_matmul", err);
  if (code != AQ_OK) return code;
  code = writeX(queue, call, dtype, w.inputs, scratch.at<void>(), err);
  if (code != AQ_OK) return code;
  return multiplyDense(queue, dtype, scratch.at<void>(), tokens.rows, w, call.result, err);
}

}  // namespace

int32_t fp4_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_fp4_matmul_params*>(params);
  const aq_view& x = in[0];
  if (numel(out[0]) == 0) return AQ_OK;
  const Tokens tokens = {x, {}, {}, numel(out[0]) / p.outputs, lastDim(x), 4};
  const int32_t code = checkPacked("fp4_matmul", tokens, {&in[1], &in[2]}, err);
  if (code != AQ_OK) return code;
  const bool isMx = p.format == aq::cuda::kMxFp4, isF64 = x.dtype == AQ_F64;
  const bool quantizes = p.tokens != 0;
  const void* const xGlobal = quantizes && !isMx ? in[5].data : nullptr;
  const Call call = {
      .w = {.format = isMx ? Format::kMxFp4 : Format::kNvFp4,
            .codes = static_cast<const uint8_t*>(in[1].data),
            .scale = nullptr,
            .zero = nullptr,
            .bytes = static_cast<const uint8_t*>(in[2].data),
            .outputs = p.outputs,
            .inputs = int32_t(tokens.inputs),
            .tileRows = int32_t(in[1].dim[0]),
            .tiles = int32_t(in[1].dim[1]),
            .groups = int32_t(in[2].dim[1]),
            .groupSteps = 1,
            .groupShift = 0},
      .result = {.y = out[0].data,
                 .bias = in[4].data,
                 .dtype = x.dtype,
                 .factor = isF64 ? nullptr : static_cast<const float*>(in[3].data),
                 .xGlobal = isF64 ? nullptr : static_cast<const float*>(xGlobal)},
      .tokens = tokens,
      .quantizes = quantizes,
      .factor = in[3].data,
      .xGlobal = xGlobal,
  };
  int32_t dtype = productType(queue, x.dtype);
  if (dtype == AQ_F16 && isMx) dtype = AQ_BF16;
  const bool fits = tokens.rows <= kSmallRows || fitsBatch(queue, tokens.rows, call.w);
  if (dtype == AQ_F64 || dtype == AQ_F32 || !fits) return denseProduct(queue, dtype, call, err);
  return packedProduct(queue, dtype, call, err);
}

}  // namespace aq::cuda
