// kernels.h: the kernels of the CUDA backend, all of the ABI's kernel type, by the op's name.
#pragma once
#include "native/abi/backend.h"

namespace aq::cuda {

#define AQ_CUDA_KERNEL(name)                                                         \
  int32_t name(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, \
               int32_t n_out, const void* params, aq_error* err)

AQ_CUDA_KERNEL(fill);         // kernels/elementwise.cu
AQ_CUDA_KERNEL(cast);         // kernels/elementwise.cu
AQ_CUDA_KERNEL(adam);         // kernels/adam.cu
AQ_CUDA_KERNEL(masked_adam);  // masked_adam.cu

#undef AQ_CUDA_KERNEL

}  // namespace aq::cuda
