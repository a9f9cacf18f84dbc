// row_operand.h: what the ops that quantize rows where they make them have in common beside their
// kernels: the quantizer's parameters, and its ops on a matrix in scratch, for shapes without a kernel.
#pragma once
#include "native/abi/backend.h"
#include "native/abi/params.h"
#include "native/cuda/kernels.h"
#include "native/cuda/passes.h"

namespace aq::cuda {

// The view with other memory, and in the type of that.
template <class T>
aq_view viewOf(aq_view like, T* data) {
  like.dtype = sizeof(T) == 8 ? AQ_F64 : AQ_F32;
  like.data = data;
  return like;
}

// quant_operand of the rows of y, which the call's last kernel made: scale, zero and codes to `out`.
inline int32_t quantizeRows(aq_queue* queue, const aq_view& y, const aq_view& clip, int32_t bits,
                            double floor, const aq_view* out, aq_error* err) {
  const aq_quant_operand_params params = {floor, bits, 0, 0, 0, AQ_I8, 0};
  const aq_view in[] = {y, clip, {}, {}, {}};
  queue->passes->end();  // passes know of calls alone, and this one has kernels in front
  return quant_operand(queue, in, 5, out, 3, &params, err);
}

// fake_quant_grad of the rows of y, whose grid is grid[0] and grid[1]: from g, the gradient of what was
// quantized, to gy and gclip.
inline int32_t quantizeRowsGrad(aq_queue* queue, const aq_view& y, const aq_view& clip,
                                const aq_view* grid, const aq_view& g, int32_t bits, double floor,
                                const aq_view& gy, const aq_view& gclip, aq_error* err) {
  const aq_fake_quant_grad_params params = {floor, bits, 0, 0, 1, 0, 0};
  const aq_view in[] = {y, grid[0], grid[1], g, clip, {}, {}, {}};
  const aq_view out[] = {gy, gclip, {}, {}, {}};
  queue->passes->end();  // as above; and kernels follow
  const int32_t code = fake_quant_grad(queue, in, 8, out, 5, &params, err);
  queue->passes->end();
  return code;
}

// The parameters of the grid of rows, for GridRule::of.
struct RowRule {
  double floor;
  int32_t bits, symmetric = 0, rule = 0;
};

}  // namespace aq::cuda
