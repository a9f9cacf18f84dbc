// statistics.h: what calibration asks of activations: extremes per channel (channel_stats) and
// whether everything is finite (all_finite).

// Widens the extremes high, low of n channels by those of another set; one row of x is both.
template <class T>
inline void widenExtremes(const T* otherHigh, const T* otherLow, T* __restrict high,
                          T* __restrict low, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    high[i] = otherHigh[i] > high[i] ? otherHigh[i] : high[i];
    low[i] = otherLow[i] < low[i] ? otherLow[i] : low[i];
  }
}

template <class T>
inline void resetExtremes(T* high, T* low, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    high[i] = -std::numeric_limits<T>::infinity();
    low[i] = std::numeric_limits<T>::infinity();
  }
}

// Each chunk of rows gathers extremes of its own (a row of highs, a row of lows); the chunks are
// merged in order. max |x| is the larger of max x and -min x.
static int32_t channel_stats(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                             const void*, aq_error* err) {
  const int64_t rows = rowCount(in[0]);
  const int64_t cols = lastDim(in[0]);
  const int64_t step = columnChunkRows(rows);
  const int64_t chunks = ceilDiv(rows, step);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> partials(2 * chunks * cols);
    T* extremes = partials.data();
    if (!extremes) return noPartials(err, "channel_stats", 2 * chunks * cols * int64_t(sizeof(T)));
    parallelFor(chunks, [&](int64_t chunk) {
      T* high = extremes + 2 * chunk * cols;
      T* low = high + cols;
      resetExtremes(high, low, cols);
      const int64_t end = rows - chunk * step < step ? rows : (chunk + 1) * step;
      for (int64_t row = chunk * step; row < end; row++) {
        const T* x = ptr<T>(in[0]) + row * cols;
        widenExtremes(x, x, high, low, cols);
      }
    });
    T* absolute = mut<T>(out[0]);
    T* high = mut<T>(out[1]);
    T* low = mut<T>(out[2]);
    resetExtremes(high, low, cols);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const T* highs = extremes + 2 * chunk * cols;
      widenExtremes(highs, highs + cols, high, low, cols);
    }
    for (int64_t i = 0; i < cols; i++) absolute[i] = high[i] > -low[i] ? high[i] : -low[i];
    return int32_t(AQ_OK);
  });
}

// An exponent of all ones is an infinity or NaN; as integers those patterns are the largest, so the
// test is one maximum.
inline bool finiteRange(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const int32_t magnitude = __builtin_bit_cast(int32_t, x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7f800000;
}
inline bool finiteRange(const double* x, int64_t n) {
  int64_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const int64_t magnitude = __builtin_bit_cast(int64_t, x[i]) & INT64_MAX;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7ff0000000000000;
}

// Of BF16 or F16, whose bits below the sign are largest for what is not finite.
inline bool finiteRange(const uint16_t* x, uint16_t infinity, int64_t n) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint16_t magnitude = uint16_t(x[i] & 0x7fffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < infinity;
}

static int32_t all_finite(aq_queue*, const aq_view* in, int32_t n_in, const aq_view* out, int32_t,
                          const void*, aq_error*) {
  int32_t finite = 1;
  for (int32_t k = 0; k < n_in; k++) {
    const aq_view& x = in[k];
    const auto check = [&](const auto& isFinite) {
      forChunks(numel(x), [&](int64_t begin, int64_t end) {
        if (!isFinite(begin, end - begin)) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
      });
    };
    if (x.dtype == AQ_BF16 || x.dtype == AQ_F16) {
      const uint16_t infinity = x.dtype == AQ_BF16 ? 0x7f80 : 0x7c00;
      check([&](int64_t at, int64_t n) { return finiteRange(ptr<uint16_t>(x) + at, infinity, n); });
      continue;
    }
    visitFloat(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      check([&](int64_t at, int64_t n) { return finiteRange(ptr<T>(x) + at, n); });
      return int32_t(AQ_OK);
    });
  }
  *mut<int32_t>(out[0]) = finite;
  return AQ_OK;
}
