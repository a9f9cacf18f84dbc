// hadamard.h: rows times an orthogonal matrix of any size F = 2^k m (m odd), in O(F (k + m)):
//   forward  y = (x o signs) (H_{2^k} (x) Q) / sqrt(2^k)
//   inverse  y = (x (H_{2^k} (x) Q)^T) o signs / sqrt(2^k)
//
// The factor is cut in two, H_{2^k} (x) Q = H_P (x) K, where K = H_{2^a} (x) Q is the smallest one
// with a vector's worth of columns. A row read as a matrix [P, inner] is first multiplied by K, a
// small dense product that spares all shuffles inside vectors; then H_P goes down the columns as
// butterflies of whole vectors. Strips of kLanes columns are taken one by one, so that the
// butterflies stay in the first cache. Nothing is fused, hence the same bits at every level.

struct HadamardSizes {
  int64_t features, odd;
  int64_t inner, count;  // inner = 2^a odd, count = features / inner, a power of two
};

inline HadamardSizes hadamardSizes(int64_t features, int64_t lanes) {
  int64_t odd = features;
  while (odd % 2 == 0) odd /= 2;
  int64_t inner = odd;
  while (inner < lanes && inner < features) inner *= 2;
  return {features, odd, inner, features / inner};
}

// K / sqrt(2^k) in strips, [strip][inner][kLanes], padded with zero columns; Q is transposed for
// the inverse. `q` is null where odd is 1.
template <class T>
inline void hadamardInner(const HadamardSizes& s, const T* q, bool transpose, T* k) {
  constexpr int64_t L = kLanes<T>;
  const double scale = 1 / std::sqrt(double(s.features / s.odd));
  for (int64_t column = 0; column < ceilDiv(s.inner, L) * L; column++)
    for (int64_t row = 0; row < s.inner; row++) {
      T value = T(0);
      if (column < s.inner) {
        const int64_t i = row % s.odd, j = column % s.odd;
        const double entry = !q ? 1.0 : double(transpose ? q[j * s.odd + i] : q[i * s.odd + j]);
        const bool negative = __builtin_parityll(uint64_t((row / s.odd) & (column / s.odd)));
        value = T((negative ? -scale : scale) * entry);
      }
      k[(column / L * s.inner + row) * L + column % L] = value;
    }
}

// out [Rows, kLanes] = x [Rows, inner] times one strip of K.
template <class T, int Rows>
inline void hadamardTile(const T* x, const T* k, int64_t inner, T* out) {
  using V = Vec<T>;
  constexpr int kParts = kLanes<T> / V::kWidth;
  typename V::Type sum[Rows][kParts];
  AQ_UNROLL
  for (int i = 0; i < Rows; i++)
    for (int p = 0; p < kParts; p++) sum[i][p] = V::zero();
  for (int64_t r = 0; r < inner; r++, k += kLanes<T>) {
    AQ_UNROLL
    for (int i = 0; i < Rows; i++) {
      const typename V::Type value = V::splat(x[i * inner + r]);
      AQ_UNROLL
      for (int p = 0; p < kParts; p++) sum[i][p] = sum[i][p] + value * V::load(k + p * V::kWidth);
    }
  }
  AQ_UNROLL
  for (int i = 0; i < Rows; i++)
    for (int p = 0; p < kParts; p++) V::store(out + i * kLanes<T> + p * V::kWidth, sum[i][p]);
}

// The butterflies of two stages at once: x [4, n] times H_4.
template <class T>
inline void hadamardFour(T* x, int64_t n) {
  using V = Vec<T>;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const typename V::Type a = V::load(x + i), b = V::load(x + n + i);
    const typename V::Type c = V::load(x + 2 * n + i), d = V::load(x + 3 * n + i);
    const typename V::Type ab = a + b, cd = c + d, amb = a - b, cmd = c - d;
    V::store(x + i, ab + cd);
    V::store(x + n + i, amb + cmd);
    V::store(x + 2 * n + i, ab - cd);
    V::store(x + 3 * n + i, amb - cmd);
  }
}

template <class T>
inline void hadamardTwo(T* x, int64_t n) {
  using V = Vec<T>;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const typename V::Type a = V::load(x + i), b = V::load(x + n + i);
    V::store(x + i, a + b);
    V::store(x + n + i, a - b);
  }
}

// x [count, kLanes]: H_count down every column, in place.
template <class T>
inline void hadamardColumns(T* x, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  int64_t h = 1;
  for (; h * 4 <= count; h *= 4)
    for (int64_t p = 0; p < count; p += 4 * h) hadamardFour(x + p * L, h * L);
  if (h < count) hadamardTwo(x, h * L);
}

// Writes the strip's columns to their place, signed if `signs` is given. Inline, for the width is
// mostly a constant.
template <class T>
__attribute__((always_inline)) inline void hadamardStore(const T* strip, const T* signs,
                                                         T* __restrict y, int64_t width,
                                                         const HadamardSizes& s, int64_t column) {
  for (int64_t p = 0; p < s.count; p++, strip += kLanes<T>) {
    const int64_t at = p * s.inner + column;
    if (signs)
      for (int64_t j = 0; j < width; j++) y[at + j] = strip[j] * signs[at + j];
    else
      for (int64_t j = 0; j < width; j++) y[at + j] = strip[j];
  }
}

// One row. `strip` has room for [count, kLanes]; x may be a copy that was signed.
template <class T>
inline void hadamardRow(const HadamardSizes& s, const T* x, const T* k, const T* outSigns, T* strip,
                        T* __restrict y) {
  constexpr int64_t L = kLanes<T>;
  constexpr int kRows = 8 * Vec<T>::kWidth / kLanes<T>;  // 8 vectors accumulate
  for (int64_t column = 0; column < s.inner; column += L, k += s.inner * L) {
    int64_t p = 0;
    for (; p + kRows <= s.count; p += kRows)
      hadamardTile<T, kRows>(x + p * s.inner, k, s.inner, strip + p * L);
    for (; p + 2 <= s.count; p += 2) hadamardTile<T, 2>(x + p * s.inner, k, s.inner, strip + p * L);
    for (; p < s.count; p++) hadamardTile<T, 1>(x + p * s.inner, k, s.inner, strip + p * L);
    hadamardColumns(strip, s.count);
    const int64_t width = s.inner - column < L ? s.inner - column : L;
    if (width == L)
      hadamardStore(strip, outSigns, y, L, s, column);
    else
      hadamardStore(strip, outSigns, y, width, s, column);
  }
}

static int32_t hadamard(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error* err) {
  const bool inverse = static_cast<const aq_hadamard_params*>(params)->inverse != 0;
  return withScratch("hadamard", err, [&] {
    return visitFloat(in[0].dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int64_t L = kLanes<T>;
      const HadamardSizes s = hadamardSizes(numel(in[1]), L);
      const T* signs = ptr<T>(in[1]);
      T* const k = static_cast<T*>(
          threadScratch(kSlotShared, uint64_t(ceilDiv(s.inner, L) * L * s.inner) * sizeof(T)));
      hadamardInner(s, ptr<T>(in[2]), inverse, k);
      forRows(numel(in[0]) / s.features, s.features, [&](int64_t first, int64_t end) {
        T* const strip = static_cast<T*>(
            threadScratch(kSlotOwn, uint64_t(s.count * L + s.features) * sizeof(T)));
        T* const copy = strip + s.count * L;
        for (int64_t row = first; row < end; row++) {
          const T* x = ptr<T>(in[0]) + row * s.features;
          T* const y = mut<T>(out[0]) + row * s.features;
          if (inverse) {
            hadamardRow(s, x, k, signs, strip, y);
          } else {
            mulRange(T(1), x, signs, copy, s.features);
            hadamardRow(s, copy, k, static_cast<const T*>(nullptr), strip, y);
          }
        }
      });
      return int32_t(AQ_OK);
    });
  });
}
