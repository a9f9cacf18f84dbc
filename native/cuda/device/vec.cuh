// vec.cuh: N neighbouring elements moved by one instruction, and the check that this is allowed.
#pragma once
#include <cstdint>

namespace aq::cuda {

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T lane[N];
};

// Elements of T in the widest access of a thread, 16 bytes.
template <class T>
inline constexpr int kVecWidth = 16 / sizeof(T);

template <class T, int N>
__device__ inline Vec<T, N> loadVec(const T* data, int64_t index) {
  return reinterpret_cast<const Vec<T, N>*>(data)[index];
}

template <class T, int N>
__device__ inline void storeVec(T* data, int64_t index, const Vec<T, N>& value) {
  reinterpret_cast<Vec<T, N>*>(data)[index] = value;
}

inline bool isAligned16(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace aq::cuda
