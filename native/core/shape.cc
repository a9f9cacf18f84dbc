#include "native/core/shape.h"

#include "native/core/error.h"

namespace aq {

namespace {
struct DtypeInfo {
  const char* name;
  int64_t bytes;
};
constexpr DtypeInfo kDtypes[AQ_DTYPE_COUNT] = {
    {"f64", 8}, {"f32", 4}, {"bf16", 2}, {"f16", 2}, {"i32", 4}, {"i8", 1}, {"u8", 1},
};
constexpr int64_t kMaxElements = int64_t(1) << 48;
}  // namespace

int64_t dtypeBytes(int32_t dtype) {
  if (dtype < 0 || dtype >= AQ_DTYPE_COUNT) raise(AQ_DTYPE, "unknown dtype %d", dtype);
  return kDtypes[dtype].bytes;
}

const char* dtypeName(int32_t dtype) {
  return dtype < 0 || dtype >= AQ_DTYPE_COUNT ? "unknown" : kDtypes[dtype].name;
}

bool isFloat(int32_t dtype) { return dtype >= AQ_F64 && dtype <= AQ_F16; }
bool isCompute(int32_t dtype) { return dtype == AQ_F64 || dtype == AQ_F32; }

int64_t numel(const Shape& shape) {
  if (shape.size() > AQ_MAX_RANK) {
    raise(AQ_SHAPE, "shape %s has %zu dimensions; at most %d are supported",
          toString(shape).c_str(), shape.size(), AQ_MAX_RANK);
  }
  int64_t n = 1;
  for (int64_t d : shape) {
    if (d < 0) raise(AQ_SHAPE, "shape %s has a negative size", toString(shape).c_str());
    if (d != 0 && n > kMaxElements / d) {
      raise(AQ_SHAPE, "shape %s has too many elements", toString(shape).c_str());
    }
    n *= d;
  }
  return n;
}

std::string toString(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) {
    if (i) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

int64_t rowCount(const Shape& shape) {
  int64_t n = 1;
  for (size_t i = 0; i + 1 < shape.size(); i++) n *= shape[i];
  return n;
}

}  // namespace aq
