// silu_mul_operand.h: silu_mul with the quantizer behind it, and the gradient through both, as
// norm_operand.h has them of norms.

// silu_mul to a matrix that nobody sees, and what quantize(zero, y) makes of that.
template <class Quantize>
static int32_t siluMulThen(const char* op, const aq_view* in, aq_error* err,
                           const Quantize& quantize) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> values(numel(in[0]));
    if (!values.data()) return noPartials(err, op, numel(in[0]) * int64_t(sizeof(T)));
    aq_view y = in[0];
    y.data = values.data();
    const int32_t code = silu_mul(nullptr, in, 2, &y, 1, nullptr, err);
    return code != AQ_OK ? code : quantize(zero, y);
  });
}

// Back through the quantizer, which back(y, gy) takes from silu_mul's result to gy, and silu_mul.
template <class Back>
static int32_t siluMulBack(const char* op, const aq_view* in, int32_t bf16, const aq_view* out,
                           aq_error* err, const Back& back) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = numel(in[0]);
    const Partials<T> values(count), gradients(count);
    if (!values.data() || !gradients.data())
      return noPartials(err, op, 2 * count * int64_t(sizeof(T)));
    aq_view y = in[0], gy = in[0];
    y.data = values.data();
    gy.data = gradients.data();
    int32_t code = silu_mul(nullptr, in, 2, &y, 1, nullptr, err);
    if (code == AQ_OK) code = back(y, gy);
    if (code != AQ_OK) return code;
    const aq_silu_mul_grad_params gate = {bf16, 0};
    const aq_view inputs[] = {in[0], in[1], gy};
    return widened<silu_mul_grad>(nullptr, inputs, 3, out, 2, &gate, err);
  });
}

static int32_t silu_mul_operand(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_silu_mul_operand_params*>(params);
  return siluMulThen("silu_mul_operand", in, err, [&](auto, const aq_view& y) {
    return quantizeRows(y, in[2], o.bits, o.floor, out, err);
  });
}

static int32_t silu_mul_operand_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out,
                                     int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_silu_mul_operand_grad_params*>(params);
  const auto back = [&](const aq_view& y, const aq_view& gy) {
    return quantizeRowsGrad(y, in[2], in + 3, in[5], o.bits, o.floor, gy, out[2], err);
  };
  return siluMulBack("silu_mul_operand_grad", in, o.bf16, out, err, back);
}
