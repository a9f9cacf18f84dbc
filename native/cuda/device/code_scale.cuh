// code_scale.cuh: from an exact sum of products of codes to the value it stands for.
#pragma once
#include <cstdint>

#include "native/cuda/code_product.h"

namespace aq::cuda {

// What row i of a matrix of codes stands for.
__device__ inline CodeRow codeRowOf(const CodeMatrix& x, int64_t i) {
  return x.rows ? x.rows[i] : CodeRow{x.scales[i], 0, 0, 0};
}

// sum over k of (a_k - za) (b_k - zb) times both scales, where `sum` is that of a_k b_k. Zero
// points are mostly in the codes already (packCodes); what is left over goes through 64 bits,
// because the published rule's zero points reach 10^4.
__device__ inline float scaledSum(int32_t sum, const CodeRow& a, const CodeRow& b, int64_t terms) {
  const float scale = a.scale * b.scale;
  if ((a.zero | b.zero) == 0) return float(sum) * scale;
  const int64_t whole =
      int64_t(sum) - int64_t(a.zero) * b.sum - int64_t(b.zero) * a.sum + terms * a.zero * b.zero;
  return float(whole) * scale;
}

}  // namespace aq::cuda
