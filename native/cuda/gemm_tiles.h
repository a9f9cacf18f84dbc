// gemm_tiles.h: products on our own kernels, for every dtype, size and alignment: what runs where
// cuBLASLt is missing or refuses.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/gemm.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Enqueues the product, whose operands are of `dtype` as they stand (`precision` is not looked at).
// m, n and batch are positive; k may be 0.
int32_t tileProduct(aq_queue* queue, const Gemm& product, aq_error* err);

}  // namespace aq::cuda
