// tensor_map.h: descriptions of matrices for Hopper's bulk tensor copies.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "native/abi/backend.h"

namespace aq::cuda {

// What is copied in boxes, of at most three dimensions, the first of neighbours; zeros outside.
struct MappedView {
  CUtensorMapDataType type;
  cuuint32_t rank;
  const void* data;
  cuuint64_t sizes[3], strides[2];  // strides in bytes, of the second and third dimension
  cuuint32_t box[3];
  CUtensorMapSwizzle swizzle;
};

int32_t encodeMap(CUtensorMap* map, const MappedView& view, aq_error* err);

// A matrix of bytes with rows of `cols` bytes, `pitch` (a multiple of 16) apart, copied in boxes of
// 128 bytes x boxRows rows in the 128-byte swizzle; zeros outside the matrix.
int32_t byteMatrixMap(CUtensorMap* map, const void* data, int64_t rows, int64_t cols, int64_t pitch,
                      int32_t boxRows, aq_error* err);

}  // namespace aq::cuda
