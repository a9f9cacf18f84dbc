// matmul.h: y = alpha op(a) op(b) for a batch of small matrices.

template <class T>
static void matmulBatch(const aq_view* in, const aq_view& out, const aq_matmul_params& p) {
  const int64_t aRows = in[0].dim[1], aCols = in[0].dim[2];
  const int64_t bRows = in[1].dim[1], bCols = in[1].dim[2];
  const int64_t m = p.trans_a ? aCols : aRows, k = p.trans_a ? aRows : aCols;
  const int64_t n = p.trans_b ? bRows : bCols;
  const int64_t batch = in[0].dim[0];
  const T alpha = T(p.alpha);
  const auto one = [&](int64_t i) {
    T* const y = mut<T>(out) + i * m * n;
    gemm<T>(m, n, k, Operand<T>(ptr<T>(in[0]) + i * aRows * aCols, aCols, p.trans_a != 0),
            Operand<T>(ptr<T>(in[1]) + i * bRows * bCols, bCols, p.trans_b == 0), y, n);
    if (alpha != T(1))
      for (int64_t j = 0; j < m * n; j++) y[j] *= alpha;
  };
  // A task a matrix; the products inside then run inline. Few matrices: each is shared instead.
  if (batch >= threadCount()) {
    parallelFor(batch, one);
  } else {
    for (int64_t i = 0; i < batch; i++) one(i);
  }
}

static int32_t matmul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                      const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_matmul_params*>(params);
  return withScratch("matmul", err, [&]() -> int32_t {
    if (in[0].dtype == AQ_F64) {
      matmulBatch<double>(in, out[0], p);
    } else {
      matmulBatch<float>(in, out[0], p);
    }
    return AQ_OK;
  });
}
