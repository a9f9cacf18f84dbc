// fp4.h: matrices as 4-bit floats: their global scale (fp4_global), quantizing them (fp4_operand) and codes
// as numbers (fp4_values).

namespace fp4 {

// The matrix r x c in pieces of rows, each of whole groups.
template <class T>
struct Source {
  const T *x, *r, *c;
  int64_t rows, columns;

  Source(const aq_view& view, const aq_view& rowFactors, const aq_view& columnFactors)
      : x(ptr<T>(view)),
        r(ptr<T>(rowFactors)),
        c(ptr<T>(columnFactors)),
        rows(rowCount(view)),
        columns(lastDim(view)) {}

  bool isScaled() const { return r || c; }

  // n values of a row from a column on: in place without factors, else in `buffer`.
  const T* read(int64_t row, int64_t column, int64_t n, T* buffer) const {
    const T* const from = x + row * columns + column;
    if (!isScaled()) return from;
    scaleRow(from, r ? r[row] : T(1), c ? c + column : nullptr, buffer, n);
    return buffer;
  }

  // body(row, column, length)
  template <class Body>
  void inRows(int64_t first, int64_t end, const Body& body) const {
    for (int64_t row = first; row < end; row++)
      for (int64_t column = 0; column < columns; column += kPiece)
        body(row, column, columns - column < kPiece ? columns - column : kPiece);
  }
};

// The upper halves of floats, which hold all bits of these.
inline void shortened(const float* __restrict x, Bfloat* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = {uint16_t(__builtin_bit_cast(uint32_t, x[i]) >> 16)};
}

template <class T>
static void quantizeMatrix(const aq_view* in, const aq_view* out, int32_t format) {
  const Source<T> source(in[0], in[4], in[5]);
  const Clip<T> clip(in[2]);
  const T g = globalOf<T>(in[1]);
  const T* const v = ptr<T>(in[3]);
  const int64_t group = groupOf(format);
  const bool isCodes = out[2].dtype == AQ_U8, isShort = out[2].dtype == AQ_BF16;
  *mut<T>(out[1]) = T(1) / g;
  forRows(source.rows, source.columns, [&](int64_t first, int64_t end) {
    T values[kPiece], numbers[kPiece], f[kMostGroups];
    source.inRows(first, end, [&](int64_t row, int64_t column, int64_t n) {
      const int64_t at = row * source.columns + column;
      const T* const x = source.read(row, column, n, values);
      if (clip.logits) clip.factors(at / group, n / group, f);
      T* const y = isCodes || isShort ? numbers : mut<T>(out[2]) + at;
      quantizePiece(x, clip.logits ? f : nullptr, v ? v + at : nullptr, g, format, !isCodes,
                    mut<T>(out[0]) + at / group, y, n);
      if (isCodes) codesOf(numbers, mut<uint8_t>(out[2]) + at, n);
      if constexpr (std::is_same_v<T, float>) {
        if (isShort) shortened(numbers, mut<Bfloat>(out[2]) + at, n);
      }
    });
  });
}

}  // namespace fp4

static int32_t fp4_global(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void*, aq_error* err) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const fp4::Source<T> source(in[0], in[2], in[3]);
    const int64_t step = rowsPerTask(source.columns), bands = ceilDiv(source.rows, step);
    const Partials<T> partials(bands);
    T* const most = partials.data();
    if (!most) return noPartials(err, "fp4_global", bands * int64_t(sizeof(T)));
    parallelFor(bands, [&](int64_t band) {
      T values[fp4::kPiece], all = T(0);
      const int64_t end = std::min(source.rows, (band + 1) * step);
      source.inRows(band * step, end, [&](int64_t row, int64_t column, int64_t n) {
        const T size = fp4::largestSize(source.read(row, column, n, values), n);
        all = size <= all ? all : (all != all ? all : size);
      });
      most[band] = all;
    });
    T all = T(0);
    for (int64_t band = 0; band < bands; band++)
      all = most[band] <= all ? all : (all != all ? all : most[band]);
    const T before = present(in[1]) ? *ptr<T>(in[1]) : std::numeric_limits<T>::infinity();
    const T own = T(fp4::kWholeRange) / all;
    *mut<T>(out[0]) = before != before ? before : (own < before || own != own ? own : before);
    return int32_t(AQ_OK);
  });
}

static int32_t fp4_operand(aq_queue*, const aq_view* in, int32_t n_in, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  const int32_t format = static_cast<const aq_fp4_operand_params*>(params)->format;
  WidenedViews inputs;
  for (int32_t i = 0; i < n_in; i++) {
    if (!inputs.add(in[i], true))
      return noPartials(err, "fp4_operand", numel(in[0]) * int64_t(sizeof(float)));
  }
  return visitFloat(in[0].dtype, [&](auto zero) {
    fp4::quantizeMatrix<decltype(zero)>(inputs.views(), out, format);
    return int32_t(AQ_OK);
  });
}

static int32_t fp4_values(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error*) {
  const int64_t group = fp4::groupOf(static_cast<const aq_fp4_values_params*>(params)->format);
  const int64_t columns = lastDim(in[0]);
  return visitFloat(in[1].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T g = fp4::globalOf<T>(in[2]);
    forRows(rowCount(in[0]), columns, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        T* const x = mut<T>(out[0]) + row * columns;
        const T* const s = ptr<T>(in[1]) + row * columns / group;
        fp4::decode(ptr<uint8_t>(in[0]) + row * columns, x, columns);
        for (int64_t i = 0; i < columns; i += 16) {
          const T by = s[i / group] / g;
          for (int64_t j = i; j < i + 16; j++) x[j] *= by;
        }
      }
    });
    return int32_t(AQ_OK);
  });
}
