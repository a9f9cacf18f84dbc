// scaled.h: quant_grid, fake_quant_gemm and fake_quant_grad, of a matrix as it is or of r_m x_mk c_k. The
// scaled matrix is made in scratch: on a CPU the multiplications cost more than the memory they save,
// so that callers scale once; this is the exact twin of backends that scale while they load.

// diag(r) x diag(c) in memory that lives as long as this; data() is null where there was none left.
template <class T>
class Scaled {
 public:
  Scaled(const aq_view& x, const aq_view& r, const aq_view& c) : values_(numel(x)), view_(x) {
    view_.data = values_.data();
    const aq_view in[] = {x, r, c};
    if (values_.data()) scale_weight(nullptr, in, 3, &view_, 1, nullptr, nullptr);
  }
  const T* data() const { return values_.data(); }
  const aq_view& view() const { return view_; }

 private:
  Partials<T> values_;
  aq_view view_;
};

static int32_t quant_grid(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  if (!present(in[2]) && !present(in[3])) return quantGrid(in, out, params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Scaled<T> x(in[0], in[2], in[3]);
    if (!x.data()) return noPartials(err, "quant_grid", numel(in[0]) * int64_t(sizeof(T)));
    const aq_view scaled[] = {x.view(), in[1]};
    return quantGrid(scaled, out, params);
  });
}

static int32_t fake_quant_gemm(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                               const void* params, aq_error* err) {
  if (!present(in[8]) && !present(in[9])) return fakeQuantGemm(in, out, params, err);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Scaled<T> b(in[1], in[8], in[9]);
    if (!b.data()) return noPartials(err, "fake_quant_gemm", numel(in[1]) * int64_t(sizeof(T)));
    const aq_view scaled[] = {in[0], b.view(), in[2], in[3], in[4], in[5], in[6], in[7]};
    return fakeQuantGemm(scaled, out, params, err);
  });
}

// With y = r x c and its gradient gy: gx = r gy c, and gr, gc as scale_weight_grad has them.
static int32_t fake_quant_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                               const void* params, aq_error* err) {
  const aq_view &r = in[6], &c = in[7];
  if (!present(r) && !present(c)) return fakeQuantGrad(in, out, params, err);
  auto o = *static_cast<const aq_fake_quant_grad_params*>(params);
  const bool needGx = o.need_gx != 0;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Scaled<T> y(in[0], r, c);
    const Partials<T> gradient(numel(in[0])), rows(rowCount(in[0])), columns(lastDim(in[0]));
    if (!y.data() || !gradient.data() || !rows.data() || !columns.data()) {
      return noPartials(err, "fake_quant_grad", 2 * numel(in[0]) * int64_t(sizeof(T)));
    }
    aq_view gy = in[0];
    gy.data = gradient.data();
    o.need_gx = 1;
    const aq_view of[] = {y.view(), in[1], in[2], in[3], in[4], in[5]};
    const aq_view to[] = {gy, out[1], out[2]};
    if (const int32_t code = fakeQuantGrad(of, to, &o, err)) return code;

    const aq_view scaling[] = {in[0], r, c, gy};
    aq_view sums[] = {out[3], out[4]};
    if (!present(r)) sums[0].data = rows.data();
    if (!present(c)) sums[1].data = columns.data();
    if (const int32_t code = scale_weight_grad(nullptr, scaling, 4, sums, 2, nullptr, err))
      return code;
    const aq_view chain[] = {gy, r, c};
    return needGx ? scale_weight(nullptr, chain, 3, out, 1, nullptr, err) : int32_t(AQ_OK);
  });
}
