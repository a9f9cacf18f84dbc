// gptq.h: codes that make up for each other's rounding errors (GPTQ, arXiv 2210.17323) on a given
// grid.
//
// Columns are rounded from left to right. What rounding column j costs in the layer's output,
// weighed by the second moments H of its input, is made up by the columns that are still free:
//   e = (w_j - q_j) / U_jj,  w_k -= e U_jk for k > j,  with Ut U = (H + damping mean(diag H) I)^-1.
// Rows are independent. Within a block of columns each row runs by itself; what a block owes to the
// columns after it is one product.

// Columns `from` .. `end` of one row. u: rows of U, row j from its diagonal on at u + (j - from) ld +
// j - from; errors: -e of every column.
template <class T>
inline void gptqRow(T* row, const T* scale, const T* zero, T top, int64_t group, const T* u,
                    int64_t ld, int64_t from, int64_t end, uint8_t* codes, T* errors) {
  for (int64_t j = from; j < end; j++) {
    const T* const factors = u + (j - from) * ld + (j - from);
    const T s = scale[j / group], z = zero[j / group], w = row[j];
    const T code = codeOf(w / s, z, top);
    codes[j] = uint8_t(int32_t(code));
    const T e = (w - (code - z) * s) / factors[0];
    errors[j - from] = -e;
    for (int64_t k = 1; k < end - j; k++) row[j + k] -= e * factors[k];
  }
}

template <class T>
static int32_t gptqCodes(const aq_view* in, const aq_view& out, const aq_gptq_params& o,
                         aq_error* err) {
  const int64_t rows = rowCount(in[0]), n = lastDim(in[0]);
  const int64_t group = groupSize(o.group, n), groups = ceilDiv(n, group);
  const T top = T((1 << o.bits) - 1);
  const T *h = ptr<T>(in[1]), *scale = ptr<T>(in[2]), *zero = ptr<T>(in[3]);
  uint8_t* const codes = mut<uint8_t>(out);

  double trace = 0;
  bool allZero = true;
  for (int64_t i = 0; i < n; i++) trace += double(h[i * n + i]);
  for (int64_t i = 0; i < n * n && allZero; i++) allZero = h[i] == T(0);
  if (allZero) {  // no input ever arrived: nothing to make up for
    Grouping(in[0], o.group).each([&](int64_t index, int64_t at, int64_t count) {
      quantizeRange<T>(ptr<T>(in[0]) + at, nullptr, scale[index], zero[index], top, codes + at,
                       count);
    });
    return AQ_OK;
  }

  const int64_t block = std::min<int64_t>(o.block, n);
  const Partials<double> matrix(n * n);
  const Partials<T> memory(rows * n + rows * block + block * n);
  if (!matrix.data() || !memory.data()) {
    return noPartials(err, "gptq",
                      n * n * 8 + (rows * (n + block) + block * n) * int64_t(sizeof(T)));
  }
  const double damping = o.damping * trace / double(n);
  forRows(n, n, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++) {
      double* const to = matrix.data() + i * n;
      const T* const from = h + (n - 1 - i) * n + n - 1;
      for (int64_t j = 0; j <= i; j++) to[j] = double(from[-j]);
      to[i] += damping;
    }
  });
  InverseFactor factor(matrix.data(), n);
  const int64_t bad = factor.factorize();
  if (bad >= 0) {
    return fail(err, AQ_NUMERIC,
                "gptq: h [%lld, %lld] is not positive definite after damping by %g of its mean "
                "diagonal: the pivot of column %lld is %g; calibrate on more tokens or raise the "
                "damping",
                static_cast<long long>(n), static_cast<long long>(n), o.damping,
                static_cast<long long>(bad), factor.pivot());
  }
  factor.invert();

  T* const rest = memory.data();  // W with what was made up so far, [rows, n]
  T* const errors = rest + rows * n;
  T* const u = errors + rows * block;
  std::memcpy(rest, in[0].data, size_t(rows * n) * sizeof(T));
  for (int64_t from = 0; from < n; from += block) {
    const int64_t end = std::min(n, from + block), ld = n - from;
    forRows(end - from, ld, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; j++) factor.copyRow(from + j, u + j * ld + j);
    });
    forRows(rows, block * block / 2, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++)
        gptqRow(rest + i * n, scale + i * groups, zero + i * groups, top, group, u, ld, from, end,
                codes + i * n, errors + i * block);
    });
    if (end < n)
      gemm<T>(rows, n - end, end - from, Operand<T>(errors, block, false),
              Operand<T>(u + end - from, ld, true), rest + end, n, true);
  }
  return AQ_OK;
}

static int32_t gptq(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_gptq_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  return withScratch("gptq", err, [&]() -> int32_t {
    return in[0].dtype == AQ_F64 ? gptqCodes<double>(in, out[0], o, err)
                                 : gptqCodes<float>(in, out[0], o, err);
  });
}
