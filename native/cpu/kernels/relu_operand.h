// relu_operand.h: relu with the quantizer behind it, and the gradient through both, as norm_operand.h has
// them of norms.

static int32_t relu_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                            int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_relu_operand_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> values(numel(in[0]));
    if (!values.data()) return noPartials(err, "relu_operand", numel(in[0]) * int64_t(sizeof(T)));
    aq_view y = in[0];
    y.data = values.data();
    relu(queue, in, 1, &y, 1, nullptr, err);
    return quantizeRows(y, in[1], o.bits, o.floor, out, err);
  });
}

static int32_t relu_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                                 int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_relu_operand_grad_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = numel(in[0]);
    const Partials<T> values(count), gradients(count);
    if (!values.data() || !gradients.data())
      return noPartials(err, "relu_operand_grad", 2 * count * int64_t(sizeof(T)));
    aq_view y = in[0], gy = in[0];
    y.data = values.data();
    gy.data = gradients.data();
    relu(queue, in, 1, &y, 1, nullptr, err);
    const int32_t code =
        quantizeRowsGrad(y, in[1], in + 2, in[4], o.bits, o.floor, gy, out[1], err);
    if (code != AQ_OK) return code;
    const aq_view inputs[] = {y, gy};
    return widened<relu_grad>(queue, inputs, 2, out, 1, nullptr, err);
  });
}
