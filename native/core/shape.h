// shape.h: element types and dimensions. A tensor is always contiguous and row-major, so a shape is
// only its sizes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "native/abi/backend.h"

namespace aq {

using Shape = std::vector<int64_t>;

int64_t dtypeBytes(int32_t dtype);
const char* dtypeName(int32_t dtype);
bool isFloat(int32_t dtype);    // any floating type
bool isCompute(int32_t dtype);  // f32 or f64: what the arithmetic ops take

// Number of elements. Raises AQ_SHAPE for a negative size, too many dimensions or overflow.
int64_t numel(const Shape& shape);

// "[2, 2048, 4096]"
std::string toString(const Shape& shape);

// All dimensions but the last multiplied; 1 for a vector.
int64_t rowCount(const Shape& shape);
inline int64_t lastDim(const Shape& shape) { return shape.empty() ? 1 : shape.back(); }

}  // namespace aq
