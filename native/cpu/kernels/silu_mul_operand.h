// silu_mul_operand.h: silu_mul with the quantizer behind it, and the gradient through both, as
// norm_operand.h has them of norms.

static int32_t silu_mul_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                                int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_silu_mul_operand_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> values(numel(in[0]));
    if (!values.data())
      return noPartials(err, "silu_mul_operand", numel(in[0]) * int64_t(sizeof(T)));
    aq_view y = in[0];
    y.data = values.data();
    silu_mul(queue, in, 2, &y, 1, nullptr, err);
    return quantizeRows(y, in[2], o.bits, o.floor, out, err);
  });
}

static int32_t silu_mul_operand_grad(aq_queue* queue, const aq_view* in, int32_t,
                                     const aq_view* out, int32_t, const void* params,
                                     aq_error* err) {
  const auto& o = *static_cast<const aq_silu_mul_operand_grad_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = numel(in[0]);
    const Partials<T> values(count), gradients(count);
    if (!values.data() || !gradients.data())
      return noPartials(err, "silu_mul_operand_grad", 2 * count * int64_t(sizeof(T)));
    aq_view y = in[0], gy = in[0];
    y.data = values.data();
    gy.data = gradients.data();
    silu_mul(queue, in, 2, &y, 1, nullptr, err);
    const int32_t code =
        quantizeRowsGrad(y, in[2], in + 3, in[5], o.bits, o.floor, gy, out[2], err);
    if (code != AQ_OK) return code;
    const aq_silu_mul_grad_params gate = {o.bf16, 0};
    const aq_view inputs[] = {in[0], in[1], gy};
    return widened<silu_mul_grad>(queue, inputs, 3, out, 2, &gate, err);
  });
}
