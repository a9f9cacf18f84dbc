// int8.h: what the files of int8_matmul share: the packed matrix as kernels see it, and the stages of
// a product. The packed order is defined at int8_pack in native/abi/params.h.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda::int8 {

// A tile: 16 rows (outputs) x 64 columns (inputs), a byte each, row after row.
inline constexpr int kTileRows = 16, kTileColumns = 64, kTileBytes = 1024;

struct Weights {
  const uint8_t* codes;   // [tileRows][tiles][kTileBytes]
  const uint16_t* scale;  // f16 [tileRows][groups][16]
  const uint8_t* zero;    // [tileRows][groups][16]
  int32_t outputs, inputs;
  int32_t tileRows, tiles, groups;
  int32_t group;  // columns; of one group for a row: as many as the tiles have
};

// Activations [rows, ld] in whole tiles of columns, zero beyond `inputs`; 16-byte aligned rows.
struct Activations {
  const void* data;
  int64_t ld;
  int64_t rows;
  // Of integer products, whose data are code - 128: the grid of every row.
  const float* scale = nullptr;
  const float* zero = nullptr;
};

// y [rows, outputs] and bias [outputs] or null, both of `dtype`.
struct Result {
  void* y;
  const void* bias;
  int32_t dtype;
};

// How activations are multiplied: as they are in bf16 or f16, or as codes of a grid.
enum class Math { kBf16, kF16, kInteger };

// Rows of x that float products take in one pass over the weights.
inline constexpr int64_t kSmallRows = 16;

// y = x W^T + bias in passes over the packed weights: the way of few rows of x.
int32_t multiplySmall(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err);

// Weights of rows [first, first + count) as numbers of `dtype` (f64, f32, bf16, f16), row-major with
// `inputs` columns.
int32_t expand(aq_queue* queue, const Weights& w, int64_t first, int64_t count, int32_t dtype,
               void* to, aq_error* err);

}  // namespace aq::cuda::int8
