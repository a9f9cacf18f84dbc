// quant_pack.h: operands of fake_quant_gemm made ready for the tensor cores in one pass each: as
// int8 codes for the exact integer product, or quantized or expanded, and rounded to the type of
// the product.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// A matrix as it is stored, with its grid along the stored rows if it has one: what is quantized is
// the matrix times the factors of its rows, then of its columns. Grid, offsets and factors are f64
// for an f64 matrix, else f32. A matrix of I8 has no grid but a scale of each row, and stands for
// its numbers times that.
struct QuantOperand {
  const void* data = nullptr;
  int32_t dtype = AQ_F32;  // AQ_F64, AQ_F32, AQ_BF16, AQ_F16 or AQ_I8
  int64_t rows = 0, cols = 0;
  const void* scale = nullptr;      // [rows, ceil(cols / group)], [rows] for I8; null: no grid
  const void* zero = nullptr;       // like scale; null: no grid
  const void* offset = nullptr;     // [rows, cols], learned rounding offsets; null: none
  const void* rowFactor = nullptr;  // [rows]; null: none
  const void* colFactor = nullptr;  // [cols]; null: none
  int32_t bits = 0;
  int64_t group = 0;  // 1 .. cols

  bool isWhole() const { return dtype == AQ_I8; }
  bool hasGrid() const { return zero != nullptr; }
  bool hasFactors() const { return rowFactor || colFactor; }
  bool hasRowGrid() const { return hasGrid() && group >= cols; }
};

// What an int8 code of a row stands for: (code - zero) scale. `sum` is of the row's codes.
struct alignas(16) CodeRow {
  float scale;
  int32_t zero, sum, pad;
};

// A matrix of codes, [rows][pitch] with zeros beyond the operand's columns.
struct Codes {
  int8_t* data;
  CodeRow* rows;
};

struct CodeJob {
  QuantOperand x;
  Codes out;
};

// Codes of matrices (not f64 or I8), two at most, with the same number of columns and one grid of
// at most 8 bits a row; pitch is a multiple of 16. A row that holds a NaN gets the scale NaN, as
// its products would. What can run in one launch does; where only one has offsets or factors, that
// is the first then.
int32_t packCodes(aq_queue* queue, const CodeJob* jobs, int count, int64_t pitch, aq_error* err);

// An operand that becomes numbers of the product's type: quantized where it has a grid, times its
// scales where it is of I8, and rounded to `to` (f64 for an f64 matrix or f64 scales, else f32,
// bf16 or f16), [rows][pitch]; the padding is not written.
struct RoundJob {
  QuantOperand x;
  int32_t to = AQ_F32;
  void* out = nullptr;
  int64_t pitch = 0;
  bool codesOnly = false;  // code - zero instead of (code - zero) scale; I8 without its scales
  // [rows] and [cols]: the result's rows and columns times these; null: none. Not for f64.
  const float* rowScale = nullptr;
  const float* colScale = nullptr;
};

// Two jobs at most; what can run in one launch does.
int32_t roundOperands(aq_queue* queue, const RoundJob* jobs, int count, aq_error* err);

// The jobs without a grid whose matrix is not f64 (quant_expand.cu).
int32_t expandOperand(aq_queue* queue, const RoundJob& job, aq_error* err);

}  // namespace aq::cuda
