// block_fp4.h: norms and silu_mul with the quantizer of 4-bit floats behind them, and the gradients through
// both: the ops one after the other, as norm_operand.h has them of whole numbers.

// fp4_operand of the rows of y: global, scale, factor and numbers to `out`.
template <class T, class Params>
static int32_t quantizeFloats(const aq_view& y, const aq_view& g, const Params& o,
                              const aq_view* out, aq_error* err) {
  const aq_fp4_operand_params params = {o.format, o.dtype};
  const aq_view none = {}, search[] = {y, none, none, none};
  *mut<T>(out[0]) = present(g) ? *ptr<T>(g) : T(1);
  if (o.own) {
    if (const int32_t code = fp4_global(nullptr, search, 4, out, 1, nullptr, err)) return code;
  }
  const aq_view in[] = {y, o.own ? out[0] : g, none, none, none, none};
  return fp4_operand(nullptr, in, 6, out + 1, 3, &params, err);
}

// fp4_grad of the rows of y: from grad, of what was quantized, to gy.
static int32_t quantizeFloatsGrad(const aq_view& y, const aq_view& scale, const aq_view& g,
                                  const aq_view& grad, int32_t format, const aq_view& gy,
                                  aq_error* err) {
  const aq_fp4_grad_params params = {format, 1, 0, 0};
  const aq_view in[] = {y, scale, g, grad, {}, {}, {}, {}};
  const aq_view out[] = {gy, {}, {}, {}, {}};
  return fp4_grad(nullptr, in, 8, out, 5, &params, err);
}

template <int kSaved, class Params>
static int32_t normFp4(const char* op, aq_kernel norm, const aq_view* in, const aq_view* out,
                       const void* params, aq_error* err) {
  const auto& o = *static_cast<const Params*>(params);
  return normThen<kSaved>(op, norm, in, out, o.eps, err, [&](auto zero, const aq_view& y) {
    return quantizeFloats<decltype(zero)>(y, in[3], o, out + kSaved, err);
  });
}

static int32_t rms_norm_fp4(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                            const void* params, aq_error* err) {
  return normFp4<1, aq_rms_norm_fp4_params>("rms_norm_fp4", rms_norm, in, out, params, err);
}

static int32_t layer_norm_fp4(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                              const void* params, aq_error* err) {
  return normFp4<2, aq_layer_norm_fp4_params>("layer_norm_fp4", layer_norm, in, out, params, err);
}

template <int kSaved, class Params>
static int32_t normFp4Grad(const char* op, const aq_view* in, const aq_view* out,
                           const void* params, aq_error* err) {
  const auto& o = *static_cast<const Params*>(params);
  const aq_view* const scale = in + 4 + kSaved;  // the gradient behind it
  return normBack<kSaved>(op, in, o.need_gx, out, err, [&](const aq_view& y, const aq_view& gy) {
    return quantizeFloatsGrad(y, *scale, in[3], scale[1], o.format, gy, err);
  });
}

static int32_t rms_norm_fp4_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                 const void* params, aq_error* err) {
  return normFp4Grad<1, aq_rms_norm_fp4_grad_params>("rms_norm_fp4_grad", in, out, params, err);
}

static int32_t layer_norm_fp4_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out,
                                   int32_t, const void* params, aq_error* err) {
  return normFp4Grad<2, aq_layer_norm_fp4_grad_params>("layer_norm_fp4_grad", in, out, params, err);
}

static int32_t silu_mul_fp4(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                            const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_silu_mul_fp4_params*>(params);
  return siluMulThen("silu_mul_fp4", in, err, [&](auto zero, const aq_view& y) {
    return quantizeFloats<decltype(zero)>(y, in[2], o, out, err);
  });
}

static int32_t silu_mul_fp4_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                 const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_silu_mul_fp4_grad_params*>(params);
  const auto back = [&](const aq_view& y, const aq_view& gy) {
    return quantizeFloatsGrad(y, in[3], in[2], in[4], o.format, gy, err);
  };
  return siluMulBack("silu_mul_fp4_grad", in, o.bf16, out, err, back);
}
