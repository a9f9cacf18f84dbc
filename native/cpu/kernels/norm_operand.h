// norm_operand.h: rms_norm and layer_norm with the quantizer behind them, and the gradients through
// both: the ops one after the other, on a matrix between them that nobody sees. A CPU's products
// quantize while they pack, so that nothing is gained here; this is the exact twin that GPU kernels are
// held to.

// quant_operand of the rows of y: scale, zero and codes to `out`.
static int32_t quantizeRows(const aq_view& y, const aq_view& clip, int32_t bits, double floor,
                            const aq_view* out, aq_error* err) {
  const aq_quant_operand_params params = {floor, bits, 0, 0, 0, AQ_I8, 0};
  const aq_view in[] = {y, clip, {}, {}, {}};
  return quantOperand(nullptr, in, 5, out, 3, &params, err);
}

// fake_quant_grad of the rows of y: from g, of what was quantized, to gy and gclip.
static int32_t quantizeRowsGrad(const aq_view& y, const aq_view& clip, const aq_view* grid,
                                const aq_view& g, int32_t bits, double floor, const aq_view& gy,
                                const aq_view& gclip, aq_error* err) {
  const aq_fake_quant_grad_params params = {floor, bits, 0, 0, 1, 0, 0};
  const aq_view in[] = {y, grid[0], grid[1], g, clip, {}, {}, {}};
  const aq_view out[] = {gy, gclip, {}, {}, {}};
  return fake_quant_grad(nullptr, in, 8, out, 5, &params, err);
}

// The norm to a matrix that nobody sees, and what quantize(zero, y) makes of that. kSaved: numbers that the
// norm stores of every row, 1 (rstd) or 2 (mean, rstd).
template <int kSaved, class Quantize>
static int32_t normThen(const char* op, aq_kernel norm, const aq_view* in, const aq_view* out,
                        double eps, aq_error* err, const Quantize& quantize) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> values(numel(in[0]));
    if (!values.data()) return noPartials(err, op, numel(in[0]) * int64_t(sizeof(T)));
    aq_view y = in[0];
    y.data = values.data();
    static_assert(sizeof(aq_layer_norm_params) == sizeof(aq_rms_norm_params));
    const aq_rms_norm_params params = {eps};  // layer_norm's have the same form
    const aq_view normed[] = {y, out[0], kSaved > 1 ? out[1] : aq_view{}};
    const int32_t code = norm(nullptr, in, 3, normed, 1 + kSaved, &params, err);
    return code != AQ_OK ? code : quantize(zero, y);
  });
}

template <int kSaved, class Params>
static int32_t normOperand(const char* op, aq_kernel norm, const aq_view* in, const aq_view* out,
                           const void* params, aq_error* err) {
  const auto& o = *static_cast<const Params*>(params);
  return normThen<kSaved>(op, norm, in, out, o.eps, err, [&](auto, const aq_view& y) {
    return quantizeRows(y, in[3], o.bits, o.floor, out + kSaved, err);
  });
}

static int32_t rms_norm_operand(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                const void* params, aq_error* err) {
  return normOperand<1, aq_rms_norm_operand_params>("rms_norm_operand", rms_norm, in, out, params,
                                                    err);
}

static int32_t layer_norm_operand(aq_queue*, const aq_view* in, int32_t, const aq_view* out,
                                  int32_t, const void* params, aq_error* err) {
  return normOperand<2, aq_layer_norm_operand_params>("layer_norm_operand", layer_norm, in, out,
                                                      params, err);
}

// The norm's result, made again: in as its gradients are given it, x, w, b, one input, and what it stored.
template <int kSaved, class T>
static void normAgain(const aq_view* in, T* values) {
  const int64_t rows = rowCount(in[0]), cols = lastDim(in[0]);
  forRows(rows, cols, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
      const T* const x = ptr<T>(in[0]) + row * cols;
      T* const y = values + row * cols;
      if constexpr (kSaved > 1) {
        layerNormRow(x, ptr<T>(in[1]), ptr<T>(in[2]), ptr<T>(in[4])[row], ptr<T>(in[5])[row], y,
                     cols);
      } else {
        normalizeRow(x, ptr<T>(in[1]), ptr<T>(in[2]), ptr<T>(in[4])[row], y, cols);
      }
    }
  });
}

// From the gradient gy of the norm's result to its inputs; in as above, spare: numbers as many as x has.
template <int kSaved, class T>
static int32_t throughNorm(const aq_view* in, const aq_view& gy, int32_t needGx, T* spare,
                           const aq_view* out, aq_error* err) {
  if constexpr (kSaved > 1) {
    aq_view given = out[0];
    if (!needGx) {  // layer_norm_grad always writes it
      given = in[0];
      given.data = spare;
    }
    const aq_view inputs[] = {in[0], in[1], in[4], in[5], gy};
    const aq_view outputs[] = {given, out[1], out[2]};
    const aq_layer_norm_grad_params norm = {};
    return layer_norm_grad(nullptr, inputs, 5, outputs, 3, &norm, err);
  } else {
    const aq_rms_norm_grad_params norm = {needGx, present(in[2]) ? 1 : 0};
    const aq_view inputs[] = {in[0], in[1], in[4], gy};
    return rms_norm_grad(nullptr, inputs, 4, out, 3, &norm, err);
  }
}

// Back through the quantizer, which back(y, gy) takes from the norm's result to gy, and the norm.
template <int kSaved, class Back>
static int32_t normBack(const char* op, const aq_view* in, int32_t needGx, const aq_view* out,
                        aq_error* err, const Back& back) {
  const int64_t count = numel(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> values(count), gradients(count);
    if (!values.data() || !gradients.data())
      return noPartials(err, op, 2 * count * int64_t(sizeof(T)));
    normAgain<kSaved>(in, values.data());
    aq_view y = in[0], gy = in[0];
    y.data = values.data();
    gy.data = gradients.data();
    const int32_t code = back(y, gy);
    return code != AQ_OK ? code : throughNorm<kSaved>(in, gy, needGx, values.data(), out, err);
  });
}

template <int kSaved, class Params>
static int32_t normOperandGrad(const char* op, const aq_view* in, const aq_view* out,
                               const void* params, aq_error* err) {
  const auto& o = *static_cast<const Params*>(params);
  const aq_view* const grid = in + 4 + kSaved;  // scale, zero and the gradient
  return normBack<kSaved>(op, in, o.need_gx, out, err, [&](const aq_view& y, const aq_view& gy) {
    return quantizeRowsGrad(y, in[3], grid, grid[2], o.bits, o.floor, gy, out[3], err);
  });
}

static int32_t rms_norm_operand_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out,
                                     int32_t, const void* params, aq_error* err) {
  return normOperandGrad<1, aq_rms_norm_operand_grad_params>("rms_norm_operand_grad", in, out,
                                                             params, err);
}

static int32_t layer_norm_operand_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out,
                                       int32_t, const void* params, aq_error* err) {
  return normOperandGrad<2, aq_layer_norm_operand_grad_params>("layer_norm_operand_grad", in, out,
                                                               params, err);
}
