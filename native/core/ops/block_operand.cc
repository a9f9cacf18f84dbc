// Shape rules of what a block makes for products alone: norms, silu_mul, relu and attention with the
// quantizer behind them, rope with the grids, and the gradients.
#include "native/core/op.h"
#include "native/core/ops/attention_rule.h"
#include "native/core/ops/rope_rule.h"

namespace aq {

namespace {

// The logit, if given, and what codes of whole rows need.
void checkRows(const Infer& in, int clip, const char* bits, int32_t value, double floor) {
  if (in.has(clip)) in.elements(clip, 1, "one for all rows");
  in.range(bits, value, 1, 7);
  in.range("floor", floor, 1e-30, 1e30);
}

template <class P>
void checkQuantizer(const Infer& in, int clip, const P& p) {
  checkRows(in, clip, "bits", p.bits, p.floor);
}

// scale, zero and y of the rows of input 0.
void outputCodes(Infer& in, int32_t dtype) {
  const Shape grid = {in.rows(0), in.cols(0) ? 1 : 0};
  in.output(dtype, grid);
  in.output(dtype, grid);
  in.output(AQ_I8, in.shape(0));
}

// scale and zero, inputs s and s+1, and the gradient of y behind them.
void checkStored(const Infer& in, int s) {
  const int64_t count = in.cols(0) ? in.rows(0) : 0;
  in.elements(s, count, "one per row");
  in.elements(s + 1, count, "one per row");
  in.elements(s + 2, in.numel(0), "as many as y");
}

void outputClipGradient(Infer& in, int32_t dtype, int clip) {
  in.output(dtype, in.has(clip) ? in.shape(clip) : Shape{0});
}

void checkGain(const Infer& in) {
  in.elements(1, in.cols(0), "one per channel of x");
  if (in.has(2)) in.elements(2, in.cols(0), "one per channel of x");
}

template <class P>
void inferNormOperand(Infer& in, bool isCentered) {
  const int32_t dtype = in.compute({0, 1, 2, 3});
  const auto& p = in.params<P>();
  checkGain(in);
  checkQuantizer(in, 3, p);
  in.range("eps", p.eps, 0, 1);
  for (int i = isCentered ? 0 : 1; i < 2; i++) in.output(dtype, {in.rows(0)});
  outputCodes(in, dtype);
}

// saved: inputs from 4 on that the norm itself stored.
template <class P>
void inferNormOperandGrad(Infer& in, int saved) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4, 5, 6, 7});
  if (saved > 1) in.compute({0, 8});
  const auto& p = in.params<P>();
  checkGain(in);
  checkQuantizer(in, 3, p);
  in.range("need_gx", p.need_gx, 0, 1);
  for (int i = 0; i < saved; i++) in.elements(4 + i, in.rows(0), "one per row of x");
  checkStored(in, 4 + saved);
  in.output(dtype, p.need_gx ? in.shape(0) : Shape{0});
  in.outputLike(1);
  in.output(dtype, in.has(2) ? in.shape(2) : Shape{0});
  outputClipGradient(in, dtype, 3);
}

void inferRmsNormOperand(Infer& in) { inferNormOperand<aq_rms_norm_operand_params>(in, false); }

void inferRmsNormOperandGrad(Infer& in) {
  inferNormOperandGrad<aq_rms_norm_operand_grad_params>(in, 1);
}

void inferLayerNormOperand(Infer& in) { inferNormOperand<aq_layer_norm_operand_params>(in, true); }

void inferLayerNormOperandGrad(Infer& in) {
  inferNormOperandGrad<aq_layer_norm_operand_grad_params>(in, 2);
}

void inferSiluMulOperand(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2});
  in.same(0, 1);
  checkQuantizer(in, 2, in.params<aq_silu_mul_operand_params>());
  outputCodes(in, dtype);
}

void inferSiluMulOperandGrad(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4, 5});
  const auto& p = in.params<aq_silu_mul_operand_grad_params>();
  in.same(0, 1);
  checkQuantizer(in, 2, p);
  checkStored(in, 3);
  in.range("bf16", p.bf16, 0, dtype == AQ_F32 ? 1 : 0);
  for (int i = 0; i < 2; i++) in.output(p.bf16 ? int32_t(AQ_BF16) : dtype, in.shape(i));
  outputClipGradient(in, dtype, 2);
}

void inferReluOperand(Infer& in) {
  const int32_t dtype = in.compute({0, 1});
  checkQuantizer(in, 1, in.params<aq_relu_operand_params>());
  outputCodes(in, dtype);
}

void inferReluOperandGrad(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4});
  const auto& p = in.params<aq_relu_operand_grad_params>();
  checkQuantizer(in, 1, p);
  checkStored(in, 2);
  in.range("bf16", p.bf16, 0, dtype == AQ_F32 ? 1 : 0);
  in.output(p.bf16 ? int32_t(AQ_BF16) : dtype, in.shape(0));
  outputClipGradient(in, dtype, 1);
}

void inferAttentionOperand(Infer& in) {
  const auto& p = in.params<aq_attention_operand_params>();
  const AttentionShape s = checkAttention(in, p.heads, p.kv_heads, p.bits);
  in.compute(s.dtype, {9});
  checkRows(in, 9, "row_bits", p.row_bits, p.floor);
  in.outputLike(0);
  in.output(s.dtype, {s.batch, p.heads, s.tokens});
  outputKept(in, s, p);
  outputCodes(in, s.dtype);
}

void inferAttentionOperandGrad(Infer& in) {
  const auto& p = in.params<aq_attention_operand_grad_params>();
  const AttentionShape s = checkAttention(in, p.heads, p.kv_heads, p.bits);
  in.compute(s.dtype, {9, 10, 11, 12, 13, 14});
  checkRows(in, 9, "row_bits", p.row_bits, p.floor);
  in.elements(10, in.numel(0), "as many as q");
  in.elements(11, s.batch * p.heads * s.tokens, "one per head and token");
  checkStored(in, 12);
  checkKept(in, 15, s, p);
  for (int i = 0; i < 3; i++) in.outputLike(i);
  outputClipGradient(in, s.dtype, 9);
}

void inferRopeGrid(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2, 3});
  const auto& p = in.params<aq_rope_grid_params>();
  checkRope(in, p.heads);
  checkRows(in, 3, "bits", p.bits, p.floor);
  in.outputLike(0);
  for (int i = 0; i < 2; i++) in.output(dtype, {in.rows(0), p.heads});
}

void inferRopeGridGrad(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4, 5, 6});
  const auto& p = in.params<aq_rope_grid_grad_params>();
  checkRope(in, p.heads);
  checkRows(in, 3, "bits", p.bits, p.floor);
  for (int i = 4; i < 6; i++) in.elements(i, in.rows(0) * p.heads, "one per token and head");
  in.elements(6, in.numel(0), "as many as y");
  in.range("bf16", p.bf16, 0, dtype == AQ_F32 ? 1 : 0);
  in.output(p.bf16 ? int32_t(AQ_BF16) : dtype, in.shape(0));
  outputClipGradient(in, dtype, 3);
}

}  // namespace

void addBlockOperandOps(std::vector<OpSpec>& ops) {
  using Norm = aq_rms_norm_operand_params;
  using NormGrad = aq_rms_norm_operand_grad_params;
  using Layer = aq_layer_norm_operand_params;
  using LayerGrad = aq_layer_norm_operand_grad_params;
  using Gate = aq_silu_mul_operand_params;
  using GateGrad = aq_silu_mul_operand_grad_params;
  ops.push_back({"rms_norm_operand",
                 {{"x"}, {"w"}, {"b", kOptional}, {"clip", kOptional}},
                 {"rstd", "scale", "zero", "y"},
                 {AQ_FLOAT(Norm, eps), AQ_FLOAT(Norm, floor), AQ_INT(Norm, bits)},
                 sizeof(Norm),
                 inferRmsNormOperand});
  ops.push_back(
      {"rms_norm_operand_grad",
       {{"x"}, {"w"}, {"b", kOptional}, {"clip", kOptional}, {"rstd"}, {"scale"}, {"zero"}, {"g"}},
       {"gx", "gw", "gb", "gclip"},
       {AQ_FLOAT(NormGrad, floor), AQ_INT(NormGrad, bits), AQ_INT(NormGrad, need_gx)},
       sizeof(NormGrad),
       inferRmsNormOperandGrad});
  ops.push_back({"layer_norm_operand",
                 {{"x"}, {"w"}, {"b"}, {"clip", kOptional}},
                 {"mean", "rstd", "scale", "zero", "y"},
                 {AQ_FLOAT(Layer, eps), AQ_FLOAT(Layer, floor), AQ_INT(Layer, bits)},
                 sizeof(Layer),
                 inferLayerNormOperand});
  ops.push_back(
      {"layer_norm_operand_grad",
       {{"x"}, {"w"}, {"b"}, {"clip", kOptional}, {"mean"}, {"rstd"}, {"scale"}, {"zero"}, {"g"}},
       {"gx", "gw", "gb", "gclip"},
       {AQ_FLOAT(LayerGrad, floor), AQ_INT(LayerGrad, bits), AQ_INT(LayerGrad, need_gx)},
       sizeof(LayerGrad),
       inferLayerNormOperandGrad});
  ops.push_back({"silu_mul_operand",
                 {{"gate"}, {"up"}, {"clip", kOptional}},
                 {"scale", "zero", "y"},
                 {AQ_FLOAT(Gate, floor), AQ_INT(Gate, bits)},
                 sizeof(Gate),
                 inferSiluMulOperand});
  ops.push_back({"silu_mul_operand_grad",
                 {{"gate"}, {"up"}, {"clip", kOptional}, {"scale"}, {"zero"}, {"g"}},
                 {"ggate", "gup", "gclip"},
                 {AQ_FLOAT(GateGrad, floor), AQ_INT(GateGrad, bits), AQ_INT(GateGrad, bf16)},
                 sizeof(GateGrad),
                 inferSiluMulOperandGrad});
  using Relu = aq_relu_operand_params;
  using ReluGrad = aq_relu_operand_grad_params;
  ops.push_back({"relu_operand",
                 {{"x"}, {"clip", kOptional}},
                 {"scale", "zero", "y"},
                 {AQ_FLOAT(Relu, floor), AQ_INT(Relu, bits)},
                 sizeof(Relu),
                 inferReluOperand});
  ops.push_back({"relu_operand_grad",
                 {{"x"}, {"clip", kOptional}, {"scale"}, {"zero"}, {"g"}},
                 {"gx", "gclip"},
                 {AQ_FLOAT(ReluGrad, floor), AQ_INT(ReluGrad, bits), AQ_INT(ReluGrad, bf16)},
                 sizeof(ReluGrad),
                 inferReluOperandGrad});
  using Att = aq_attention_operand_params;
  using AttGrad = aq_attention_operand_grad_params;
  std::vector<InputSpec> attention = attentionInputs();
  attention.push_back({"clip", kOptional});
  ops.push_back(
      {"attention_operand",
       attention,
       {"o", "lse", "kept", "scale", "zero", "y"},
       {AQ_FLOAT(Att, scale), AQ_FLOAT(Att, floor), AQ_INT(Att, heads), AQ_INT(Att, kv_heads),
        AQ_INT(Att, bits), AQ_INT(Att, row_bits), AQ_INT(Att, keep)},
       sizeof(Att),
       inferAttentionOperand});
  attention.insert(attention.end(),
                   {{"o"}, {"lse"}, {"scale"}, {"zero"}, {"g"}, {"kept", kOptional}});
  ops.push_back({"attention_operand_grad",
                 attention,
                 {"gq", "gk", "gv", "gclip"},
                 {AQ_FLOAT(AttGrad, scale), AQ_FLOAT(AttGrad, floor), AQ_INT(AttGrad, heads),
                  AQ_INT(AttGrad, kv_heads), AQ_INT(AttGrad, bits), AQ_INT(AttGrad, row_bits)},
                 sizeof(AttGrad),
                 inferAttentionOperandGrad});
  using Rope = aq_rope_grid_params;
  using RopeGrad = aq_rope_grid_grad_params;
  ops.push_back({"rope_grid",
                 {{"x"}, {"cos"}, {"sin"}, {"clip", kOptional}},
                 {"y", "scale", "zero"},
                 {AQ_FLOAT(Rope, floor), AQ_INT(Rope, heads), AQ_INT(Rope, bits)},
                 sizeof(Rope),
                 inferRopeGrid});
  ops.push_back({"rope_grid_grad",
                 {{"y"}, {"cos"}, {"sin"}, {"clip", kOptional}, {"scale"}, {"zero"}, {"g"}},
                 {"gx", "gclip"},
                 {AQ_FLOAT(RopeGrad, floor), AQ_INT(RopeGrad, heads), AQ_INT(RopeGrad, bits),
                  AQ_INT(RopeGrad, bf16)},
                 sizeof(RopeGrad),
                 inferRopeGridGrad});
}

}  // namespace aq
