// bf16_product.h: a dense product of bf16 matrices that leaves room on every multiprocessor for what
// runs beside it (passes.h).
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// c = op(a) op(b) factors[0] factors[1] (+ c) + bias, with f32 sums, rounded once.
struct Bf16Product {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;  // [m, k], or [k, m] where transA
  const void* b = nullptr;  // [k, n], or [n, k] where transB
  int64_t pitchA = 0, pitchB = 0;              // elements from row to row
  const float* factors[2] = {};                // one number each in device memory; null: 1
  const float* bias = nullptr;                 // [n], or null
  void* c = nullptr;                           // [m, n] without gaps, f32, or bf16 where isShort
  bool transA = false, transB = false, accumulate = false, isShort = false;
  bool isBeside = false;                       // the passes in front
};

// Whether this device, these sizes and these addresses are what bf16Product is for.
bool fitsBf16Product(const aq_queue* queue, const Bf16Product& product);
int32_t bf16Product(aq_queue* queue, const Bf16Product& product, aq_error* err);

}  // namespace aq::cuda
