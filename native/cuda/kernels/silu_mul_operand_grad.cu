// silu_mul_operand_grad: from what was quantized, through the quantizer and the gate, in one pass.
//
// Math      fake_quant_grad of y = gate sigmoid(gate) up, which is made again, and silu_mul_grad of that.
// Layout    device/map_operand_grad.cuh: a block a row, gate and up in shared memory. Rows of more than
//           14336 numbers, f64 and what 16-byte accesses do not fit go through scratch, op by op.
// Cost      reads 12 B and writes 4 B (bf16) or 8 B a number, where the two ops move 28 B or 32 B and y
//           has to be there.
// Roofline  2048 x 11008, bf16: 361 MB -> 108 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100
//           80GB HBM3, CUDA 13.0, from Node.js: 152 to 158 us, one op after the other 223.
// Versions  v1 (this). Slower: the row that comes next in a block's place brought to L2 ahead (211 us).
// Numerics  codes and what passes are fake_quant_grad's; sums are taken in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/map_operand_grad.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

template <class T>
int32_t throughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const aq_silu_mul_operand_grad_params& o, aq_error* err) {
  const uint64_t bytes = scratchBytes(uint64_t(numel(in[0])) * sizeof(T));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(2 * bytes, "silu_mul_operand_grad", err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>()), gy = viewOf(in[0], scratch.at<T>(bytes));
  if (const int32_t code = silu_mul(queue, in, 2, &y, 1, nullptr, err)) return code;
  if (const int32_t code =
          quantizeRowsGrad(queue, y, in[2], in + 3, in[5], o.bits, o.floor, gy, out[2], err))
    return code;
  const aq_silu_mul_grad_params gate = {o.bf16, 0};
  const aq_view inputs[] = {in[0], in[1], gy};
  return silu_mul_grad(queue, inputs, 3, out, 2, &gate, err);
}

}  // namespace

int32_t silu_mul_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                              int32_t, const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_silu_mul_operand_grad_params*>(params);
  if (isMapOperandGrad<2>(queue, in, in[5], out)) {
    using Gradient = SiluMulGrad<float>;
    constexpr auto kWhat = "silu_mul_operand_grad";
    return o.bf16 ? mapOperandCodesGrad<SiluMul<float>, Gradient, __nv_bfloat16, 2>(queue, kWhat,
                                                                                    in, out, o, err)
                  : mapOperandCodesGrad<SiluMul<float>, Gradient, float, 2>(queue, kWhat, in, out,
                                                                            o, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return throughScratch<T>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
