// rope.h: rotary position embedding in the half-split layout (pairs i and i + D/2 of each head).
// The rotation by the opposite angle is both its inverse and its gradient.

template <class T>
inline void ropeHead(const T* x, const T* c, const T* s, T sign, T* __restrict y, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const T sine = sign * s[i];
    y[i] = x[i] * c[i] - x[i + half] * sine;
    y[i + half] = x[i + half] * c[i] + x[i] * sine;
  }
}

static int32_t rope(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_rope_params*>(params);
  const int64_t half = lastDim(in[1]);
  const int64_t positions = rowCount(in[1]);
  const int64_t cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T sign = o.inverse ? T(-1) : T(1);
    forRows(rowCount(in[0]), cols, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const int64_t position = row % positions * half;
        for (int64_t at = row * cols; at < (row + 1) * cols; at += 2 * half)
          ropeHead(ptr<T>(in[0]) + at, ptr<T>(in[1]) + position, ptr<T>(in[2]) + position, sign,
                   mut<T>(out[0]) + at, half);
      }
    });
    return int32_t(AQ_OK);
  });
}
