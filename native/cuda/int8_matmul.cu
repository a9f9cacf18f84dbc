// int8_matmul: activations times packed weights of at most 8 bits, y = x^ W^T +
// bias.
//
// Math      W = (code - zero) scale, per group of a row; x^ is x, or its codes'
// values where x has a
//           grid of its own (W8A8).
// Layout    here: the choice of the way, and the rewriting of x that it needs.
// Few rows of x, and codes of
//           x: passes over the packed weights (int8_small.cu). Many: weights
//           are expanded slab by slab, small enough to stay in L2, and
//           multiplied by the dense product (packed_dense.cu). f64, and f32 at
//           precision f32 without a grid: always so, in that type.
// Cost      few rows: O I bytes, bandwidth-bound. Many: 2 M O I flop, bound by
// the matrix units. Roofline  8192 x 8192: 20 us for the bytes at 3.35 TB/s;
// 2048 rows: 278 us for the flop at 989
//           TFLOP/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  few rows: int8_small.cu. Many: weights are rounded once to the type
// of the product.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/int8.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

using namespace int8;

// One call: the views of the op under names.
struct Call {
  Weights w;
  Result result;
  Tokens tokens;
};

// From the packed weights; `dtype` is bf16 or f16.
int32_t packedProduct(aq_queue* queue, int32_t dtype, const Call& call, int64_t ld, aq_error* err) {
  const Tokens& tokens = call.tokens;
  Scratch scratch(queue);
  Activations x = {tokens.x.data, ld, tokens.rows};
  if (tokens.x.dtype != dtype || ld != tokens.inputs || !isAligned16(tokens.x.data)) {
    int32_t code = scratch.allocate(uint64_t(tokens.rows * ld) * 2, "int8_matmul", err);
    if (code != AQ_OK) return code;
    code = convertTokens(queue, tokens, dtype, ld, scratch.at<void>(), err);
    if (code != AQ_OK) return code;
    x.data = scratch.at<void>();
  }
  const Math math = dtype == AQ_BF16 ? Math::kBf16 : Math::kF16;
  return multiplySmall(queue, math, x, call.w, call.result, err);
}

}  // namespace

int32_t int8_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_int8_matmul_params*>(params);
  const aq_view& x = in[0];
  if (numel(out[0]) == 0) return AQ_OK;
  const Tokens tokens = {x, in[5], in[6], numel(out[0]) / p.outputs, lastDim(x), p.x_bits};
  const int32_t code = checkPacked("int8_matmul", tokens, {&in[1]}, err);
  if (code != AQ_OK) return code;
  const int32_t tiles = int32_t(in[1].dim[1]);
  const Call call = {
      .w = {.codes = static_cast<const uint8_t*>(in[1].data),
            .scale = static_cast<const uint16_t*>(in[2].data),
            .zero = static_cast<const uint8_t*>(in[3].data),
            .outputs = p.outputs,
            .inputs = int32_t(tokens.inputs),
            .tileRows = int32_t(in[1].dim[0]),
            .tiles = tiles,
            .groups = int32_t(in[2].dim[1]),
            .group = p.group ? p.group : std::max(tiles, 1) * kTileColumns},
      .result = {.y = out[0].data, .bias = in[4].data, .dtype = x.dtype},
      .tokens = tokens,
  };
  const int64_t ld = int64_t(tiles) * kTileColumns;
  const int32_t dtype = productType(queue, x.dtype);
  if (x.dtype != AQ_F64 && tokens.scale.data) {
    const auto multiply = [&](const Activations& codes, const Result& y) {
      return multiplySmall(queue, Math::kInteger, codes, call.w, y, err);
    };
    return multiplyAsCodes(queue, CodeOrder::kInt8, tokens, ld, p.outputs, call.result, multiply,
                           err);
  }
  if (dtype != AQ_F64 && dtype != AQ_F32 && tokens.rows <= kSmallRows)
    return packedProduct(queue, dtype, call, ld, err);
  const auto expandSlab = [&](int64_t first, int64_t count, void* to) {
    return expand(queue, call.w, first, count, dtype, to, err);
  };
  const DenseWeights dense = {p.outputs, tokens.inputs, false, expandSlab};
  return multiplyDense(queue, dtype, tokens, dense, call.result, err);
}

}  // namespace aq::cuda
