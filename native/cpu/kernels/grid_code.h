// grid_code.h: what a grid does to values, for the quantizers and for operands that are quantized
// while they are packed: code = clamp(round(x/s + v) + z, 0, top), y = (code - z) s.
//
// One definition, so that the fused and the materialized value have the same bits. The rounding
// offset v is learned and often absent, which costs nothing here.

// The code of u = x/s (+ v) before it becomes an integer; NaN stays NaN.
template <class T>
inline T codeOf(T u, T z, T top) {
  const T code = roundEven(u) + z;
  const T atLeast = code < T(0) ? T(0) : code;
  return atLeast > top ? top : atLeast;
}

// A null v counts as zeros.
template <class T>
inline void fakeQuantRange(const T* x, const T* v, T s, T z, T top, T* __restrict y, int64_t n) {
  if (v)
    for (int64_t i = 0; i < n; i++) y[i] = (codeOf(x[i] / s + v[i], z, top) - z) * s;
  else
    for (int64_t i = 0; i < n; i++) y[i] = (codeOf(x[i] / s, z, top) - z) * s;
}

template <class T>
inline void quantizeRange(const T* __restrict x, const T* __restrict v, T s, T z, T top,
                          uint8_t* __restrict codes, int64_t n) {
  if (v)
    for (int64_t i = 0; i < n; i++) codes[i] = uint8_t(int32_t(codeOf(x[i] / s + v[i], z, top)));
  else
    for (int64_t i = 0; i < n; i++) codes[i] = uint8_t(int32_t(codeOf(x[i] / s, z, top)));
}
