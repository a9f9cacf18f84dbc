// fp4_rule.h: what is checked of matrices in 4-bit floats, by every op that makes or reads them.
#pragma once
#include "native/core/op.h"

namespace aq {

inline constexpr int32_t kMxfp4 = 1;  // the other format is 0, NVFP4

// Columns that share a scale.
inline int64_t fp4GroupOf(const Infer& in, int32_t format) {
  in.range("format", format, 0, 1);
  return format == kMxfp4 ? 32 : 16;
}

// Groups of a row of input x.
inline int64_t groupsOf(const Infer& in, int x, int32_t format) {
  const int64_t group = fp4GroupOf(in, format), columns = in.cols(x);
  if (columns % group != 0) {
    in.fail(AQ_SHAPE,
            "the last dimension of %s must be a multiple of %lld, the group of %s, got %s",
            in.name(x), static_cast<long long>(group), format == kMxfp4 ? "MXFP4" : "NVFP4",
            toString(in.shape(x)).c_str());
  }
  return columns / group;
}

inline void checkGlobal(const Infer& in, int g, int32_t format) {
  if (!in.has(g)) return;
  if (format == kMxfp4) in.fail(AQ_ARG, "MXFP4 has no global scale: leave %s out", in.name(g));
  in.elements(g, 1, "the matrix's global scale");
}

}  // namespace aq
