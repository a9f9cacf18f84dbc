// rms_norm_fp4 and layer_norm_fp4: a norm whose result becomes 4-bit floats in the same pass.
//
// Math      the norm's y = (x - mean) rstd w + b, where rms_norm has no mean, and fp4_operand of its rows.
// Layout    device/norm_operand.cuh and fp4_row.cuh: y stays in registers, and the neighbours of a warp that
//           have a group find its scale. Where the global scale comes from y itself, a pass that writes
//           nothing is in front. Rows of up to 16384 numbers, to bf16; longer ones, f64 and what 16-byte
//           accesses do not fit go through scratch, op by op.
// Cost      reads 4 B and writes 2.25 B a number, where the two ops move 14.25 B; with a global scale of its
//           own 10.25 B, where three ops move 18.25 B.
// Roofline  2048 x 4096: 52 MB -> 16 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB HBM3,
//           CUDA 13.0, from Node.js: 26 us, 49 with a global scale of its own; layer_norm 27 and 50.
// Versions  v1 (this).
// Numerics  y, and with it all, has the bits of the two ops.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4_row.cuh"
#include "native/cuda/device/norm_operand.cuh"
#include "native/cuda/kernels/float_rows.h"
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
  return quantizeFloats(queue, y, in[3], o, out + op.saved, err);
}

template <int kFormat, class Params>
int32_t inOnePass(aq_queue* queue, const NormOp& op, const aq_view* in, const aq_view* out,
                  const Params& o, aq_error* err) {
  const int64_t columns = lastDim(in[0]);
  const auto pass = [&](const auto& to) {
    auto n = normRowsOf<std::decay_t<decltype(to)>>(in, out, op.saved, o.eps);
    n.to = to;
    return normInOnePass(queue, n, err);
  };
  return withLargest(queue, op.name, o.own, columns, err, pass, [&](const uint32_t* largest) {
    return pass(FloatRows<kFormat>::of(in[3], largest, out + op.saved, columns));
  });
}

template <class Params>
int32_t run(aq_queue* queue, const NormOp& op, const aq_view* in, const aq_view* out,
            const Params& o, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const aq_view& y = out[op.saved + 3];  // behind global, scale and factor
  if (numel(in[0]) > 0 && o.dtype == AQ_BF16 && isNormRows(in, y)) {
    return o.format == kNvFp4 ? inOnePass<kNvFp4>(queue, op, in, out, o, err)
                              : inOnePass<kMxFp4>(queue, op, in, out, o, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return throughScratch<T>(queue, op, in, out, o, err); });
}

}  // namespace

int32_t rms_norm_fp4(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                     const void* params, aq_error* err) {
  return run(queue, {"rms_norm_fp4", rms_norm, 1}, in, out,
             *static_cast<const aq_rms_norm_fp4_params*>(params), err);
}

int32_t layer_norm_fp4(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                       const void* params, aq_error* err) {
  return run(queue, {"layer_norm_fp4", layer_norm, 2}, in, out,
             *static_cast<const aq_layer_norm_fp4_params*>(params), err);
}

}  // namespace aq::cuda
