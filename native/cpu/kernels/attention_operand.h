// attention_operand.h: attention with the quantizer of its result, and the gradient through both, as
// norm_operand.h has them of norms; but the result stays, for the gradient.

static int32_t attention_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                                 int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_attention_operand_params*>(params);
  const aq_attention_params heads = {o.scale, o.heads, o.kv_heads, o.bits, 0};
  const int32_t code = attention(queue, in, 9, out, 2, &heads, err);
  return code != AQ_OK ? code : quantizeRows(out[0], in[9], o.row_bits, o.floor, out + 3, err);
}

static int32_t attention_operand_grad(aq_queue* queue, const aq_view* in, int32_t,
                                      const aq_view* out, int32_t, const void* params,
                                      aq_error* err) {
  const auto& o = *static_cast<const aq_attention_operand_grad_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> gradients(numel(in[0]));
    if (!gradients.data())
      return noPartials(err, "attention_operand_grad", numel(in[0]) * int64_t(sizeof(T)));
    aq_view go = in[0];
    go.data = gradients.data();
    const int32_t code =
        quantizeRowsGrad(in[10], in[9], in + 12, in[14], o.row_bits, o.floor, go, out[3], err);
    if (code != AQ_OK) return code;
    aq_view inputs[12];
    for (int i = 0; i < 9; i++) inputs[i] = in[i];
    inputs[9] = in[10];
    inputs[10] = in[11];
    inputs[11] = go;
    const aq_attention_grad_params heads = {o.scale, o.heads, o.kv_heads, o.bits, 0};
    return attention_grad(queue, inputs, 12, out, 3, &heads, err);
  });
}
