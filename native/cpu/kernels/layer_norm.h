// layer_norm.h: y = (x - mean) rstd w + b per row, with rstd = 1 / sqrt(mean (x - mean)^2 + eps),
// and its gradient. With n = (x - mean) rstd and u = g w:
//   gx = rstd (u - mean u - n mean(u n)),  gw = sum over rows of g n,  gb = sum over rows of g.
//
// The variance is taken around the mean in a second pass: E[x^2] - mean^2 would cancel where a
// channel's mean is far from zero, and rows stay in the first cache between the passes.

template <class T>
inline T centeredSquares(const T* x, T mean, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += (x[i + j] - mean) * (x[i + j] - mean);
  for (int j = 0; i < n; i++, j++) lane[j] += (x[i] - mean) * (x[i] - mean);
  return sumOf(lane, L);
}

template <class T>
inline void layerNormRow(const T* x, const T* w, const T* b, T mean, T rstd, T* __restrict y,
                         int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
}

static int32_t layer_norm(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error*) {
  const double eps = static_cast<const aq_layer_norm_params*>(params)->eps;
  const int64_t cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forRows(rowCount(in[0]), cols, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const T* x = ptr<T>(in[0]) + row * cols;
        const T mean = sumOf(x, cols) / T(cols);
        const T rstd = T(1) / std::sqrt(centeredSquares(x, mean, cols) / T(cols) + T(eps));
        mut<T>(out[1])[row] = mean;
        mut<T>(out[2])[row] = rstd;
        layerNormRow(x, ptr<T>(in[1]), ptr<T>(in[2]), mean, rstd, mut<T>(out[0]) + row * cols,
                     cols);
      }
    });
    return int32_t(AQ_OK);
  });
}

// Sum of u (x - mean).
template <class T>
inline T centeredDot(const T* x, T mean, const T* w, const T* g, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += g[i + j] * w[i + j] * (x[i + j] - mean);
  for (int j = 0; i < n; i++, j++) lane[j] += g[i] * w[i] * (x[i] - mean);
  return sumOf(lane, L);
}

// `level` and `slope` are the means of u and of u n.
template <class T>
inline void layerNormGradRow(const T* x, const T* w, const T* g, T mean, T rstd, T level, T slope,
                             T* __restrict gx, T* __restrict gw, T* __restrict gb, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const T normal = (x[i] - mean) * rstd;
    gx[i] = rstd * (g[i] * w[i] - level - normal * slope);
    gw[i] += g[i] * normal;
    gb[i] += g[i];
  }
}

static int32_t layer_norm_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                               const void*, aq_error* err) {
  const int64_t cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* w = ptr<T>(in[1]);
    // gw and gb are summed together, as the two halves of a row twice as long.
    const Partials<T> sums(2 * cols);
    if (!sums.data()) return noPartials(err, "layer_norm_grad", 2 * cols * int64_t(sizeof(T)));
    const auto body = [&](int64_t first, int64_t end, T* partial) {
      for (int64_t row = first; row < end; row++) {
        const T* x = ptr<T>(in[0]) + row * cols;
        const T* g = ptr<T>(in[4]) + row * cols;
        const T mean = ptr<T>(in[2])[row], rstd = ptr<T>(in[3])[row];
        const T level = dotOf(g, w, cols) / T(cols);
        const T slope = rstd * centeredDot(x, mean, w, g, cols) / T(cols);
        layerNormGradRow(x, w, g, mean, rstd, level, slope, mut<T>(out[0]) + row * cols, partial,
                         partial + cols, cols);
      }
    };
    const int64_t rows = rowCount(in[0]);
    if (const int32_t code = sumColumns("layer_norm_grad", rows, 2 * cols, sums.data(), err, body))
      return code;
    std::memcpy(mut<T>(out[1]), sums.data(), size_t(cols) * sizeof(T));
    std::memcpy(mut<T>(out[2]), sums.data() + cols, size_t(cols) * sizeof(T));
    return int32_t(AQ_OK);
  });
}
