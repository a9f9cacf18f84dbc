// relu.h: y = max(x, 0) and its gradient, which is 0 where y is 0.

// NaN stays: a broken activation must not look like a closed gate.
template <class T>
inline void reluRange(const T* x, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = x[i] < T(0) ? T(0) : x[i];
}

static int32_t relu(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
                    aq_error*) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      reluRange(ptr<T>(in[0]) + i, mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline void reluGradRange(const T* y, const T* g, T* __restrict gx, int64_t n) {
  for (int64_t i = 0; i < n; i++) gx[i] = y[i] > T(0) ? g[i] : T(0);
}

static int32_t relu_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void*, aq_error*) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      reluGradRange(ptr<T>(in[0]) + i, ptr<T>(in[1]) + i, mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}
