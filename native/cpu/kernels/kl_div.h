// kl_div.h: how far a student's distribution is from its teacher's, as the mean over rows of
// KL(softmax(targets) || softmax(logits)), and its gradient, (softmax(logits) - softmax(targets)) g
// over the number of rows.
//
// With e = e^(t - max t), s = e^(l - max l) and d = (t - max t) - (l - max l), a row's divergence
// is sum(e d) / sum e - log sum e + log sum s: equal rows give 0 exactly.

// Rows go in pieces whose exponentials fit the first cache; sums of pieces are added in f64.
inline constexpr int64_t kKlPiece = 1024;

template <class T>
inline T largestOf(const T* x, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L];
  for (int j = 0; j < L; j++) lane[j] = x[0];
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  for (int j = 0; i < n; i++, j++) lane[j] = x[i] > lane[j] ? x[i] : lane[j];
  T most = lane[0];
  for (int j = 1; j < L; j++) most = lane[j] > most ? lane[j] : most;
  return most;
}

// e = e^(x - shift); returns the sum.
template <class T>
inline double shiftedExp(const T* x, T shift, T* __restrict e, int64_t n) {
  for (int64_t i = 0; i < n; i++) e[i] = expOf(x[i] - shift);
  return double(sumOf(e, n));
}

// The same in pieces, for a whole row.
template <class T>
inline double shiftedExpRow(const T* x, T shift, T* e, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kKlPiece)
    sum += shiftedExp(x + i, shift, e + i, n - i < kKlPiece ? n - i : kKlPiece);
  return sum;
}

template <class T>
inline void logitGaps(const T* t, T highT, const T* l, T highL, T* __restrict d, int64_t n) {
  for (int64_t i = 0; i < n; i++) d[i] = (t[i] - highT) - (l[i] - highL);
}

template <class T>
inline double rowDivergence(const T* logits, const T* targets, int64_t n) {
  alignas(64) T e[kKlPiece], d[kKlPiece];
  const T highL = largestOf(logits, n), highT = largestOf(targets, n);
  double student = 0, teacher = 0, cross = 0;
  for (int64_t i = 0; i < n; i += kKlPiece) {
    const int64_t count = n - i < kKlPiece ? n - i : kKlPiece;
    student += shiftedExp(logits + i, highL, e, count);
    teacher += shiftedExp(targets + i, highT, e, count);
    logitGaps(targets + i, highT, logits + i, highL, d, count);
    cross += double(dotOf(e, d, count));
  }
  return cross / teacher - std::log(teacher) + std::log(student);
}

static int32_t kl_div(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                      const void*, aq_error* err) {
  const int64_t rows = rowCount(in[0]), cols = lastDim(in[0]);
  const Partials<double> divergence(rows);
  if (!divergence.data()) return noPartials(err, "kl_div", rows * int64_t(sizeof(double)));
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forRows(rows, cols, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++)
        divergence.data()[row] =
            rowDivergence(ptr<T>(in[0]) + row * cols, ptr<T>(in[1]) + row * cols, cols);
    });
    double total = 0;
    for (int64_t row = 0; row < rows; row++) total += divergence.data()[row];
    *mut<T>(out[0]) = T(total / double(rows));
    return int32_t(AQ_OK);
  });
}

// gx holds the student's exponentials, e the teacher's.
template <class T>
inline void klGradRange(T student, T teacher, const T* e, T* gx, int64_t n) {
  for (int64_t i = 0; i < n; i++) gx[i] = gx[i] * student - e[i] * teacher;
}

static int32_t kl_div_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void*, aq_error* err) {
  const int64_t rows = rowCount(in[0]), cols = lastDim(in[0]);
  return withScratch("kl_div_grad", err, [&] {
    return visitFloat(in[0].dtype, [&](auto zero) {
      using T = decltype(zero);
      const double factor = double(*ptr<T>(in[2])) / double(rows);
      forRows(rows, cols, [&](int64_t first, int64_t end) {
        T* const e = static_cast<T*>(threadScratch(kSlotOwn, uint64_t(cols) * sizeof(T)));
        for (int64_t row = first; row < end; row++) {
          const T* logits = ptr<T>(in[0]) + row * cols;
          const T* targets = ptr<T>(in[1]) + row * cols;
          T* const gx = mut<T>(out[0]) + row * cols;
          const double student = shiftedExpRow(logits, largestOf(logits, cols), gx, cols);
          const double teacher = shiftedExpRow(targets, largestOf(targets, cols), e, cols);
          klGradRange(T(factor / student), T(factor / teacher), e, gx, cols);
        }
      });
      return int32_t(AQ_OK);
    });
  });
}
