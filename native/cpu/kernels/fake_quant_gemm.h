// fake_quant_gemm.h: the linear layer of calibration, c = op(A^) op(B^) + bias, where either factor
// may be quantized on its grid while it is packed.

// A factor as it is stored: `view` is a matrix of lastDim columns; its grid, if present, runs along
// the stored rows.
template <class T>
inline Operand<T> gridOperand(const aq_view& view, bool rowsAreK, const aq_view& scale,
                              const aq_view& zero, int32_t bits, int32_t group,
                              const T* offset = nullptr) {
  const int64_t cols = lastDim(view);
  Operand<T> operand(ptr<T>(view), cols, rowsAreK);
  if (!present(scale)) return operand;
  operand.scale = ptr<T>(scale);
  operand.zero = ptr<T>(zero);
  operand.offset = offset;
  operand.group = groupSize(group, cols);
  operand.gridLd = ceilDiv(cols, operand.group);
  operand.top = T((int64_t(1) << bits) - 1);
  return operand;
}

template <class T>
static void fakeQuantGemm(const aq_view* in, const aq_view& out,
                          const aq_fake_quant_gemm_params& p) {
  const int64_t aRows = rowCount(in[0]), aCols = lastDim(in[0]);
  const int64_t bRows = rowCount(in[1]), bCols = lastDim(in[1]);
  const int64_t m = p.trans_a ? aCols : aRows, k = p.trans_a ? aRows : aCols;
  const int64_t n = p.trans_b ? bRows : bCols;
  const Operand<T> a = gridOperand<T>(in[0], p.trans_a != 0, in[2], in[3], p.a_bits, p.a_group);
  const Operand<T> b =
      gridOperand<T>(in[1], p.trans_b == 0, in[4], in[5], p.b_bits, p.b_group, ptr<T>(in[7]));
  gemm<T>(m, n, k, a, b, mut<T>(out), n, p.accumulate != 0,
          present(in[6]) ? ptr<T>(in[6]) : nullptr);
}

static int32_t fakeQuantGemm(const aq_view* in, const aq_view* out, const void* params,
                             aq_error* err) {
  const auto& p = *static_cast<const aq_fake_quant_gemm_params*>(params);
  return withScratch("fake_quant_gemm", err, [&]() -> int32_t {
    if (in[0].dtype == AQ_F64) {
      fakeQuantGemm<double>(in, out[0], p);
    } else {
      fakeQuantGemm<float>(in, out[0], p);
    }
    return AQ_OK;
  });
}
