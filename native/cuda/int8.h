// int8.h: what the files of int8_matmul share: the packed matrix as kernels see
// it, and the stages of a product. The packed order is defined at int8_pack in
// native/abi/params.h.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/packed.h"
#include "native/cuda/queue.h"

namespace aq::cuda::int8 {

using namespace packed;

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

// Rows of x that float products take in one pass over the weights.
inline constexpr int64_t kSmallRows = 16;

// y = x W^T + bias in passes over the packed weights: the way of few rows of x.
// They are in whole tiles of columns, and codes of x are minus 128.
int32_t multiplySmall(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err);

// Weights of rows [first, first + count) as numbers of `dtype` (f64, f32, bf16,
// f16), row-major with `inputs` columns.
int32_t expand(aq_queue* queue, const Weights& w, int64_t first, int64_t count, int32_t dtype,
               void* to, aq_error* err);

}  // namespace aq::cuda::int8
