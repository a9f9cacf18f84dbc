// rms_norm_fp4_grad and layer_norm_fp4_grad: from 4-bit floats, through their quantizer and the norm, in one
// pass.
//
// Math      fp4_grad of y = (x - mean) rstd w + b, which is made again, where rms_norm has no mean; and the
//           norm's gradient of that.
// Layout    device/norm_operand_grad.cuh and fp4_row.cuh. Rows of up to 8192 numbers; longer ones, f64 and
//           what 16-byte accesses do not fit go through scratch, op by op.
// Cost      reads 8.25 B and writes 4 B a number, where the two ops move 24.25 B and y has to be there.
// Roofline  2048 x 4096: 103 MB -> 31 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB HBM3,
//           CUDA 13.0, from Node.js: 61 to 63 us; layer_norm 65.
// Versions  v1 (this).
// Numerics  what passes is fp4_grad's; sums are taken in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4_row.cuh"
#include "native/cuda/device/norm_operand_grad.cuh"
#include "native/cuda/kernels/float_rows.h"
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
  if (const int32_t code =
          quantizeFloatsGrad(queue, y, in[3], in + 4 + op.saved, o.format, gy, err))
    return code;
  return throughNorm(queue, in, op.saved, gy, y, o.need_gx, out, err);
}

template <int kFormat, class Params>
int32_t inOnePass(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out,
                  const Params& o, aq_error* err) {
  const aq_view* const scale = in + 4 + op.saved;  // the gradient behind it
  using Quantizer = FloatQuantizer<kFormat>;
  auto call = normGradOf<Quantizer>(op.name, in, op.saved, scale[1], o.need_gx, out);
  call.quantizer = Quantizer::of(in[3], *scale);
  return normGradInOnePass(queue, call, err);
}

template <class Params>
int32_t run(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out, const Params& o,
            aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  if (isNormGradRows(queue, in, in[5 + op.saved], out)) {
    return o.format == kNvFp4 ? inOnePass<kNvFp4>(queue, op, in, out, o, err)
                              : inOnePass<kMxFp4>(queue, op, in, out, o, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return throughScratch<T>(queue, op, in, out, o, err); });
}

}  // namespace

int32_t rms_norm_fp4_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  return run(queue, {"rms_norm_fp4_grad", 1}, in, out,
             *static_cast<const aq_rms_norm_fp4_grad_params*>(params), err);
}

int32_t layer_norm_fp4_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                            int32_t, const void* params, aq_error* err) {
  return run(queue, {"layer_norm_fp4_grad", 2}, in, out,
             *static_cast<const aq_layer_norm_fp4_grad_params*>(params), err);
}

}  // namespace aq::cuda
