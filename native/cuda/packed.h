// packed.h: what the ops on packed weights share, int4_matmul, int8_matmul and
// fp4_matmul: activations and results as kernels see them, the rewriting of
// activations, and the dense way.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda::packed {

// Activations [rows, ld], zero beyond the columns; 16-byte aligned rows.
struct Activations {
  const void* data;
  int64_t ld;
  int64_t rows;
  // Of integer products: the grid of every row, f32.
  const float* scale = nullptr;
  const float* zero = nullptr;
};

// y [rows, outputs] and bias [outputs] or null, both of `dtype`.
struct Result {
  void* y;
  const void* bias;
  int32_t dtype;
  // Of 4-bit floats: sums are times unit, *factor and, where it is finite, 1 /
  // *xGlobal. Absent: 1.
  float unit = 1;
  const float* factor = nullptr;
  const float* xGlobal = nullptr;
};

// How activations are multiplied: as they are in bf16 or f16, or as codes of a
// grid.
enum class Math { kBf16, kF16, kInteger };

// x [rows, inputs] as an op was given it, with the grid of each row where it
// has one.
struct Tokens {
  aq_view x, scale, zero;
  int64_t rows, inputs;
  int32_t bits;
};

// Reports sizes beyond 2^31 - 1, and packed tensors that do not start at a
// multiple of 16 bytes.
int32_t checkPacked(const char* op, const Tokens& tokens,
                    std::initializer_list<const aq_view*> packed, aq_error* err);

// The type of a product: that of x, or of f32 what the queue's precision makes
// of it.
int32_t productType(const aq_queue* queue, int32_t dtype);

// x, or the values of its codes, as numbers of `dtype`; rows are ld apart and
// zero beyond the columns.
int32_t convertTokens(aq_queue* queue, const Tokens& tokens, int32_t dtype, int64_t ld, void* to,
                      aq_error* err);

// How bytes of codes of x lie: in int4_pack's order of a run of 32 columns, or
// as they are minus 128.
enum class CodeOrder { kInt4, kInt8 };

// Where codes of x and y of as many rows are multiplied.
using MultiplyCodes = std::function<int32_t(const Activations&, const Result&)>;

// y of x as codes on its grid, rows ld apart and zeros beyond the columns, so
// many rows at a time as scratch is to hold. A row with a NaN has the scale
// NaN, as its products would.
int32_t multiplyAsCodes(aq_queue* queue, CodeOrder order, const Tokens& tokens, int64_t ld,
                        int64_t outputs, const Result& y, const MultiplyCodes& multiply,
                        aq_error* err);

// A matrix [outputs, inputs] that `expand` writes rows of, `count` from `first`
// on, as numbers of the product's type. scalesSums: sums are times the result's
// factors.
struct DenseWeights {
  int64_t outputs, inputs;
  bool scalesSums;
  std::function<int32_t(int64_t first, int64_t count, void* to)> expand;
};

// Expands weights slab by slab, small enough to stay in L2, and multiplies them
// by the dense product (gemm.h). x [rows, inputs] is of `dtype`.
int32_t multiplyDense(aq_queue* queue, int32_t dtype, const void* x, int64_t rows,
                      const DenseWeights& w, const Result& y, aq_error* err);

// The same of tokens, converted first where they have to be.
int32_t multiplyDense(aq_queue* queue, int32_t dtype, const Tokens& tokens, const DenseWeights& w,
                      const Result& y, aq_error* err);

}  // namespace aq::cuda::packed
