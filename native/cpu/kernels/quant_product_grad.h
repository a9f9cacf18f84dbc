// quant_product_grad.h: the gradients of a fake-quantized matrix whose own gradient is a product: that
// in scratch, then fake_quant_grad.

static int32_t quant_product_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                                  int32_t n_out, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_quant_product_grad_params*>(params);
  const aq_view &added = in[3], &x = in[4];
  const bool isShort = isShortType(x.dtype);
  const int64_t bytes = numel(x) * (isShort ? 2 : x.dtype == AQ_F64 ? 8 : 4);
  const Partials<char> memory(bytes);
  if (!memory.data()) return noPartials(err, "quant_product_grad", bytes);
  aq_view gradient = x;
  gradient.dtype = isShort ? int32_t(AQ_BF16) : x.dtype;
  gradient.data = memory.data();
  if (present(added)) std::memcpy(memory.data(), added.data, size_t(bytes));

  aq_view factors[WidenedViews::kMost] = {in[0], in[1]};
  factors[4] = in[2];  // of b
  aq_fake_quant_gemm_params product = {};
  product.trans_a = o.trans_a;
  product.bf16 = isShort;
  product.accumulate = present(added);
  if (const int32_t code = operandGemm(queue, factors, 10, &gradient, 1, &product, err))
    return code;
  const aq_fake_quant_grad_params quantizer = {o.floor,   o.bits, o.group, o.symmetric,
                                               o.need_gx, o.rule, 0};
  const aq_view of[] = {x, in[5], in[6], gradient, in[7], in[8], in[9], in[10]};
  return widened<fake_quant_grad>(queue, of, 8, out, n_out, &quantizer, err);
}
