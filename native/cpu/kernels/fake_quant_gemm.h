// fake_quant_gemm.h: the linear layer of calibration, c = op(A^) op(B^) + bias, where either factor
// may be quantized on its grid while it is packed, or stands for its numbers times one factor.

// A factor as it is stored: `view` is a matrix of lastDim columns; its grid, if present, runs along
// the stored rows.
template <class T>
inline Operand<T> gridOperand(const aq_view& view, bool rowsAreK, const aq_view& scale,
                              const aq_view& zero, int32_t bits, int32_t group,
                              const T* offset = nullptr) {
  const int64_t cols = lastDim(view);
  Operand<T> operand(ptr<T>(view), cols, rowsAreK);
  if (!present(zero)) return operand;
  operand.scale = ptr<T>(scale);
  operand.zero = ptr<T>(zero);
  operand.offset = offset;
  operand.group = groupSize(group, cols);
  operand.gridLd = ceilDiv(cols, operand.group);
  operand.top = T((int64_t(1) << bits) - 1);
  return operand;
}

// The number that an operand without a grid is to be multiplied by.
template <class T>
inline T factorOf(const aq_view& scale, const aq_view& zero) {
  return present(scale) && !present(zero) ? *ptr<T>(scale) : T(1);
}

// c = (before, or nothing) + (factor p + bias), where p may be c itself.
template <class T>
static void addScaled(const T* p, T factor, const T* bias, bool accumulate, T* c, int64_t rows,
                      int64_t columns) {
  forRows(rows, columns, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
      const int64_t at = row * columns;
      for (int64_t j = 0; j < columns; j++) {
        const T y = bias ? p[at + j] * factor + bias[j] : p[at + j] * factor;
        c[at + j] = accumulate ? c[at + j] + y : y;
      }
    }
  });
}

template <class T>
static int32_t fakeQuantGemm(const aq_view* in, const aq_view& out,
                             const aq_fake_quant_gemm_params& p, aq_error* err) {
  const int64_t aRows = rowCount(in[0]), aCols = lastDim(in[0]);
  const int64_t bRows = rowCount(in[1]), bCols = lastDim(in[1]);
  const int64_t m = p.trans_a ? aCols : aRows, k = p.trans_a ? aRows : aCols;
  const int64_t n = p.trans_b ? bRows : bCols;
  const Operand<T> a = gridOperand<T>(in[0], p.trans_a != 0, in[2], in[3], p.a_bits, p.a_group);
  const Operand<T> b =
      gridOperand<T>(in[1], p.trans_b == 0, in[4], in[5], p.b_bits, p.b_group, ptr<T>(in[7]));
  T* const c = mut<T>(out);
  const T* const bias = ptr<T>(in[6]);
  const T factor = factorOf<T>(in[2], in[3]) * factorOf<T>(in[4], in[5]);
  const bool accumulate = p.accumulate != 0;
  if (factor == T(1)) {
    gemm<T>(m, n, k, a, b, c, n, accumulate, bias);
    return AQ_OK;
  }
  const Partials<T> product(accumulate ? m * n : 0);
  T* const to = accumulate ? product.data() : c;
  if (!to) return noPartials(err, "fake_quant_gemm", m * n * int64_t(sizeof(T)));
  gemm<T>(m, n, k, a, b, to, n);
  addScaled(to, factor, bias, accumulate, c, m, n);
  return AQ_OK;
}

static int32_t fakeQuantGemm(const aq_view* in, const aq_view* out, const void* params,
                             aq_error* err) {
  const auto& p = *static_cast<const aq_fake_quant_gemm_params*>(params);
  return withScratch("fake_quant_gemm", err, [&] {
    return visitFloat(in[0].dtype,
                      [&](auto zero) { return fakeQuantGemm<decltype(zero)>(in, out[0], p, err); });
  });
}
