// code_product.h: the exact product of two matrices of int8 codes, scaled as it is written.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/quant_pack.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// A matrix of int8 codes with what their rows stand for: `rows`, or `scales` alone for codes that
// have their zero points in them.
struct CodeMatrix {
  const int8_t* codes = nullptr;
  int64_t pitch = 0;
  const CodeRow* rows = nullptr;
  const float* scales = nullptr;
};

// c[i, j] = (sum over k of (a_ik - za_i) (b_jk - zb_j)) sa_i sb_j + bias_j (+ c[i, j]).
struct CodeProduct {
  int64_t m = 0, n = 0, k = 0;  // k: columns that count, at most kMostTerms
  // [m, pitch] and [n, pitch]; where a pitch is a multiple of 16, zeros from k on.
  CodeMatrix a, b;
  void* c = nullptr;            // [m, n] without gaps, f32, or bf16 where isShort
  const float* bias = nullptr;  // [n] or null
  bool accumulate = false;
  bool isShort = false;

  // Sums of products of int8 numbers fit int32 up to here.
  static constexpr int64_t kMostTerms = 131071;
};

// Enqueues the product, on the best of the ways below.
int32_t codeProduct(aq_queue* queue, const CodeProduct& product, aq_error* err);

// By an integer product in scratch and a pass that scales it; on every device.
int32_t codeProductInPasses(aq_queue* queue, const CodeProduct& product, aq_error* err);

// In one kernel (code_product_hopper.cu), where fitsHopper says that it can.
bool fitsHopper(const aq_queue* queue, const CodeProduct& product);
int32_t codeProductHopper(aq_queue* queue, const CodeProduct& product, aq_error* err);

}  // namespace aq::cuda
