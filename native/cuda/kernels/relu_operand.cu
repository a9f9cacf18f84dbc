// relu_operand, relu_operand_grad: relu with the quantizer of its result in the same pass, and the gradient
// through both.
//
// Math      y = max(x, 0), and quant_operand's scale, zero and code - zero of its rows; back,
//           fake_quant_grad of y, which is made again, and relu_grad of that.
// Layout    device/map_operand.cuh, device/map_operand_grad.cuh: a block a row of up to 32768 numbers, and of
//           16384 back. Longer rows, f64 and what 16-byte accesses do not fit go through scratch, op by op.
// Cost      reads 4 B and writes 1 B a number, where the two ops move 13 B; back reads 8 B and writes 2 B
//           (bf16) or 4 B, where they move 24 B and y has to be there.
// Roofline  2048 x 16384: 168 MB -> 50 us at 3.35 TB/s (H100 SXM data sheet); back, bf16, 336 MB -> 100 us.
//           Measured on an H100 80GB HBM3, from Node.js: 2048 x 16384 104 us, one op after the other 153;
//           2048 x 2048 back 27 us, 50.
// Versions  v1 (this).
// Numerics  y has the bits of relu; the gradient's sums are taken in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/map_operand.cuh"
#include "native/cuda/device/map_operand_grad.cuh"
#include "native/cuda/device/relu.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

template <class T>
int32_t codesThroughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                            const aq_relu_operand_params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, "relu_operand", err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>());
  if (const int32_t code = relu(queue, in, 1, &y, 1, nullptr, err)) return code;
  return quantizeRows(queue, y, in[1], o.bits, o.floor, out, err);
}

template <class T>
int32_t gradThroughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                           const aq_relu_operand_grad_params& o, aq_error* err) {
  const uint64_t bytes = scratchBytes(uint64_t(numel(in[0])) * sizeof(T));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(2 * bytes, "relu_operand_grad", err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>()), gy = viewOf(in[0], scratch.at<T>(bytes));
  if (const int32_t code = relu(queue, in, 1, &y, 1, nullptr, err)) return code;
  if (const int32_t code =
          quantizeRowsGrad(queue, y, in[1], in + 2, in[4], o.bits, o.floor, gy, out[1], err))
    return code;
  const aq_view inputs[] = {y, gy};
  if (!o.bf16) return relu_grad(queue, inputs, 2, out, 1, nullptr, err);
  // In place: an elementwise kernel loads before it stores.
  if (const int32_t code = relu_grad(queue, inputs, 2, &gy, 1, nullptr, err)) return code;
  const aq_cast_params type = {AQ_BF16, 0};
  return cast(queue, &gy, 1, out, 1, &type, err);
}

}  // namespace

int32_t relu_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                     const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_relu_operand_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  if (isMapOperand(in, 1, out[2]))
    return mapOperandCodes<Relu<float>, 1>(queue, "relu_operand", in, out, o, err);
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return codesThroughScratch<T>(queue, in, out, o, err); });
}

int32_t relu_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_relu_operand_grad_params*>(params);
  if (isMapOperandGrad<1>(queue, in, in[4], out)) {
    using Gradient = ReluGrad<float>;
    constexpr auto kWhat = "relu_operand_grad";
    return o.bf16 ? mapOperandCodesGrad<Relu<float>, Gradient, __nv_bfloat16, 1>(queue, kWhat, in,
                                                                                 out, o, err)
                  : mapOperandCodesGrad<Relu<float>, Gradient, float, 1>(queue, kWhat, in, out, o,
                                                                         err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return gradThroughScratch<T>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
