// float_rows.h: fp4_operand and fp4_grad of a matrix in scratch, for the ops that make 4-bit floats of rows
// where a shape has no kernel.
#pragma once
#include "native/abi/backend.h"
#include "native/abi/params.h"
#include "native/cuda/kernels.h"
#include "native/cuda/passes.h"

namespace aq::cuda {

// fp4_operand of the rows of y: global, scale, factor and numbers to `out`.
template <class Params>
int32_t quantizeFloats(aq_queue* queue, const aq_view& y, const aq_view& g, const Params& o,
                       const aq_view* out, aq_error* err) {
  const aq_view& own = out[0];
  int32_t code = AQ_OK;
  if (o.own) {
    const aq_view search[] = {y, {}, {}, {}};
    code = fp4_global(queue, search, 4, out, 1, nullptr, err);
  } else if (g.data) {
    const aq_cast_params params = {g.dtype, 0};
    code = cast(queue, &g, 1, out, 1, &params, err);
  } else {
    const aq_fill_params params = {1};
    code = fill(queue, &own, 1, nullptr, 0, &params, err);
  }
  if (code != AQ_OK) return code;
  const aq_fp4_operand_params params = {o.format, o.dtype};
  const aq_view in[] = {y, o.own ? own : g, {}, {}, {}, {}};
  queue->passes->end();  // passes know of calls alone, and this one has kernels in front
  return fp4_operand(queue, in, 6, out + 1, 3, &params, err);
}

// fp4_grad of the rows of y, whose scales are scale[0]: from scale[1], the gradient of what was quantized, to
// gy.
inline int32_t quantizeFloatsGrad(aq_queue* queue, const aq_view& y, const aq_view& g,
                                  const aq_view* scale, int32_t format, const aq_view& gy,
                                  aq_error* err) {
  const aq_fp4_grad_params params = {format, 1, 0, 0};
  const aq_view in[] = {y, scale[0], g, scale[1], {}, {}, {}, {}};
  const aq_view out[] = {gy, {}, {}, {}, {}};
  queue->passes->end();  // as above; and kernels follow
  const int32_t code = fp4_grad(queue, in, 8, out, 5, &params, err);
  queue->passes->end();
  return code;
}

}  // namespace aq::cuda
