// grad_product.h: products that are the gradient of a fake-quantized matrix and end in what its
// quantizer makes of it, so that the gradient itself need not lie in memory.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// What device/grid_grad.cuh calls S and Z, and the extremes, of some neighbouring numbers of a row.
struct alignas(16) GradPart {
  float steps, outside, low, minusHigh;
};

// The kinds of matrices that kernels are made for.
enum class GradKind {
  kShort,   // short numbers, and only what their groups add up to
  kOffset,  // short numbers with offsets, whose gradient is written
  kWide,    // f32, and the gradient of the numbers is written
  kAdded,   // the same, with another gradient added to the product
};

// The matrix [rows, cols], its grid and what is wanted of its gradient.
struct MatrixGrad {
  GradKind kind = GradKind::kShort;
  const void* x = nullptr;  // bf16, or f16 where isHalf; f32
  bool isHalf = false;
  const float* v = nullptr;      // kOffset: offsets of its shape
  const float* added = nullptr;  // kAdded: of its shape
  const float* scale = nullptr;  // [rows, perRow]
  const float* zero = nullptr;
  float top = 0;                  // the largest code
  int64_t rows = 0, cols = 0;     // cols a multiple of 16
  int64_t group = 0, perRow = 0;  // columns of a group, which parts do not straddle, and groups
  int32_t partCols = 0;           // columns of a part: 32, 64 or 128
  GradPart* parts = nullptr;      // [rows, ceil(cols / partCols)], or null
  void* gv = nullptr;             // kOffset: bf16 [rows, cols]
  float* gx = nullptr;  // kWide, kAdded: [rows, cols], without what flows through extremes

  bool isWide() const { return kind == GradKind::kWide || kind == GradKind::kAdded; }
};

// gradient[i, j] = sum over k of op(a)[i, k] b[k, j], k < terms: i a row, j a column of the matrix.
struct GradProduct {
  int64_t terms = 0;
  const void* a = nullptr;  // bf16 [rows, terms], or [terms, rows] where transA, without gaps
  bool transA = false;
  const void* b = nullptr;        // [terms, cols]: bf16, or int8 where there are scales
  const float* scales = nullptr;  // [terms]
  MatrixGrad grad;
};

// Whether this device, these sizes and these addresses are what the kernels are for: the one with
// bf16 b, which takes a turned and short matrices, and the one with int8 b.
bool fitsGradProduct(const aq_queue* queue, const GradProduct& product);
bool fitsMixedGradProduct(const aq_queue* queue, const GradProduct& product);

// The products (grad_product_hopper.cu, grad_product_mixed.cu).
int32_t gradProduct(aq_queue* queue, const GradProduct& product, aq_error* err);
int32_t mixedGradProduct(aq_queue* queue, const GradProduct& product, aq_error* err);

}  // namespace aq::cuda
