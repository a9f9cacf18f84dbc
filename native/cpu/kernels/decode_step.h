// decode_step.h: norm_rounded and silu_mul_joined, which make what the products of a decoding step on
// a GPU read. On a CPU nobody is faster for them; they are the exact twins.

static int32_t norm_rounded(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                            int32_t, const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_norm_rounded_params*>(params);
  WidenedViews result;
  const int64_t rows = rowCount(in[0]), columns = lastDim(in[0]);
  const int64_t bytes = (2 * rows + columns) * int64_t(sizeof(double));
  if (!result.add(out[0], false)) return noPartials(err, "norm_rounded", bytes);
  const int32_t code = visitFloat(in[0].dtype, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    const Partials<T> mean(rows), rstd(rows), none(columns);
    if (!mean.data() || !rstd.data() || !none.data()) return noPartials(err, "norm_rounded", bytes);
    const aq_view y = result.views()[0],
                  of[] = {{mean.data(), y.dtype, 1, {rows}}, {rstd.data(), y.dtype, 1, {rows}}};
    if (!p.centred) {
      const aq_rms_norm_params plain = {p.eps};
      const aq_view outs[] = {y, of[1]};
      return rms_norm(queue, in, 3, outs, 2, &plain, err);
    }
    std::fill(none.data(), none.data() + columns, T(0));
    const aq_view shift = present(in[2]) ? in[2] : aq_view{none.data(), y.dtype, 1, {columns}};
    const aq_layer_norm_params plain = {p.eps};
    const aq_view ins[] = {in[0], in[1], shift}, outs[] = {y, of[0], of[1]};
    return layer_norm(queue, ins, 3, outs, 3, &plain, err);
  });
  if (code == AQ_OK) result.finish();
  return code;
}

static int32_t silu_mul_joined(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                               const void*, aq_error* err) {
  WidenedViews result;
  if (!result.add(out[0], false))
    return noPartials(err, "silu_mul_joined", numel(out[0]) * int64_t(sizeof(float)));
  const aq_view& y = result.views()[0];
  const int32_t code = visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t half = lastDim(y);
    forRows(rowCount(y), half, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const T* const x = ptr<T>(in[0]) + 2 * row * half;
        siluMulRange(x, x + half, mut<T>(y) + row * half, half);
      }
    });
    return int32_t(AQ_OK);
  });
  if (code == AQ_OK) result.finish();
  return code;
}
