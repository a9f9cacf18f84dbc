// silu_mul_fp4, silu_mul_fp4_grad: silu_mul whose result becomes 4-bit floats in the same pass, and the way
// back through both.
//
// Math      y = gate sigmoid(gate) up and fp4_operand of its rows; fp4_grad of y, which is made again, and
//           silu_mul_grad of that.
// Layout    device/map_operand.cuh, map_operand_grad.cuh and fp4_row.cuh: a block a row. Rows of more than
//           32768 numbers (gradient: 14336), short ones of a gradient, f64, and what 16-byte accesses do
//           not fit go through scratch, op by op.
// Cost      forward reads 8 B and writes 2.25 B a number, where the two ops move 18.25 B; with a global scale
//           of its own 18.25 B, where three move 22.25 B; the gradient reads 12.25 B and writes 4 B (bf16) or 8 B, where the two ops move 28 B or 32 B and y has to be there.
// Roofline  2048 x 11008 at 3.35 TB/s (H100 SXM data sheet): 231 MB -> 69 us; 456 MB -> 136 us.
//           Measured on an H100 80GB HBM3, CUDA 13.0, from Node.js: 82 us (154 with a global scale of its own);
//           gradient 190 us.
// Versions  v1 (this).
// Numerics  forward has the bits of the two ops; sums of the gradient are taken in an order that is fixed.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4_row.cuh"
#include "native/cuda/device/map_operand.cuh"
#include "native/cuda/device/map_operand_grad.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/kernels/float_rows.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr const char* kForward = "silu_mul_fp4";
constexpr const char* kBackward = "silu_mul_fp4_grad";

template <class T>
int32_t throughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const aq_silu_mul_fp4_params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, kForward, err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>());
  if (const int32_t code = silu_mul(queue, in, 2, &y, 1, nullptr, err)) return code;
  return quantizeFloats(queue, y, in[2], o, out, err);
}

template <int kFormat>
int32_t inOnePass(aq_queue* queue, const aq_view* in, const aq_view* out, bool isOwn,
                  aq_error* err) {
  const int64_t columns = lastDim(in[0]);
  const auto pass = [&](const auto& to) {
    return mapOperand<SiluMul<float>, 2>(queue, kForward, in, to, err);
  };
  return withLargest(queue, kForward, isOwn, columns, err, pass, [&](const uint32_t* largest) {
    return pass(FloatRows<kFormat>::of(in[2], largest, out, columns));
  });
}

template <class T>
int32_t gradThroughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                           const aq_silu_mul_fp4_grad_params& o, aq_error* err) {
  const uint64_t bytes = scratchBytes(uint64_t(numel(in[0])) * sizeof(T));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(2 * bytes, kBackward, err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>()), gy = viewOf(in[0], scratch.at<T>(bytes));
  if (const int32_t code = silu_mul(queue, in, 2, &y, 1, nullptr, err)) return code;
  if (const int32_t code = quantizeFloatsGrad(queue, y, in[2], in + 3, o.format, gy, err))
    return code;
  const aq_silu_mul_grad_params gate = {o.bf16, 0};
  const aq_view inputs[] = {in[0], in[1], gy};
  return silu_mul_grad(queue, inputs, 3, out, 2, &gate, err);
}

template <int kFormat>
int32_t gradInOnePass(aq_queue* queue, const aq_view* in, const aq_view* out, bool isShort,
                      aq_error* err) {
  const auto quantizer = FloatQuantizer<kFormat>::of(in[2], in[3]);
  using F = SiluMul<float>;
  using Gradient = SiluMulGrad<float>;
  return isShort ? mapOperandGrad<F, Gradient, __nv_bfloat16, 2>(queue, kBackward, in, in[4], out,
                                                                 quantizer, err)
                 : mapOperandGrad<F, Gradient, float, 2>(queue, kBackward, in, in[4], out,
                                                         quantizer, err);
}

}  // namespace

int32_t silu_mul_fp4(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                     const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_silu_mul_fp4_params*>(params);
  if (numel(in[0]) > 0 && o.dtype == AQ_BF16 && isMapOperand(in, 2, out[3])) {
    return o.format == kNvFp4 ? inOnePass<kNvFp4>(queue, in, out, o.own, err)
                              : inOnePass<kMxFp4>(queue, in, out, false, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return throughScratch<T>(queue, in, out, o, err); });
}

int32_t silu_mul_fp4_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_silu_mul_fp4_grad_params*>(params);
  if (isMapOperandGrad<2>(queue, in, in[4], out)) {
    return o.format == kNvFp4 ? gradInOnePass<kNvFp4>(queue, in, out, o.bf16, err)
                              : gradInOnePass<kMxFp4>(queue, in, out, o.bf16, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return gradThroughScratch<T>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
