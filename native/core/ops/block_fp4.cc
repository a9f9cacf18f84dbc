// Shape rules of the block's ops with the quantizer of 4-bit floats behind them, and of their gradients.
#include "native/core/op.h"
#include "native/core/ops/fp4_rule.h"

namespace aq {

namespace {

// global, scale, factor and y of rows like input 0's; `g` is the input with their global scale.
template <class P>
void outputFloats(Infer& in, int g, int32_t dtype, const P& p) {
  const int64_t groups = groupsOf(in, 0, p.format);
  checkGlobal(in, g, p.format);
  if (p.dtype != dtype && !(p.dtype == AQ_BF16 && dtype == AQ_F32))
    in.fail(AQ_DTYPE, "y can be %s%s", dtypeName(dtype), dtype == AQ_F32 ? " or bf16" : "");
  in.range("own", p.own, 0, p.format == kMxfp4 || in.has(g) ? 0 : 1);
  in.output(dtype, {1});
  in.output(dtype, {in.rows(0), groups});
  in.output(dtype, {1});
  in.output(p.dtype, in.shape(0));
}

// What a gradient is given: the scales in input s, and behind them the gradient of the numbers.
void checkFloats(const Infer& in, int g, int s, int32_t format) {
  checkGlobal(in, g, format);
  in.elements(s, in.rows(0) * groupsOf(in, 0, format), "one per row and group");
  in.elements(s + 1, in.numel(0), "as many as y");
}

void checkGain(const Infer& in) {
  in.elements(1, in.cols(0), "one per channel of x");
  if (in.has(2)) in.elements(2, in.cols(0), "one per channel of x");
}

template <class P>
void inferNorm(Infer& in, bool isCentered) {
  const int32_t dtype = in.compute({0, 1, 2, 3});
  const auto& p = in.params<P>();
  checkGain(in);
  in.range("eps", p.eps, 0, 1);
  for (int i = isCentered ? 0 : 1; i < 2; i++) in.output(dtype, {in.rows(0)});
  outputFloats(in, 3, dtype, p);
}

// saved: inputs from 4 on that the norm itself stored.
template <class P>
void inferNormGrad(Infer& in, int saved) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4, 5, 6});
  if (saved > 1) in.compute({0, 7});
  const auto& p = in.params<P>();
  checkGain(in);
  in.range("need_gx", p.need_gx, 0, 1);
  for (int i = 0; i < saved; i++) in.elements(4 + i, in.rows(0), "one per row of x");
  checkFloats(in, 3, 4 + saved, p.format);
  in.output(dtype, p.need_gx ? in.shape(0) : Shape{0});
  in.outputLike(1);
  in.output(dtype, in.has(2) ? in.shape(2) : Shape{0});
}

void inferRmsNorm(Infer& in) { inferNorm<aq_rms_norm_fp4_params>(in, false); }
void inferRmsNormGrad(Infer& in) { inferNormGrad<aq_rms_norm_fp4_grad_params>(in, 1); }
void inferLayerNorm(Infer& in) { inferNorm<aq_layer_norm_fp4_params>(in, true); }
void inferLayerNormGrad(Infer& in) { inferNormGrad<aq_layer_norm_fp4_grad_params>(in, 2); }

void inferSiluMul(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2});
  in.same(0, 1);
  outputFloats(in, 2, dtype, in.params<aq_silu_mul_fp4_params>());
}

void inferSiluMulGrad(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4});
  const auto& p = in.params<aq_silu_mul_fp4_grad_params>();
  in.same(0, 1);
  checkFloats(in, 2, 3, p.format);
  in.range("bf16", p.bf16, 0, dtype == AQ_F32 ? 1 : 0);
  for (int i = 0; i < 2; i++) in.output(p.bf16 ? int32_t(AQ_BF16) : dtype, in.shape(i));
}

}  // namespace

void addBlockFp4Ops(std::vector<OpSpec>& ops) {
  using Norm = aq_rms_norm_fp4_params;
  using NormGrad = aq_rms_norm_fp4_grad_params;
  using Layer = aq_layer_norm_fp4_params;
  using LayerGrad = aq_layer_norm_fp4_grad_params;
  using Gate = aq_silu_mul_fp4_params;
  using GateGrad = aq_silu_mul_fp4_grad_params;
  ops.push_back(
      {"rms_norm_fp4",
       {{"x"}, {"w"}, {"b", kOptional}, {"g", kOptional}},
       {"rstd", "global", "scale", "factor", "y"},
       {AQ_FLOAT(Norm, eps), AQ_INT(Norm, format), AQ_INT(Norm, dtype), AQ_INT(Norm, own)},
       sizeof(Norm),
       inferRmsNorm});
  ops.push_back({"rms_norm_fp4_grad",
                 {{"x"}, {"w"}, {"b", kOptional}, {"g", kOptional}, {"rstd"}, {"scale"}, {"grad"}},
                 {"gx", "gw", "gb"},
                 {AQ_INT(NormGrad, format), AQ_INT(NormGrad, need_gx)},
                 sizeof(NormGrad),
                 inferRmsNormGrad});
  ops.push_back(
      {"layer_norm_fp4",
       {{"x"}, {"w"}, {"b"}, {"g", kOptional}},
       {"mean", "rstd", "global", "scale", "factor", "y"},
       {AQ_FLOAT(Layer, eps), AQ_INT(Layer, format), AQ_INT(Layer, dtype), AQ_INT(Layer, own)},
       sizeof(Layer),
       inferLayerNorm});
  ops.push_back({"layer_norm_fp4_grad",
                 {{"x"}, {"w"}, {"b"}, {"g", kOptional}, {"mean"}, {"rstd"}, {"scale"}, {"grad"}},
                 {"gx", "gw", "gb"},
                 {AQ_INT(LayerGrad, format), AQ_INT(LayerGrad, need_gx)},
                 sizeof(LayerGrad),
                 inferLayerNormGrad});
  ops.push_back({"silu_mul_fp4",
                 {{"gate"}, {"up"}, {"g", kOptional}},
                 {"global", "scale", "factor", "y"},
                 {AQ_INT(Gate, format), AQ_INT(Gate, dtype), AQ_INT(Gate, own)},
                 sizeof(Gate),
                 inferSiluMul});
  ops.push_back({"silu_mul_fp4_grad",
                 {{"gate"}, {"up"}, {"g", kOptional}, {"scale"}, {"grad"}},
                 {"ggate", "gup"},
                 {AQ_INT(GateGrad, format), AQ_INT(GateGrad, bf16)},
                 sizeof(GateGrad),
                 inferSiluMulGrad});
}

}  // namespace aq
