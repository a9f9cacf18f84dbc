// elementwise.h: loops over flat memory, and the ops that are nothing more: fill, cast, add, axpy,
// mul, exp. Also what the other kernels share: dispatch on f32/f64, fixed chunks, partial sums.
//
// Work is cut into chunks whose size depends on shapes only, never on the number of threads.

// Elements of one task of a flat loop: 64 KiB of f32, so that the hand-out costs nothing and two
// or three operands stay in a 1 MiB L2.
inline constexpr int64_t kChunk = 16384;

// Runs f with a zero of the tensor's type: f(double) for F64, f(float) otherwise.
template <class F>
inline int32_t visitFloat(int32_t dtype, const F& f) {
  return dtype == AQ_F64 ? f(double(0)) : f(float(0));
}

// body(begin, end) over the fixed chunks of [0, n).
template <class Body>
inline void forChunks(int64_t n, const Body& body) {
  parallelFor(ceilDiv(n, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk;
    body(begin, n - begin < kChunk ? n : begin + kChunk);
  });
}

// body(firstRow, endRow) over fixed bands of the rows of a matrix.
template <class Body>
inline void forRows(int64_t rows, int64_t rowLength, const Body& body) {
  const int64_t step = rowsPerTask(rowLength);
  parallelFor(ceilDiv(rows, step), [&](int64_t band) {
    const int64_t begin = band * step;
    body(begin, rows - begin < step ? rows : begin + step);
  });
}

// Memory for partial results that live as long as one kernel call. Never throws: the caller tests
// data() and returns noPartials().
template <class T>
class Partials {
 public:
  explicit Partials(int64_t count) : data_(new (std::nothrow) T[size_t(count > 0 ? count : 1)]) {}
  ~Partials() { delete[] data_; }
  Partials(const Partials&) = delete;
  Partials& operator=(const Partials&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

inline int32_t noPartials(aq_error* err, const char* op, int64_t bytes) {
  return fail(err, AQ_OOM,
              "%s: no memory for %lld bytes of partial results; dispose tensors that are no longer "
              "needed, or use smaller inputs",
              op, static_cast<long long>(bytes));
}

// Rows of one chunk of a column-wise reduction: at most 64 chunks, at least 16 rows each.
inline int64_t columnChunkRows(int64_t rows) {
  const int64_t step = ceilDiv(rows, 64);
  return step < 16 ? 16 : step;
}

// Column sums of something with `rows` rows: body(firstRow, endRow, partial) adds its rows into a
// zeroed partial[cols]; the partials are then added in order into out[cols].
template <class T, class Body>
inline int32_t sumColumns(const char* op, int64_t rows, int64_t cols, T* out, aq_error* err,
                          const Body& body) {
  const int64_t step = columnChunkRows(rows);
  const int64_t chunks = ceilDiv(rows, step);
  const Partials<T> partials(chunks * cols);
  T* sums = partials.data();
  if (!sums) return noPartials(err, op, chunks * cols * int64_t(sizeof(T)));
  parallelFor(chunks, [&](int64_t chunk) {
    T* partial = sums + chunk * cols;
    std::memset(static_cast<void*>(partial), 0, size_t(cols) * sizeof(T));
    const int64_t begin = chunk * step;
    body(begin, rows - begin < step ? rows : begin + step, partial);
  });
  forChunks(cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) out[i] = T(0);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const T* partial = sums + chunk * cols;
      for (int64_t i = begin; i < end; i++) out[i] += partial[i];
    }
  });
  return AQ_OK;
}

// ---------------------------------------------------------------- conversions

// A double as a float whose rounding is to odd: rounding it once more, to half or bfloat, then
// gives what rounding the double directly would.
inline float oddFloat(double x) {
  const float f = float(x);
  uint32_t bits = floatBits(f);
  const double back = double(f);
  const bool inexact = back != x && x == x;
  const bool tooFar = (back < 0 ? -back : back) > (x < 0 ? -x : x);
  bits -= inexact && tooFar ? 1u : 0u;
  bits |= inexact ? 1u : 0u;
  return bitsFloat(bits);
}

// Integers: half to even, limits of the type, NaN gives 0. In f64, where every int32 is exact.
template <class I>
inline I toInteger(double x) {
  constexpr double low = double(std::numeric_limits<I>::min());
  constexpr double high = double(std::numeric_limits<I>::max());
  double v = x != x ? 0.0 : x;
  v = v < low ? low : v;
  v = v > high ? high : v;
  return I(int32_t(roundEven(v)));
}

// load<S> gives f32 where that is exact, else f64; store<D> takes either.
inline double loadAs(double x) { return x; }
inline float loadAs(float x) { return x; }
inline float loadAs(Bfloat x) { return toFloat(x); }
inline float loadAs(Half x) { return toFloat(x); }
inline double loadAs(int32_t x) { return double(x); }
inline float loadAs(int8_t x) { return float(x); }
inline float loadAs(uint8_t x) { return float(x); }

inline float narrow(float x) { return x; }
inline float narrow(double x) { return oddFloat(x); }

template <class D, class M>
inline D storeAs(M x) {
  if constexpr (std::is_same_v<D, Half>)
    return toHalf(narrow(x));
  else if constexpr (std::is_same_v<D, Bfloat>)
    return toBfloat(narrow(x));
  else if constexpr (std::is_integral_v<D>)
    return toInteger<D>(double(x));
  else
    return D(x);
}

template <class S, class D>
inline void convertRange(const S* __restrict x, D* __restrict y, int64_t n) {
  if constexpr (std::is_same_v<S, D>) {
    std::memcpy(static_cast<void*>(y), x, size_t(n) * sizeof(S));
  } else {
    for (int64_t i = 0; i < n; i++) y[i] = storeAs<D>(loadAs(x[i]));
  }
}

// f(pointer of the dtype's C++ type).
template <class F>
inline void visitDtype(int32_t dtype, const F& f) {
  switch (dtype) {
    case AQ_F64:
      return f(static_cast<double*>(nullptr));
    case AQ_F32:
      return f(static_cast<float*>(nullptr));
    case AQ_BF16:
      return f(static_cast<Bfloat*>(nullptr));
    case AQ_F16:
      return f(static_cast<Half*>(nullptr));
    case AQ_I32:
      return f(static_cast<int32_t*>(nullptr));
    case AQ_I8:
      return f(static_cast<int8_t*>(nullptr));
    default:
      return f(static_cast<uint8_t*>(nullptr));
  }
}

// Elements [from, from + n) of src into [to, to + n) of dst, each of its own dtype.
inline void convertElements(const aq_view& src, int64_t from, const aq_view& dst, int64_t to,
                            int64_t n) {
  visitDtype(src.dtype, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    visitDtype(dst.dtype, [&](auto* d) {
      using D = std::remove_pointer_t<decltype(d)>;
      convertRange(ptr<S>(src) + from, mut<D>(dst) + to, n);
    });
  });
}

static int32_t cast(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
                    aq_error*) {
  forChunks(numel(in[0]), [&](int64_t begin, int64_t end) {
    convertElements(in[0], begin, out[0], begin, end - begin);
  });
  return AQ_OK;
}

static int32_t fill(aq_queue*, const aq_view* in, int32_t, const aq_view*, int32_t,
                    const void* params, aq_error*) {
  const double value = static_cast<const aq_fill_params*>(params)->value;
  visitDtype(in[0].dtype, [&](auto* d) {
    using D = std::remove_pointer_t<decltype(d)>;
    const D stored = storeAs<D>(value);
    forChunks(numel(in[0]), [&](int64_t begin, int64_t end) {
      D* x = mut<D>(in[0]);
      for (int64_t i = begin; i < end; i++) x[i] = stored;
    });
  });
  return AQ_OK;
}

// ---------------------------------------------------------------- arithmetic

template <class T>
inline void addRange(T alpha, const T* a, const T* b, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = a[i] + alpha * b[i];
}

static int32_t add(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error*) {
  const double alpha = static_cast<const aq_add_params*>(params)->alpha;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      addRange(T(alpha), ptr<T>(in[0]) + i, ptr<T>(in[1]) + i, mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline void axpyRange(T alpha, const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

static int32_t axpy(aq_queue*, const aq_view* in, int32_t, const aq_view*, int32_t,
                    const void* params, aq_error*) {
  const double alpha = static_cast<const aq_axpy_params*>(params)->alpha;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      axpyRange(T(alpha), ptr<T>(in[1]) + i, mut<T>(in[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline void mulRange(T alpha, const T* a, const T* b, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = alpha * (a[i] * b[i]);
}

static int32_t mul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error*) {
  const double alpha = static_cast<const aq_mul_params*>(params)->alpha;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      mulRange(T(alpha), ptr<T>(in[0]) + i, ptr<T>(in[1]) + i, mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline void expRange(T scale, const T* x, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = expOf(scale * x[i]);
}

static int32_t exp(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error*) {
  const double scale = static_cast<const aq_exp_params*>(params)->scale;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      expRange(T(scale), ptr<T>(in[0]) + i, mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}
