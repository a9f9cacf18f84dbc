// Shape rules of what a block makes for products alone: norms and silu_mul with the quantizer behind them,
// and the gradients.
#include "native/core/op.h"

namespace aq {

namespace {

// The logit, if given, and what codes of whole rows need.
template <class P>
void checkQuantizer(const Infer& in, int clip, const P& p) {
  if (in.has(clip)) in.elements(clip, 1, "one for all rows");
  in.range("bits", p.bits, 1, 7);
  in.range("floor", p.floor, 1e-30, 1e30);
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
}

}  // namespace aq
