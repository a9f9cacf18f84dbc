// Shape rules of quantization: grids, fake quantization and its gradient, the fused product, codes,
// and GPTQ.
#include "native/core/op.h"

namespace aq {

namespace {

int64_t groupsOf(const Infer& in, int32_t group, int64_t columns) {
  in.range("group", group, 0, 2147483647.0);
  if (group == 0) return columns ? 1 : 0;
  return (columns + group - 1) / group;
}

// scale and zero (inputs s and s+1) must be [M, G] for the matrix in input x.
void checkGrid(const Infer& in, int x, int s, int32_t bits, int32_t group) {
  in.range("bits", bits, 1, 8);
  const int64_t groups = groupsOf(in, group, in.cols(x));
  in.elements(s, in.rows(x) * groups, "one per row and group");
  in.elements(s + 1, in.rows(x) * groups, "one per row and group");
}

// The rounding offsets in input v, if given, are one per element of the matrix in input x.
void checkOffset(const Infer& in, int x, int v) {
  if (in.has(v)) in.elements(v, in.numel(x), "one rounding offset per element");
}

// The factors of the rows and columns of the matrix in input x, inputs r and r+1, if given.
void checkFactors(const Infer& in, int x, int r) {
  if (in.has(r)) in.elements(r, in.rows(x), "one per row");
  if (in.has(r + 1)) in.elements(r + 1, in.cols(x), "one per column");
}

void checkClip(const Infer& in, int clip, int64_t grids) {
  if (!in.has(clip) || in.numel(clip) == 1) return;
  in.elements(clip, 2 * grids, "1, or 2 per row and group");
}

// scale and zero of a grid that is found with parameters `p`; input 1 is the clip.
template <class P>
void findsGrid(Infer& in, int32_t dtype, const P& p) {
  in.range("bits", p.bits, p.symmetric ? 2 : 1, 8);
  in.range("rule", p.rule, 0, 1);
  in.range("floor", p.floor, 1e-30, 1e30);
  const int64_t rows = in.rows(0), groups = groupsOf(in, p.group, in.cols(0));
  checkClip(in, 1, rows * groups);
  in.output(dtype, {rows, groups});
  in.output(dtype, {rows, groups});
}

void inferQuantGrid(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2, 3});
  checkFactors(in, 0, 2);
  findsGrid(in, dtype, in.params<aq_quant_grid_params>());
}

void inferQuantOperand(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2, 3, 4});
  const auto& p = in.params<aq_quant_operand_params>();
  checkOffset(in, 0, 2);
  checkFactors(in, 0, 3);
  findsGrid(in, dtype, p);
  const bool isShort = p.dtype == AQ_BF16 || p.dtype == AQ_F16;
  if (p.dtype == AQ_I8) {
    const bool isWhole = p.group == 0 || p.group >= in.cols(0);
    if (p.bits > 7 || !isWhole || p.rule != 0) {
      in.fail(AQ_ARG,
              "i8 holds codes of at most 7 bits, of whole rows and by rule 0; got %d bits, "
              "group %d, rule %d",
              p.bits, p.group, p.rule);
    }
  } else if (p.dtype != dtype && !(isShort && dtype == AQ_F32)) {
    in.fail(AQ_DTYPE, "y can be i8, %s%s", dtypeName(dtype),
            dtype == AQ_F32 ? ", bf16 or f16" : "");
  }
  in.range("values", p.values, 0, 1);
  if (p.values && (p.dtype != AQ_I8 || dtype != AQ_F32))
    in.fail(AQ_ARG, "values go with a y in i8 and a grid in f32");
  in.output(p.dtype, in.shape(0));
  in.output(AQ_BF16, p.values ? in.shape(0) : Shape{0});
}

void inferFakeQuant(Infer& in) {
  in.compute({0, 1, 2, 3});
  const auto& p = in.params<aq_fake_quant_params>();
  checkGrid(in, 0, 1, p.bits, p.group);
  checkOffset(in, 0, 3);
  in.outputLike(0);
}

void inferFakeQuantGrad(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2, 4, 5, 6, 7});
  const int32_t gradient = in.gradient(3, 0);
  const auto& p = in.params<aq_fake_quant_grad_params>();
  checkFactors(in, 0, 6);
  checkGrid(in, 0, 1, p.bits, p.group);
  in.elements(3, in.numel(0), "as many as x");
  checkClip(in, 4, in.numel(1));
  checkOffset(in, 0, 5);
  in.range("need_gx", p.need_gx, 0, 1);
  in.range("rule", p.rule, 0, 1);
  in.output(gradient, p.need_gx ? in.shape(0) : Shape{0});
  in.output(dtype, in.has(4) ? in.shape(4) : Shape{0});
  in.output(gradient, in.has(5) ? in.shape(5) : Shape{0});
  for (int i = 6; i < 8; i++) in.output(dtype, in.has(i) ? in.shape(i) : Shape{0});
}

// Operand `side` (0: a, 1: b) of the fused product and its scale and zero.
void checkFactor(const Infer& in, int side, int32_t dtype, int32_t bits, int32_t group) {
  const int scale = 2 + 2 * side;
  if (in.dtype(side) == AQ_I8) {
    if (dtype != AQ_F32) in.fail(AQ_DTYPE, "an i8 %s goes with f32, not f64", in.name(side));
    if (!in.has(scale) || in.has(scale + 1))
      in.fail(AQ_ARG, "an i8 %s needs its scale, and no zero", in.name(side));
    in.elements(scale, in.rows(side), "one per stored row");
    return;
  }
  in.stored(side, dtype);
  if (in.has(scale + 1) && !in.has(scale))
    in.fail(AQ_ARG, "%s has a zero but no scale", in.name(side));
  if (!in.has(scale)) return;
  if (!in.has(scale + 1))
    return in.elements(scale, 1, "a factor of the product; a grid needs its zero as well");
  if (side == 0) in.compute(dtype, {0});
  checkGrid(in, side, scale, bits, group);
}

void inferFakeQuantGemm(Infer& in) {
  // What is not short or whole numbers says the type; f32 where nothing does.
  int32_t dtype = AQ_F32;
  for (int i = 0; i < 10; i++) {
    if (in.has(i) && in.dtype(i) == AQ_F64) dtype = AQ_F64;
  }
  in.compute(dtype, {2, 3, 4, 5, 6, 7, 8, 9});
  const auto& p = in.params<aq_fake_quant_gemm_params>();
  checkFactor(in, 0, dtype, p.a_bits, p.a_group);
  checkFactor(in, 1, dtype, p.b_bits, p.b_group);
  const int64_t m = p.trans_a ? in.cols(0) : in.rows(0);
  const int64_t ka = p.trans_a ? in.rows(0) : in.cols(0);
  const int64_t kb = p.trans_b ? in.cols(1) : in.rows(1);
  const int64_t n = p.trans_b ? in.rows(1) : in.cols(1);
  if (ka != kb) {
    in.fail(AQ_SHAPE, "inner sizes differ: a %s%s x b %s%s: %lld and %lld",
            toString(in.shape(0)).c_str(), p.trans_a ? " transposed" : "",
            toString(in.shape(1)).c_str(), p.trans_b ? " transposed" : "",
            static_cast<long long>(ka), static_cast<long long>(kb));
  }
  if (in.has(6)) in.elements(6, n, "one per column of the product");
  if ((in.has(7) || in.has(8) || in.has(9)) && !in.has(5)) {
    in.fail(AQ_ARG,
            "b_v, b_r and b_c need b's grid: they mean nothing to a b without scale and zero");
  }
  checkOffset(in, 1, 7);
  checkFactors(in, 1, 8);
  // Leading dimensions of a survive where a is not transposed: [B, T, K] x W -> [B, T, N].
  Shape shape = p.trans_a ? Shape{m, n} : in.shape(0);
  if (!p.trans_a) {
    if (shape.empty()) shape = {1};
    shape.back() = n;
  }
  in.range("bf16", p.bf16, 0, dtype == AQ_F32 ? 1 : 0);
  in.output(p.bf16 ? int32_t(AQ_BF16) : dtype, shape);
}

void inferQuantize(Infer& in) {
  in.compute({0, 1, 2, 3});
  const auto& p = in.params<aq_quantize_params>();
  checkGrid(in, 0, 1, p.bits, p.group);
  checkOffset(in, 0, 3);
  in.output(AQ_U8, in.shape(0));
}

void inferGptq(Infer& in) {
  in.compute({0, 1, 2, 3});
  const auto& p = in.params<aq_gptq_params>();
  const int64_t n = in.cols(0);
  if (in.shape(1) != Shape{n, n}) {
    in.fail(AQ_SHAPE, "h must be [%lld, %lld] for w %s, got %s", static_cast<long long>(n),
            static_cast<long long>(n), toString(in.shape(0)).c_str(),
            toString(in.shape(1)).c_str());
  }
  checkGrid(in, 0, 2, p.bits, p.group);
  in.range("damping", p.damping, 0, 1e6);
  in.range("block", p.block, 1, 65536);
  in.output(AQ_U8, in.shape(0));
}

void inferDequantize(Infer& in) {
  const int32_t dtype = in.compute({1, 2});
  if (in.dtype(0) != AQ_U8) in.fail(AQ_DTYPE, "codes must be u8, got %s", dtypeName(in.dtype(0)));
  checkGrid(in, 0, 1, 8, in.params<aq_dequantize_params>().group);
  in.output(dtype, in.shape(0));
}

}  // namespace

void addQuantizeOps(std::vector<OpSpec>& ops) {
  using Grid = aq_quant_grid_params;
  using Operand = aq_quant_operand_params;
  using Fake = aq_fake_quant_params;
  using Grad = aq_fake_quant_grad_params;
  using Gemm = aq_fake_quant_gemm_params;
  ops.push_back({"quant_grid",
                 {{"x"}, {"clip", kOptional}, {"r", kOptional}, {"c", kOptional}},
                 {"scale", "zero"},
                 {AQ_INT(Grid, bits), AQ_INT(Grid, group), AQ_INT(Grid, symmetric),
                  AQ_INT(Grid, round_f16), AQ_FLOAT(Grid, floor), AQ_INT(Grid, rule)},
                 sizeof(Grid),
                 inferQuantGrid});
  ops.push_back({"quant_operand",
                 {{"x"}, {"clip", kOptional}, {"v", kOptional}, {"r", kOptional}, {"c", kOptional}},
                 {"scale", "zero", "y", "values"},
                 {AQ_INT(Operand, bits), AQ_INT(Operand, group), AQ_INT(Operand, symmetric),
                  AQ_FLOAT(Operand, floor), AQ_INT(Operand, rule), AQ_INT(Operand, dtype),
                  AQ_INT(Operand, values)},
                 sizeof(Operand),
                 inferQuantOperand});
  ops.push_back({"fake_quant",
                 {{"x"}, {"scale"}, {"zero"}, {"v", kOptional}},
                 {"y"},
                 {AQ_INT(Fake, bits), AQ_INT(Fake, group)},
                 sizeof(Fake),
                 inferFakeQuant});
  ops.push_back({"fake_quant_grad",
                 {{"x"},
                  {"scale"},
                  {"zero"},
                  {"g"},
                  {"clip", kOptional},
                  {"v", kOptional},
                  {"r", kOptional},
                  {"c", kOptional}},
                 {"gx", "gclip", "gv", "gr", "gc"},
                 {AQ_INT(Grad, bits), AQ_INT(Grad, group), AQ_INT(Grad, symmetric),
                  AQ_FLOAT(Grad, floor), AQ_INT(Grad, need_gx), AQ_INT(Grad, rule)},
                 sizeof(Grad),
                 inferFakeQuantGrad});
  ops.push_back(
      {"fake_quant_gemm",
       {{"a"},
        {"b"},
        {"a_scale", kOptional},
        {"a_zero", kOptional},
        {"b_scale", kOptional},
        {"b_zero", kOptional},
        {"bias", kOptional},
        {"b_v", kOptional},
        {"b_r", kOptional},
        {"b_c", kOptional}},
       {"c"},
       {AQ_INT(Gemm, trans_a), AQ_INT(Gemm, trans_b), AQ_INT(Gemm, a_bits), AQ_INT(Gemm, a_group),
        AQ_INT(Gemm, b_bits), AQ_INT(Gemm, b_group), AQ_INT(Gemm, accumulate), AQ_INT(Gemm, bf16)},
       sizeof(Gemm),
       inferFakeQuantGemm});
  ops.push_back({"quantize",
                 {{"x"}, {"scale"}, {"zero"}, {"v", kOptional}},
                 {"codes"},
                 {AQ_INT(aq_quantize_params, bits), AQ_INT(aq_quantize_params, group)},
                 sizeof(aq_quantize_params),
                 inferQuantize});
  using Gptq = aq_gptq_params;
  ops.push_back(
      {"gptq",
       {{"w"}, {"h"}, {"scale"}, {"zero"}},
       {"codes"},
       {AQ_INT(Gptq, bits), AQ_INT(Gptq, group), AQ_FLOAT(Gptq, damping), AQ_INT(Gptq, block)},
       sizeof(Gptq),
       inferGptq});
  ops.push_back({"dequantize",
                 {{"codes"}, {"scale"}, {"zero"}},
                 {"x"},
                 {AQ_INT(aq_dequantize_params, group)},
                 sizeof(aq_dequantize_params),
                 inferDequantize});
}

}  // namespace aq
