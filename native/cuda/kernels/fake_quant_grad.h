// fake_quant_grad.h: the parts of fake_quant_grad.
#pragma once
#include "native/abi/backend.h"
#include "native/abi/params.h"

namespace aq::cuda {

// Of a matrix of any type and any groups, times factors in[6] of its rows and in[7] of its columns
// where they are given: writes gclip and gv (out[1], out[2]) and, where they have memory, out[0], the
// gradient of the matrix, which must have no factors then, and gy, of the type of the grid, that of
// the matrix times its factors (kernels/fake_quant_grad.cu).
int32_t groupFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out, void* gy,
                           const aq_fake_quant_grad_params& params, aq_error* err);

// All outputs of a matrix with factors (kernels/scaled_grad.cu).
int32_t scaledFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                            const aq_fake_quant_grad_params& params, aq_error* err);

// Whether one pass over whole rows takes a matrix with factors, and that pass
// (kernels/row_grad.cu).
bool isRowFakeQuantGrad(const aq_view* in, const aq_view* out,
                        const aq_fake_quant_grad_params& params);
int32_t rowFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                         const aq_fake_quant_grad_params& params, aq_error* err);

}  // namespace aq::cuda
