// mixed_product.h: the product of bf16 numbers with whole numbers that have a scale of each row,
// read as int8 and expanded on their way into the tensor cores.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// c[i, j] = sum over k of op(a)[i, k] b[k, j] scales[k] (+ c[i, j]).
struct MixedProduct {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;        // bf16 [m, k], or [k, m] where transA
  int64_t pitchA = 0;             // elements from row to row
  const int8_t* b = nullptr;      // [k, n] without gaps
  const float* scales = nullptr;  // [k]
  void* c = nullptr;              // [m, n] without gaps, f32, or bf16 where isShort
  bool transA = false, accumulate = false, isShort = false;
};

// Whether this device, these sizes and these addresses are what mixedProduct is for.
bool fitsMixed(const aq_queue* queue, const MixedProduct& product);
// Whether it takes less time than making b bf16 and a plain product do; the same every time.
bool isMixedFaster(const aq_queue* queue, const MixedProduct& product);
int32_t mixedProduct(aq_queue* queue, const MixedProduct& product, aq_error* err);

}  // namespace aq::cuda
