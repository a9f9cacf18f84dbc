// silu_mul_operand: silu_mul with the quantizer of its result in the same pass.
//
// Math      y = gate sigmoid(gate) up, and quant_operand's scale, zero and code - zero of its rows.
// Layout    device/map_operand.cuh: a block a row. Rows of more than 32768 numbers, f64 and what 16-byte
//           accesses do not fit go through scratch, op by op.
// Cost      reads 8 B and writes 1 B a number, where the two ops move 17 B.
// Roofline  2048 x 11008: 203 MB -> 61 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, CUDA 13.0, from Node.js: 75.5 us, one op after the other 131.
// Versions  v1 (this).
// Numerics  y has the bits of silu_mul, and so has all that follows from it.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/map_operand.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

template <class T>
int32_t throughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                       const aq_silu_mul_operand_params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, "silu_mul_operand", err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>());
  if (const int32_t code = silu_mul(queue, in, 2, &y, 1, nullptr, err)) return code;
  return quantizeRows(queue, y, in[2], o.bits, o.floor, out, err);
}

}  // namespace

int32_t silu_mul_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_silu_mul_operand_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  if (isMapOperand(in, 2, out[2]))
    return mapOperandCodes<SiluMul<float>, 2>(queue, "silu_mul_operand", in, out, o, err);
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return throughScratch<T>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
