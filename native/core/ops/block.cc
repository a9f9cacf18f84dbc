// Shape rules of the decoder block: rms_norm, layer_norm, rope, attention, silu_mul, relu and their
// gradients.
#include "native/core/op.h"
#include "native/core/ops/attention_rule.h"
#include "native/core/ops/rope_rule.h"

namespace aq {

namespace {

void inferRmsNorm(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2});
  in.elements(1, in.cols(0), "one per channel of x");
  if (in.has(2)) in.elements(2, in.cols(0), "one per channel of x");
  in.range("eps", in.params<aq_rms_norm_params>().eps, 0, 1);
  in.outputLike(0);
  in.output(dtype, {in.rows(0)});
}

void inferRmsNormGrad(Infer& in) {
  in.compute({0, 1, 2, 3});
  in.elements(1, in.cols(0), "one per channel of x");
  in.elements(2, in.rows(0), "one per row of x");
  in.elements(3, in.numel(0), "as many as x");
  const auto& p = in.params<aq_rms_norm_grad_params>();
  in.range("need_gx", p.need_gx, 0, 1);
  in.range("need_gb", p.need_gb, 0, 1);
  in.output(in.dtype(0), p.need_gx ? in.shape(0) : Shape{0});
  in.outputLike(1);
  in.output(in.dtype(0), p.need_gb ? in.shape(1) : Shape{0});
}

void inferLayerNorm(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2});
  in.elements(1, in.cols(0), "one per channel of x");
  in.elements(2, in.cols(0), "one per channel of x");
  in.range("eps", in.params<aq_layer_norm_params>().eps, 0, 1);
  in.outputLike(0);
  in.output(dtype, {in.rows(0)});
  in.output(dtype, {in.rows(0)});
}

void inferLayerNormGrad(Infer& in) {
  in.compute({0, 1, 2, 3, 4});
  in.elements(1, in.cols(0), "one per channel of x");
  in.elements(2, in.rows(0), "one per row of x");
  in.elements(3, in.rows(0), "one per row of x");
  in.elements(4, in.numel(0), "as many as x");
  in.outputLike(0);
  in.outputLike(1);
  in.outputLike(1);
}

void inferRope(Infer& in) {
  in.compute({0, 1, 2});
  const auto& p = in.params<aq_rope_params>();
  checkRope(in, p.heads);
  in.range("bf16", p.bf16, 0, in.dtype(0) == AQ_F32 ? 1 : 0);
  in.output(p.bf16 ? int32_t(AQ_BF16) : in.dtype(0), in.shape(0));
}

void inferAttention(Infer& in) {
  const auto& p = in.params<aq_attention_params>();
  const AttentionShape s = checkAttention(in, p.heads, p.kv_heads, p.bits);
  in.outputLike(0);
  in.output(s.dtype, {s.batch, p.heads, s.tokens});
  outputKept(in, s, p);
}

void inferAttentionGrad(Infer& in) {
  const auto& p = in.params<aq_attention_grad_params>();
  const AttentionShape s = checkAttention(in, p.heads, p.kv_heads, p.bits);
  in.compute({0, 9, 10, 11});
  in.elements(9, in.numel(0), "as many as q");
  in.elements(10, s.batch * p.heads * s.tokens, "one per head and token");
  in.elements(11, in.numel(0), "as many as q");
  checkKept(in, 12, s, p);
  in.outputLike(0);
  in.outputLike(1);
  in.outputLike(2);
}

void inferSiluMul(Infer& in) {
  in.compute({0, 1});
  in.same(0, 1);
  in.outputLike(0);
}

void inferSiluMulGrad(Infer& in) {
  in.compute({0, 1, 2});
  in.same(0, 1);
  in.elements(2, in.numel(0), "as many as gate");
  const int32_t isShort = in.params<aq_silu_mul_grad_params>().bf16;
  in.range("bf16", isShort, 0, in.dtype(0) == AQ_F32 ? 1 : 0);
  for (int i = 0; i < 2; i++) in.output(isShort ? int32_t(AQ_BF16) : in.dtype(0), in.shape(i));
}

void inferRelu(Infer& in) {
  in.compute({0});
  in.outputLike(0);
}

void inferReluGrad(Infer& in) {
  in.compute({0, 1});
  in.elements(1, in.numel(0), "as many as y");
  in.outputLike(0);
}

}  // namespace

void addBlockOps(std::vector<OpSpec>& ops) {
  using Att = aq_attention_params;
  using AttGrad = aq_attention_grad_params;
  const std::vector<InputSpec> attention = attentionInputs();
  std::vector<InputSpec> attentionGrad = attention;
  attentionGrad.insert(attentionGrad.end(), {{"o"}, {"lse"}, {"go"}, {"kept", kOptional}});

  ops.push_back({"rms_norm",
                 {{"x"}, {"w"}, {"b", kOptional}},
                 {"y", "rstd"},
                 {AQ_FLOAT(aq_rms_norm_params, eps)},
                 sizeof(aq_rms_norm_params),
                 inferRmsNorm});
  ops.push_back(
      {"rms_norm_grad",
       {{"x"}, {"w"}, {"rstd"}, {"g"}},
       {"gx", "gw", "gb"},
       {AQ_INT(aq_rms_norm_grad_params, need_gx), AQ_INT(aq_rms_norm_grad_params, need_gb)},
       sizeof(aq_rms_norm_grad_params),
       inferRmsNormGrad});
  ops.push_back({"layer_norm",
                 {{"x"}, {"w"}, {"b"}},
                 {"y", "mean", "rstd"},
                 {AQ_FLOAT(aq_layer_norm_params, eps)},
                 sizeof(aq_layer_norm_params),
                 inferLayerNorm});
  ops.push_back({"layer_norm_grad",
                 {{"x"}, {"w"}, {"mean"}, {"rstd"}, {"g"}},
                 {"gx", "gw", "gb"},
                 {},
                 sizeof(aq_layer_norm_grad_params),
                 inferLayerNormGrad});
  ops.push_back({"rope",
                 {{"x"}, {"cos"}, {"sin"}},
                 {"y"},
                 {AQ_INT(aq_rope_params, heads), AQ_INT(aq_rope_params, inverse),
                  AQ_INT(aq_rope_params, bf16)},
                 sizeof(aq_rope_params),
                 inferRope});
  ops.push_back({"attention",
                 attention,
                 {"o", "lse", "kept"},
                 {AQ_INT(Att, heads), AQ_INT(Att, kv_heads), AQ_INT(Att, bits), AQ_INT(Att, keep),
                  AQ_FLOAT(Att, scale)},
                 sizeof(Att),
                 inferAttention});
  ops.push_back({"attention_grad",
                 attentionGrad,
                 {"gq", "gk", "gv"},
                 {AQ_INT(AttGrad, heads), AQ_INT(AttGrad, kv_heads), AQ_INT(AttGrad, bits),
                  AQ_FLOAT(AttGrad, scale)},
                 sizeof(AttGrad),
                 inferAttentionGrad});
  ops.push_back(
      {"silu_mul", {{"gate"}, {"up"}}, {"y"}, {}, sizeof(aq_silu_mul_params), inferSiluMul});
  ops.push_back({"silu_mul_grad",
                 {{"gate"}, {"up"}, {"g"}},
                 {"ggate", "gup"},
                 {AQ_INT(aq_silu_mul_grad_params, bf16)},
                 sizeof(aq_silu_mul_grad_params),
                 inferSiluMulGrad});
  ops.push_back({"relu", {{"x"}}, {"y"}, {}, sizeof(aq_relu_params), inferRelu});
  ops.push_back(
      {"relu_grad", {{"y"}, {"g"}}, {"gx"}, {}, sizeof(aq_relu_grad_params), inferReluGrad});
}

}  // namespace aq
