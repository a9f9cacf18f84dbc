// cublaslt.h: products on NVIDIA's cuBLASLt, which is opened at run time and never linked: the
// addon loads where it is missing, and then our own tiles compute (gemm_tiles.h).
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/gemm.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Enqueues the product, whose operands are of `dtype` as they stand (`precision` is not looked at).
// *done is false, and nothing was enqueued, where the library is missing, failed its self-check for
// this dtype or has no algorithm for this product.
int32_t blasProduct(aq_queue* queue, const Gemm& product, bool* done, aq_error* err);

}  // namespace aq::cuda
