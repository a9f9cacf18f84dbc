// rms_norm.h: y = x rstd w + b with rstd = 1 / sqrt(mean x^2 + eps) per row, and its gradient
//   gx = rstd (g w - x rstd^2 mean(g w x)),  gw = sum over rows of g x rstd,  gb = that of g.

template <class T>
inline void normalizeRow(const T* x, const T* w, const T* b, T rstd, T* __restrict y, int64_t n) {
  if (b) {
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * rstd * w[i] + b[i];
  } else {
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * rstd * w[i];
  }
}

static int32_t rms_norm(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error*) {
  const double eps = static_cast<const aq_rms_norm_params*>(params)->eps;
  const int64_t cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forRows(rowCount(in[0]), cols, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const T* x = ptr<T>(in[0]) + row * cols;
        const T rstd = T(1) / std::sqrt(dotOf(x, x, cols) / T(cols) + T(eps));
        mut<T>(out[1])[row] = rstd;
        normalizeRow(x, ptr<T>(in[1]), ptr<T>(in[2]), rstd, mut<T>(out[0]) + row * cols, cols);
      }
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline T tripleDot(const T* x, const T* w, const T* g, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += g[i + j] * w[i + j] * x[i + j];
  for (int j = 0; i < n; i++, j++) lane[j] += g[i] * w[i] * x[i];
  return sumOf(lane, L);
}

// gx may be null.
template <class T>
inline void normGradRow(const T* x, const T* w, const T* g, T rstd, T pull, T* __restrict gx,
                        T* __restrict gw, int64_t n) {
  if (gx) {
    for (int64_t i = 0; i < n; i++) gx[i] = rstd * (g[i] * w[i] - x[i] * pull);
  }
  for (int64_t i = 0; i < n; i++) gw[i] += g[i] * x[i] * rstd;
}

static int32_t rms_norm_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                             const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_rms_norm_grad_params*>(params);
  const int64_t rows = rowCount(in[0]), cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* w = ptr<T>(in[1]);
    T* const gx = o.need_gx ? mut<T>(out[0]) : nullptr;
    const auto body = [&](int64_t first, int64_t end, T* gw) {
      for (int64_t row = first; row < end; row++) {
        const T* x = ptr<T>(in[0]) + row * cols;
        const T* g = ptr<T>(in[3]) + row * cols;
        const T rstd = ptr<T>(in[2])[row];
        const T pull = rstd * rstd * (tripleDot(x, w, g, cols) / T(cols));
        normGradRow(x, w, g, rstd, pull, gx ? gx + row * cols : nullptr, gw, cols);
      }
    };
    const int32_t code = sumColumns("rms_norm_grad", rows, cols, mut<T>(out[1]), err, body);
    if (code != AQ_OK || !o.need_gb) return code;
    const auto sumRows = [&](int64_t first, int64_t end, T* gb) {
      for (int64_t row = first; row < end; row++) {
        const T* g = ptr<T>(in[3]) + row * cols;
        for (int64_t i = 0; i < cols; i++) gb[i] += g[i];
      }
    };
    return sumColumns("rms_norm_grad", rows, cols, mut<T>(out[2]), err, sumRows);
  });
}
