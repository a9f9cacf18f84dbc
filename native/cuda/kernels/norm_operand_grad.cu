// rms_norm_operand_grad and layer_norm_operand_grad: from what was quantized, through the quantizer and
// the norm, in one pass.
//
// Math      fake_quant_grad of y = (x - mean) rstd w + b, which is made again, where rms_norm has no
//           mean; and the norm's gradient of that.
// Layout    device/norm_operand_grad.cuh: the quantizer's gradient is taken of a row's g while it is in
//           registers. Rows of up to 8192 numbers; longer ones, f64 and what 16-byte accesses do not fit go
//           through scratch, op by op.
// Cost      reads 8 B and writes 4 B a number, where the two ops move 24 B and y has to be there.
// Roofline  2048 x 4096: 100 MB -> 30 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, CUDA 13.0, from Node.js: 62 us, one op after the other 89; layer_norm 62 and 90.
// Versions  v2 (this) has three barriers a row (v1: five, 66 us), two sums in one, and the logit's sum
//           in the last block. v1 with the next row on its way in registers, which spilled: 79 us.
// Numerics  codes and what passes are fake_quant_grad's; sums are taken in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_operand_grad.cuh"
#include "native/cuda/device/row_operand_grad.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// An op, and how many numbers the norm stored of every row: rstd, or mean and rstd.
struct Op {
  const char* name;
  int saved;
};

template <class T, class Params>
int32_t throughScratch(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out,
                       const Params& o, aq_error* err) {
  const uint64_t bytes = scratchBytes(uint64_t(numel(in[0])) * sizeof(T));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(2 * bytes, op.name, err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>()), gy = viewOf(in[0], scratch.at<T>(bytes));
  if (const int32_t code = makeNormAgain(queue, in, op.saved, scratch.at<T>(), err)) return code;
  const aq_view* const grid = in + 4 + op.saved;  // scale, zero and g behind it
  if (const int32_t code =
          quantizeRowsGrad(queue, y, in[3], grid, grid[2], o.bits, o.floor, gy, out[3], err))
    return code;
  return throughNorm(queue, in, op.saved, gy, y, o.need_gx, out, err);
}

template <class Params>
int32_t run(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out, const Params& o,
            aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const aq_view* const grid = in + 4 + op.saved;  // scale, zero and g behind it
  if (isNormGradRows(queue, in, grid[2], out)) {
    auto call = normGradOf<RowQuantizer>(op.name, in, op.saved, grid[2], o.need_gx, out);
    call.quantizer.clip = {static_cast<const float*>(in[3].data), call.norm.rows, true};
    call.quantizer.rule = GridRule<float>::of(RowRule{o.floor, o.bits}, false);
    call.quantizer.scale = static_cast<const float*>(grid[0].data);
    call.quantizer.zero = static_cast<const float*>(grid[1].data);
    call.quantizer.clipGrad = in[3].data ? static_cast<float*>(out[3].data) : nullptr;
    call.quantizer.ticket = queue->ticket;
    call.quantizer.rows = call.norm.rows;
    return normGradInOnePass(queue, call, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return throughScratch<T>(queue, op, in, out, o, err); });
}

}  // namespace

int32_t rms_norm_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                              int32_t, const void* params, aq_error* err) {
  return run(queue, {"rms_norm_operand_grad", 1}, in, out,
             *static_cast<const aq_rms_norm_operand_grad_params*>(params), err);
}

int32_t layer_norm_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                                int32_t, const void* params, aq_error* err) {
  return run(queue, {"layer_norm_operand_grad", 2}, in, out,
             *static_cast<const aq_layer_norm_operand_grad_params*>(params), err);
}

}  // namespace aq::cuda
