// launch.h: sizes of views and grids for the elementwise kernels.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/abi/backend.h"

namespace aq::cuda {

inline int64_t numel(const aq_view& v) {
  int64_t n = 1;
  for (int32_t i = 0; i < v.rank; i++) n *= v.dim[i];
  return n;
}

// Elements of a row: the last dimension, 1 for a scalar.
inline int64_t lastDim(const aq_view& v) { return v.rank > 0 ? v.dim[v.rank - 1] : 1; }

// Threads of an elementwise block, and blocks of a grid-stride loop: enough to fill the largest
// GPU several times over (so that a block's end is not waited for), and few enough that the
// launch itself costs nothing.
inline constexpr int kElementThreads = 256;
inline unsigned elementBlocks(int64_t items) {
  constexpr int64_t kMost = 8192;
  return unsigned(std::clamp<int64_t>((items + kElementThreads - 1) / kElementThreads, 1, kMost));
}

}  // namespace aq::cuda
