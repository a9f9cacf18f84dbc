// kernel_util.h: small helpers that every CPU kernel uses: views, errors, the shape of a matrix,
// rounding half to even. Nothing here depends on the SIMD level.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "native/abi/backend.h"

namespace aq::cpu {

template <class T>
inline const T* ptr(const aq_view& v) {
  return static_cast<const T*>(v.data);
}
template <class T>
inline T* mut(const aq_view& v) {
  return static_cast<T*>(v.data);
}

inline int64_t numel(const aq_view& v) {
  int64_t n = 1;
  for (int i = 0; i < v.rank; i++) n *= v.dim[i];
  return v.data || v.rank ? n : 0;
}
inline bool present(const aq_view& v) { return v.data != nullptr; }
inline int64_t lastDim(const aq_view& v) { return v.rank ? v.dim[v.rank - 1] : 1; }
// Rows of a view read as a matrix [M, K] with K = lastDim.
inline int64_t rowCount(const aq_view& v) {
  int64_t n = 1;
  for (int i = 0; i + 1 < v.rank; i++) n *= v.dim[i];
  return n;
}
inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t groupSize(int32_t group, int64_t k) { return group > 0 ? group : (k > 0 ? k : 1); }

__attribute__((format(printf, 3, 4))) inline int32_t fail(aq_error* err, int32_t code,
                                                          const char* format, ...) {
  err->code = code;
  va_list args;
  va_start(args, format);
  vsnprintf(err->text, sizeof err->text, format, args);
  va_end(args);
  return code;
}

// Half to even, exact for |x| < 2^22 (f32) / 2^51 (f64), and monotone beyond: callers clamp. Two
// additions, which compilers vectorize at every level, unlike nearbyint. Needs -ffp-contract=off
// and no -ffast-math.
inline float roundEven(float x) { return (x + 12582912.0f) - 12582912.0f; }
inline double roundEven(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

// Rows that one task of a row-wise kernel takes: large enough to amortize the hand-out (about
// 16k elements), and independent of the number of threads.
inline int64_t rowsPerTask(int64_t rowLength) {
  const int64_t rows = 16384 / (rowLength > 0 ? rowLength : 1);
  return rows < 1 ? 1 : rows;
}

}  // namespace aq::cpu
