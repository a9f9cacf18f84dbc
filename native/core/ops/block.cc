// Shape rules of the decoder block: rms_norm, layer_norm, rope, attention, silu_mul, relu and their
// gradients.
#include "native/core/op.h"

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
  in.range("heads", p.heads, 1, 1 << 20);
  in.same(1, 2);
  in.rank(1, 2);
  const Shape& table = in.shape(1);
  if (in.cols(0) != int64_t(p.heads) * 2 * table[1]) {
    in.fail(AQ_SHAPE, "x %s has rows of %lld, %d heads with a table %s need %lld",
            toString(in.shape(0)).c_str(), static_cast<long long>(in.cols(0)), p.heads,
            toString(table).c_str(), static_cast<long long>(2 * p.heads * table[1]));
  }
  if (table[0] < 1 || in.rows(0) % table[0] != 0) {
    in.fail(AQ_SHAPE, "%lld rows of x are not whole sequences of %lld positions",
            static_cast<long long>(in.rows(0)), static_cast<long long>(table[0]));
  }
  in.outputLike(0);
}

// Shared by attention and attention_grad; returns the batch, tokens and dtype.
struct AttentionShape {
  int64_t batch, tokens;
  int32_t dtype;
};

AttentionShape checkAttention(const Infer& in, int32_t heads, int32_t kvHeads, int32_t bits) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4, 5, 6, 7, 8});
  in.range("heads", heads, 1, 1 << 20);
  in.range("kv_heads", kvHeads, 1, heads);
  for (int i = 0; i < 3; i++) in.rank(i, 3);
  in.same(1, 2);
  const Shape& q = in.shape(0);
  const Shape& k = in.shape(1);
  if (heads % kvHeads != 0 || q[2] % heads != 0 || k[2] != q[2] / heads * kvHeads || q[0] != k[0] ||
      q[1] != k[1]) {
    in.fail(AQ_SHAPE, "q %s, k %s do not fit %d query and %d kv heads", toString(q).c_str(),
            toString(k).c_str(), heads, kvHeads);
  }
  bool quantized = false;
  for (int i = 0; i < 3; i++) {
    const int scale = 3 + 2 * i;
    if (in.has(scale) != in.has(scale + 1)) {
      in.fail(AQ_ARG, "%s needs both its scale and its zero, or neither",
              i == 0   ? "q"
              : i == 1 ? "k"
                       : "v");
    }
    if (!in.has(scale)) continue;
    quantized = true;
    const int64_t count = q[0] * q[1] * (i == 0 ? heads : kvHeads);
    in.elements(scale, count, "one per token and head");
    in.elements(scale + 1, count, "one per token and head");
  }
  if (quantized) in.range("bits", bits, 1, 8);
  return {q[0], q[1], dtype};
}

void inferAttention(Infer& in) {
  const auto& p = in.params<aq_attention_params>();
  const AttentionShape s = checkAttention(in, p.heads, p.kv_heads, p.bits);
  in.outputLike(0);
  in.output(s.dtype, {s.batch, p.heads, s.tokens});
}

void inferAttentionGrad(Infer& in) {
  const auto& p = in.params<aq_attention_grad_params>();
  const AttentionShape s = checkAttention(in, p.heads, p.kv_heads, p.bits);
  in.compute({0, 9, 10, 11});
  in.elements(9, in.numel(0), "as many as q");
  in.elements(10, s.batch * p.heads * s.tokens, "one per head and token");
  in.elements(11, in.numel(0), "as many as q");
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
  const std::vector<InputSpec> attention = {{"q"},
                                            {"k"},
                                            {"v"},
                                            {"q_scale", kOptional},
                                            {"q_zero", kOptional},
                                            {"k_scale", kOptional},
                                            {"k_zero", kOptional},
                                            {"v_scale", kOptional},
                                            {"v_zero", kOptional}};
  std::vector<InputSpec> attentionGrad = attention;
  attentionGrad.insert(attentionGrad.end(), {{"o"}, {"lse"}, {"go"}});

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
                 {AQ_INT(aq_rope_params, heads), AQ_INT(aq_rope_params, inverse)},
                 sizeof(aq_rope_params),
                 inferRope});
  ops.push_back(
      {"attention",
       attention,
       {"o", "lse"},
       {AQ_INT(Att, heads), AQ_INT(Att, kv_heads), AQ_INT(Att, bits), AQ_FLOAT(Att, scale)},
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
