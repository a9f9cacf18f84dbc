// rope_grid.h: rope with the grids of the heads it turns, and the gradient through both, as norm_operand.h
// has them of norms.

static int32_t rope_grid(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_rope_grid_params*>(params);
  const aq_rope_params turn = {o.heads, 0, 0, 0};
  const int32_t code = rope(queue, in, 3, out, 1, &turn, err);
  if (code != AQ_OK) return code;
  const int32_t size = int32_t(2 * lastDim(in[1]));
  const aq_quant_grid_params grid = {o.floor, o.bits, size, 0, 0, 0, 0};
  const aq_view inputs[] = {out[0], in[3], {}, {}};
  return quant_grid(queue, inputs, 4, out + 1, 2, &grid, err);
}

static int32_t rope_grid_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                              int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_rope_grid_grad_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Partials<T> gradients(numel(in[0]));
    if (!gradients.data())
      return noPartials(err, "rope_grid_grad", numel(in[0]) * int64_t(sizeof(T)));
    aq_view gy = in[0];
    gy.data = gradients.data();
    const int32_t size = int32_t(2 * lastDim(in[1]));
    const aq_fake_quant_grad_params quantizer = {o.floor, o.bits, size, 0, 1, 0, 0};
    const aq_view inputs[] = {in[0], in[4], in[5], in[6], in[3], {}, {}, {}};
    const aq_view outputs[] = {gy, out[1], {}, {}, {}};
    const int32_t code = fake_quant_grad(queue, inputs, 8, outputs, 5, &quantizer, err);
    if (code != AQ_OK) return code;
    const aq_rope_params turn = {o.heads, 1, o.bf16, 0};
    const aq_view turned[] = {gy, in[1], in[2]};
    return widened<rope>(queue, turned, 3, out, 1, &turn, err);
  });
}
