// int4_matmul: activations times packed weights of at most 4 bits, y = x^ W^T +
// bias.
//
// Math      W = (code - zero) scale, per group of a row; x^ is x, or its codes'
// values where x has a
//           grid of its own (W4A8, W4A4).
// Layout    here: the choice of the way, and the rewriting of x that it needs.
// Few rows of x, and codes
//           of x: one pass over the packed weights (int4_small.cu), for more
//           than 32 codes' rows again and again. Many rows on Hopper:
//           int4_batch.cu. Many elsewhere: weights are expanded slab by slab,
//           small enough to stay in L2, and multiplied by the dense product
//           (packed_dense.cu). f64, and f32 at precision f32: always the dense
//           way, in that type.
// Cost      few rows: O I / 2 bytes, bandwidth-bound. Many: 2 M O I flop, bound
// by the matrix units. Roofline  8192 x 8192, groups of 128: 10.5 us for the
// bytes at 3.35 TB/s; 2048 rows: 278 us for the
//           flop at 989 TFLOP/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  few rows: int4_small.cu. Many: weights are rounded once to the type
// of the product.
#include <bit>

#include "native/cuda/check.h"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int4.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using namespace int4;

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One call: the views of the op under names.
struct Call {
  Weights w;
  Result result;
  Tokens tokens;
};

// From the packed weights; `dtype` is bf16 or f16.
int32_t packedProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const Tokens& tokens = call.tokens;
  const bool isBatch = fitsBatch(queue, tokens.rows, call.w);
  const int64_t run = isBatch ? 64 : 8;  // columns of a copy of x
  const int64_t ld = ceilDiv(tokens.inputs, run) * run;
  Scratch scratch(queue);
  Activations x = {tokens.x.data, ld, tokens.rows};
  if (tokens.x.dtype != dtype || ld != tokens.inputs || !isAligned16(tokens.x.data)) {
    int32_t code = scratch.allocate(uint64_t(tokens.rows * ld) * 2, "int4_matmul", err);
    if (code != AQ_OK) return code;
    code = convertTokens(queue, tokens, dtype, ld, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    x.data = scratch.at<void>();
  }
  const Math math = dtype == AQ_BF16 ? Math::kBf16 : Math::kF16;
  if (isBatch) return multiplyBatch(queue, math, x, call.w, call.result, err);
  return multiplySmall(queue, math, x, call.w, call.result, err);
}

// Products of codes, exact.
int32_t integerProduct(aq_queue* queue, const Call& call, aq_error* err) {
  const int64_t ld = int64_t(call.w.tiles) * kTileColumns;
  return multiplyAsCodes(
      queue, CodeOrder::kInt4, call.tokens, ld, call.w.outputs, call.result,
      [&](const Activations& x, const Result& y) {
        return multiplySmall(queue, Math::kInteger, x, call.w, y, err);
      },
      err);
}

// Slabs of weights as numbers of `dtype`, times x.
int32_t denseProduct(aq_queue* queue, int32_t dtype, const Call& call, aq_error* err) {
  const auto expandSlab = [&](int64_t first, int64_t count, void* to) {
    return expand(queue, call.w, first, count, dtype, to, err);
  };
  const DenseWeights w = {call.w.outputs, call.w.inputs, false, expandSlab};
  return multiplyDense(queue, dtype, call.tokens, w, call.result, err);
}

}  // namespace

int32_t int4_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_int4_matmul_params*>(params);
  const aq_view& x = in[0];
  if (numel(out[0]) == 0) return AQ_OK;
  const Tokens tokens = {x, in[5], in[6], numel(out[0]) / p.outputs, lastDim(x), p.x_bits};
  const int32_t code = checkPacked("int4_matmul", tokens, {&in[1], &in[2], &in[3]}, err);
  if (code != AQ_OK) return code;
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
            .inputs = int32_t(tokens.inputs),
            .tileRows = int32_t(in[1].dim[0]),
            .tiles = int32_t(in[1].dim[1]),
            .groups = int32_t(in[2].dim[1]),
            .groupSteps = int32_t(groupSteps),
            .groupShift = groupShift},
      .result = {.y = out[0].data, .bias = in[4].data, .dtype = p.wide ? int32_t(AQ_F32) : x.dtype},
      .tokens = tokens,
  };
  if (x.dtype == AQ_F64) return denseProduct(queue, AQ_F64, call, err);
  if (tokens.scale.data) return integerProduct(queue, call, err);
  const int32_t dtype = productType(queue, x.dtype);
  const bool fits = tokens.rows <= kSmallRows || fitsBatch(queue, tokens.rows, call.w);
  if (dtype == AQ_F32 || !fits) return denseProduct(queue, dtype, call, err);
  return packedProduct(queue, dtype, call, err);
}

}  // namespace aq::cuda
