// mixed_epilogue.cuh: what follows the sums of a tile of mixed_product: writing.
#pragma once
#include <cstdint>

#include "native/cuda/device/vec.cuh"
#include "native/cuda/mixed_product.h"

namespace aq::cuda {

// Writes the sums of a tile of kRows rows, two neighbouring columns at a time, R: what c holds.
// What is added to is read in groups, so that few loads are waited for. Exchanging with other
// threads for wider stores makes it slower.
template <class R, bool kAccumulate, int kRows>
__device__ inline void writeTile(const float (&sum)[128], const MixedProduct& p, int64_t row,
                                 int64_t col) {
  if (col >= p.n) return;
  R* const c = static_cast<R*>(p.c) + row * p.n + col;
  const int rows = int(p.m - row < kRows ? p.m - row : kRows);
  constexpr int kGroup = 8;
#pragma unroll
  for (int first = 0; first < kRows / 4; first += kGroup) {
    Vec<R, 2> before[kGroup];
    if constexpr (kAccumulate) {
#pragma unroll
      for (int i = first; i < first + kGroup; i++) {
        const int down = i / 2 * 8 + i % 2;
        if (down < rows) before[i - first] = loadVec<R, 2>(c + down * p.n, 0);
      }
    }
#pragma unroll
    for (int i = first; i < first + kGroup; i++) {
      const int down = i / 2 * 8 + i % 2;
      Vec<R, 2> out;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float value = sum[i / 2 * 4 + e * 2 + i % 2];
        if constexpr (kAccumulate) value += float(before[i - first].lane[e]);
        out.lane[e] = R(value);
      }
      if (down < rows) storeVec(c + down * p.n, 0, out);
    }
  }
}

}  // namespace aq::cuda
