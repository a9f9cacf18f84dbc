// row_operand.cuh: rows that are quantized where they are made, before they exist in memory: whole
// numbers with a scale and a zero each, as quant_operand writes them.
#pragma once
#include <cstdint>

#include "native/cuda/device/biased_code.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/group.cuh"
#include "native/cuda/device/plain_operand.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels/row_operand.h"

namespace aq::cuda {

inline constexpr int kRowVector = kVecWidth<float>;
using RowVector = Vec<float, kRowVector>;

// Where the rows of a matrix go.
struct CodeRows {
  ClipLogits<float> clip;
  GridRule<float> rule;
  float* scale;
  float* zero;
  int8_t* codes;
  int64_t columns;
};

// out: scale, zero and codes.
inline CodeRows codeRows(const aq_view& clip, const aq_view* out, RowRule rule, int64_t rows,
                         int64_t columns) {
  return {{static_cast<const float*>(clip.data), rows, true},
          GridRule<float>::of(rule, false),
          static_cast<float*>(out[0].data),
          static_cast<float*>(out[1].data),
          static_cast<int8_t*>(out[2].data),
          columns};
}

// Writes a row whose vectors lane, lane + kLanes, ... are in y; what lies beyond the row is zero, which
// belongs to every grid. Called at most once by a kernel, by all lanes of the row.
template <int kLanes, int kBatch>
__device__ inline void writeRow(const CodeRows& to, const RowVector (&y)[kBatch], int64_t row,
                                int lane) {
  const int vectors = int(to.columns / kRowVector);
  const ClipFactors<float> clip(to.clip, row);
  float low = 0, high = 0;
  ownExtremes<float, kRowVector, kBatch>(y, low, high);
  groupExtremes<kLanes>(low, high);
  low = mulRn(low, clip.low);
  const float s = to.rule.scale(low, mulRn(high, clip.high));
  const float z = to.rule.zeroPoint(low, s);
  const BiasedCode codes(s, z, to.rule.top);
  const auto place = [&](int i) { return lane + i * kLanes < vectors ? lane + i * kLanes : -1; };
  const bool isNone = writeCodes<int8_t, float, kRowVector, kBatch>(to.codes, row * to.columns, y,
                                                                    codes, s, place) ||
                      !isfinite(s);
  const bool anyNone = groupAny<kLanes>(isNone);
  if (lane != 0) return;
  to.scale[row] = anyNone ? nanf("") : s;
  to.zero[row] = z;
}

}  // namespace aq::cuda
