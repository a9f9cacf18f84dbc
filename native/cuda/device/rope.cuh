// rope.cuh: a pair of channels turned by its angle; every kernel that does it gives the same bits.
#pragma once

namespace aq::cuda {

// u = a c - b s, v = b c + a s.
template <class T>
__device__ inline void turnPair(T a, T b, T c, T s, T& u, T& v) {
  u = fma(a, c, -(b * s));
  v = fma(b, c, a * s);
}

}  // namespace aq::cuda
