// fake_quant_grad.h: the gradient of fake quantization without factors, for fake_quant_grad.
#pragma once
#include "native/abi/backend.h"
#include "native/abi/params.h"

namespace aq::cuda {

// Inputs x, scale, zero, g, clip?, v?; outputs gx, gclip, gv (kernels/fake_quant_grad.cu).
int32_t plainFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                           const aq_fake_quant_grad_params& params, aq_error* err);

// The same with factors in[6] of the rows, in[7] of the columns and their gradients out[3], out[4]
// (kernels/scaled_grad.cu).
int32_t scaledFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                            const aq_fake_quant_grad_params& params, aq_error* err);

}  // namespace aq::cuda
