// rms_norm_operand and layer_norm_operand: a norm with the quantizer of its result in the same pass.
//
// Math      the norm's y = (x - mean) rstd w + b, where rms_norm has no mean, and quant_operand's scale,
//           zero and code - zero of its rows.
// Layout    device/norm_operand.cuh: y stays in registers until the row's extremes are known, so that only
//           codes are written. Rows of up to 16384 numbers; longer ones, f64 and what 16-byte accesses do
//           not fit go through scratch, op by op.
// Cost      reads 4 B and writes 1 B a number, where the two ops move 13 B.
// Roofline  2048 x 4096: 42 MB -> 12.5 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, CUDA 13.0, from Node.js: 24.5 us, one op after the other 41.5; layer_norm 26.1, 41.0.
// Versions  v1 (this). No quicker: five blocks on a multiprocessor. Slower: rows brought to L2 ahead.
// Numerics  the sums are taken as in norm.cu, so that y, and with it all, has the same bits.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_operand.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

template <class T, class Params>
int32_t throughScratch(aq_queue* queue, const NormOp& op, const aq_view* in, const aq_view* out,
                       const Params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (const int32_t code = scratch.allocate(bytes, op.name, err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>());
  if (const int32_t code = normAlone(queue, op, in, y, out, o.eps, err)) return code;
  return quantizeRows(queue, y, in[3], o.bits, o.floor, out + op.saved, err);
}

template <class Params>
int32_t run(aq_queue* queue, const NormOp& op, const aq_view* in, const aq_view* out,
            const Params& o, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  if (numel(in[0]) == 0) return AQ_OK;
  const aq_view* const codes = out + op.saved;  // scale, zero, y
  if (isNormRows(in, codes[2])) {
    auto n = normRowsOf<CodeRows>(in, out, op.saved, o.eps);
    n.to = codeRows(in[3], codes, {o.floor, o.bits}, n.rows, lastDim(in[0]));
    return normInOnePass(queue, n, err);
  }
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    return throughScratch<T>(queue, op, in, out, o, err);
  });
}

}  // namespace

int32_t rms_norm_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  return run(queue, {"rms_norm_operand", rms_norm, 1}, in, out,
             *static_cast<const aq_rms_norm_operand_params*>(params), err);
}

int32_t layer_norm_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  return run(queue, {"layer_norm_operand", layer_norm, 2}, in, out,
             *static_cast<const aq_layer_norm_operand_params*>(params), err);
}

}  // namespace aq::cuda
