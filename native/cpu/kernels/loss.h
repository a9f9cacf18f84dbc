// loss.h: mse with its gradient, sq_diff, cross_entropy.
//
// Squared differences are summed in f64 over fixed chunks, and the chunks in order, so a loss is
// the same number for any count of threads.

// Sum of (a - b)^2 in f64; an absent b counts as zero.
template <class T>
inline double squaredDifference(const T* a, const T* b, int64_t n) {
  constexpr int L = kLanes<double>;
  double lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) {
      const double d = double(a[i + j]) - (b ? double(b[i + j]) : 0.0);
      lane[j] += d * d;
    }
  for (int j = 0; i < n; i++, j++) {
    const double d = double(a[i]) - (b ? double(b[i]) : 0.0);
    lane[j] += d * d;
  }
  return sumOf(lane, L);
}

template <class T>
inline int32_t sumSquares(const char* op, const aq_view& a, const aq_view& b, double* total,
                          aq_error* err) {
  const int64_t n = numel(a);
  const int64_t chunks = ceilDiv(n, kChunk);
  const Partials<double> partials(chunks);
  double* sums = partials.data();
  if (!sums) return noPartials(err, op, chunks * int64_t(sizeof(double)));
  forChunks(n, [&](int64_t begin, int64_t end) {
    const T* other = ptr<T>(b);
    sums[begin / kChunk] =
        squaredDifference(ptr<T>(a) + begin, other ? other + begin : nullptr, end - begin);
  });
  *total = 0;
  for (int64_t i = 0; i < chunks; i++) *total += sums[i];
  return AQ_OK;
}

static int32_t mse(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
                   aq_error* err) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    double total = 0, second = 0;
    int32_t code = sumSquares<T>("mse", in[0], in[1], &total, err);
    if (code == AQ_OK && present(in[2])) code = sumSquares<T>("mse", in[0], in[2], &second, err);
    if (code == AQ_OK) *mut<T>(out[0]) = T((total + second) / double(numel(in[0])));
    return code;
  });
}

template <class T>
inline void differenceRange(T factor, const T* y, const T* t, const T* t2, T* __restrict gy,
                            int64_t n) {
  if (t2) {
    for (int64_t i = 0; i < n; i++) gy[i] = factor * ((y[i] - t[i]) + (y[i] - t2[i]));
  } else {
    for (int64_t i = 0; i < n; i++) gy[i] = factor * (y[i] - t[i]);
  }
}

static int32_t mse_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void*, aq_error*) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T factor = T(2.0 * double(*ptr<T>(in[2])) / double(numel(in[0])));
    const T* t2 = ptr<T>(in[3]);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      differenceRange(factor, ptr<T>(in[0]) + i, ptr<T>(in[1]) + i, t2 ? t2 + i : nullptr,
                      mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}

static int32_t sq_diff(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                       const void*, aq_error* err) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    return sumSquares<T>("sq_diff", in[0], in[1], mut<double>(out[0]), err);
  });
}

// ---------------------------------------------------------------- cross_entropy

// Sum of e^(x - shift).
template <class T>
inline T expSum(const T* x, T shift, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += expOf(x[i + j] - shift);
  for (int j = 0; i < n; i++, j++) lane[j] += expOf(x[i] - shift);
  return sumOf(lane, L);
}

static int32_t cross_entropy(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                             const void*, aq_error* err) {
  const int64_t rows = rowCount(in[0]);
  const int64_t vocabulary = lastDim(in[0]);
  const int32_t* ids = ptr<int32_t>(in[1]);
  for (int64_t row = 0; row < rows; row++)
    if (ids[row] < 0 || ids[row] >= vocabulary)
      return fail(err, AQ_ARG,
                  "cross_entropy: row %lld asks for id %d, expected 0 .. %lld (the columns of the "
                  "logits); check that the ids come from this model's tokenizer",
                  static_cast<long long>(row), ids[row], static_cast<long long>(vocabulary - 1));
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forRows(rows, vocabulary, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const T* x = ptr<T>(in[0]) + row * vocabulary;
        T low = x[0], high = x[0];
        minMaxOf(x, vocabulary, low, high);
        const double sum = double(expSum(x, high, vocabulary));
        mut<T>(out[0])[row] = T(std::log(sum) + (double(high) - double(x[ids[row]])));
      }
    });
    return int32_t(AQ_OK);
  });
}
