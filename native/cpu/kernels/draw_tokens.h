// draw_tokens.h: the next token of each sequence, drawn from the softmax of its logits.
//
// A row's weights are added up in f64, runs of a fixed length first: what is drawn depends neither on
// the number of threads nor on the rows beside it.

inline constexpr int64_t kDrawRun = 256;  // weights that are added up together

// Weights e^((x - top) / temperature), 0 for what is no number; returns their sum.
template <class T>
inline double drawWeights(const T* x, T top, T temperature, T* __restrict w, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const T e = expOf((x[i] - top) / temperature);
    w[i] = e > T(0) ? e : T(0);
  }
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += double(w[i]);
  return sum;
}

// The first of the largest, -1 where nothing is larger than minus infinity.
template <class T>
inline int64_t firstOfLargest(const T* x, int64_t n) {
  int64_t best = -1;
  T top = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < n; i++) {
    if (!(x[i] > top)) continue;
    best = i;
    top = x[i];
  }
  return best;
}

template <class T>
inline int32_t drawToken(const T* x, int64_t n, double temperature, double place) {
  const int64_t best = firstOfLargest(x, n);
  if (best < 0 || !(temperature > 0)) return int32_t(best);
  T w[kDrawRun];
  const auto weigh = [&](int64_t first) {
    const int64_t count = n - first < kDrawRun ? n - first : kDrawRun;
    return drawWeights(x + first, x[best], T(temperature), w, count);
  };
  double total = 0;
  for (int64_t first = 0; first < n; first += kDrawRun) total += weigh(first);
  double left = place * total;
  for (int64_t first = 0; first < n; first += kDrawRun) {
    const double sum = weigh(first);
    if (sum <= left) {
      left -= sum;
      continue;
    }
    for (int64_t i = first; i < n && i < first + kDrawRun; i++) {
      left -= double(w[i - first]);
      if (left < 0) return int32_t(i);
    }
  }
  return int32_t(best);  // where rounding leaves a last bit of the sum
}

static int32_t draw_tokens(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void*, aq_error*) {
  const int64_t rows = rowCount(in[0]), vocabulary = lastDim(in[0]);
  const double* draws = ptr<double>(in[1]);
  int32_t* ids = mut<int32_t>(out[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* logits = ptr<T>(in[0]);
    forRows(rows, vocabulary, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        ids[row] =
            drawToken(logits + row * vocabulary, vocabulary, draws[2 * row], draws[2 * row + 1]);
      }
    });
    return int32_t(AQ_OK);
  });
}
