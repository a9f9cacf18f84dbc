// Shape rules of the 4-bit floats (NVFP4, MXFP4): global scales, operands, their gradient, codes as
// numbers, and the packed product.
#include "native/core/op.h"
#include "native/core/ops/fp4_rule.h"

namespace aq {

namespace {

// The factors of the rows and columns of the matrix in input 0, inputs r and r+1, if given.
void checkFactors(const Infer& in, int r) {
  if (in.has(r)) in.elements(r, in.rows(0), "one per row");
  if (in.has(r + 1)) in.elements(r + 1, in.cols(0), "one per column");
}

// The clipping logits, rounding offsets and factors of the matrix in input 0: inputs `clip` to clip+3.
void checkLearned(const Infer& in, int clip, int64_t groups) {
  if (in.has(clip) && in.numel(clip) != 1)
    in.elements(clip, in.rows(0) * groups, "1, or one per row and group");
  if (in.has(clip + 1)) in.elements(clip + 1, in.numel(0), "one rounding offset per element");
  checkFactors(in, clip + 2);
}

void checkCodes(const Infer& in, int codes) {
  if (in.dtype(codes) != AQ_U8)
    in.fail(AQ_DTYPE, "%s must be u8, got %s", in.name(codes), dtypeName(in.dtype(codes)));
}

void inferGlobal(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2, 3});
  if (in.has(1)) in.elements(1, 1, "the global scale of the matrices before this one");
  checkFactors(in, 2);
  in.output(dtype, {1});
}

void inferOperand(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2, 3, 4, 5});
  const auto& p = in.params<aq_fp4_operand_params>();
  const int64_t groups = groupsOf(in, 0, p.format);
  checkGlobal(in, 1, p.format);
  checkLearned(in, 2, groups);
  const bool isShort = p.dtype == AQ_BF16 && dtype == AQ_F32;
  if (p.dtype != dtype && p.dtype != AQ_U8 && !isShort) {
    in.fail(AQ_DTYPE, "y can be u8, %s%s", dtypeName(dtype), dtype == AQ_F32 ? " or bf16" : "");
  }
  in.output(dtype, {in.rows(0), groups});
  in.output(dtype, {1});
  in.output(p.dtype, in.shape(0));
}

void inferGrad(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2, 4, 5, 6, 7});
  const int32_t gradient = in.gradient(3, 0);
  const auto& p = in.params<aq_fp4_grad_params>();
  const int64_t groups = groupsOf(in, 0, p.format);
  in.elements(1, in.rows(0) * groups, "one per row and group");
  checkGlobal(in, 2, p.format);
  in.elements(3, in.numel(0), "as many as x");
  checkLearned(in, 4, groups);
  in.range("need_gx", p.need_gx, 0, 1);
  in.range("spends_grad", p.spends_grad, 0, 1);
  in.output(gradient, p.need_gx ? in.shape(0) : Shape{0});
  in.output(dtype, in.has(4) ? in.shape(4) : Shape{0});
  in.output(gradient, in.has(5) ? in.shape(5) : Shape{0});
  for (int i = 6; i < 8; i++) in.output(dtype, in.has(i) ? in.shape(i) : Shape{0});
}

void inferValues(Infer& in) {
  checkCodes(in, 0);
  const int32_t dtype = in.compute({1, 2});
  const auto& p = in.params<aq_fp4_values_params>();
  in.elements(1, in.rows(0) * groupsOf(in, 0, p.format), "one per row and group");
  checkGlobal(in, 2, p.format);
  in.output(dtype, in.shape(0));
}

// One tile of the packed order (params.h): 16 outputs x 128 inputs in 1024 bytes.
Shape codesShape(int64_t outputs, int64_t inputs) {
  return {(outputs + 15) / 16, (inputs + 127) / 128, 1024};
}

Shape scaleShape(int64_t outputs, int64_t groups) { return {(outputs + 15) / 16, groups, 16}; }

void inferPack(Infer& in) {
  checkCodes(in, 0);
  in.compute({1});
  in.rank(0, 2);
  const int64_t groups = groupsOf(in, 0, in.params<aq_fp4_pack_params>().format);
  in.elements(1, in.rows(0) * groups, "one per row and group");
  in.output(AQ_U8, codesShape(in.rows(0), in.cols(0)));
  in.output(AQ_U8, scaleShape(in.rows(0), groups));
}

// An output of fp4_pack in input i: the shape that x and the parameters ask for.
void checkPacked(const Infer& in, int i, const Shape& want) {
  checkCodes(in, i);
  if (in.shape(i) != want) {
    in.fail(AQ_SHAPE, "%s must be %s for these inputs and outputs, got %s", in.name(i),
            toString(want).c_str(), toString(in.shape(i)).c_str());
  }
}

void inferMatmul(Infer& in) {
  const auto& p = in.params<aq_fp4_matmul_params>();
  const int32_t dtype = in.dtype(0);
  if (!isFloat(dtype))
    in.fail(AQ_DTYPE, "x must be f64, f32, bf16 or f16, got %s", dtypeName(dtype));
  in.range("outputs", p.outputs, 0, 2147483647.0);
  in.range("tokens", p.tokens, 0, 1);
  checkPacked(in, 1, codesShape(p.outputs, in.cols(0)));
  checkPacked(in, 2, scaleShape(p.outputs, groupsOf(in, 0, p.format)));
  const int32_t compute = isCompute(dtype) ? dtype : AQ_F32;
  in.compute(compute, {3, 5});
  if (in.has(3)) in.elements(3, 1, "a factor of the product");
  if (in.has(4) && in.dtype(4) != dtype)
    in.fail(AQ_DTYPE, "bias must be %s as x is, got %s", dtypeName(dtype), dtypeName(in.dtype(4)));
  if (in.has(4)) in.elements(4, p.outputs, "one per output");
  checkGlobal(in, 5, p.format);
  if (in.has(5) && !p.tokens)
    in.fail(AQ_ARG, "x_global needs tokens 1: it means nothing to an x that is not quantized");
  Shape shape = in.shape(0);
  if (shape.empty()) shape.push_back(1);
  shape.back() = p.outputs;
  in.output(dtype, std::move(shape));
}

}  // namespace

void addFp4Ops(std::vector<OpSpec>& ops) {
  using Operand = aq_fp4_operand_params;
  using Grad = aq_fp4_grad_params;
  using Values = aq_fp4_values_params;
  using Pack = aq_fp4_pack_params;
  using Product = aq_fp4_matmul_params;
  ops.push_back({"fp4_global",
                 {{"x"}, {"g", kOptional}, {"r", kOptional}, {"c", kOptional}},
                 {"g"},
                 {},
                 sizeof(aq_fp4_global_params),
                 inferGlobal});
  ops.push_back({"fp4_operand",
                 {{"x"},
                  {"g", kOptional},
                  {"clip", kOptional},
                  {"v", kOptional},
                  {"r", kOptional},
                  {"c", kOptional}},
                 {"scale", "factor", "y"},
                 {AQ_INT(Operand, format), AQ_INT(Operand, dtype)},
                 sizeof(Operand),
                 inferOperand});
  ops.push_back({"fp4_grad",
                 {{"x"},
                  {"scale"},
                  {"g", kOptional},
                  {"grad"},
                  {"clip", kOptional},
                  {"v", kOptional},
                  {"r", kOptional},
                  {"c", kOptional}},
                 {"gx", "gclip", "gv", "gr", "gc"},
                 {AQ_INT(Grad, format), AQ_INT(Grad, need_gx), AQ_INT(Grad, spends_grad)},
                 sizeof(Grad),
                 inferGrad});
  ops.push_back({"fp4_values",
                 {{"codes"}, {"scale"}, {"g", kOptional}},
                 {"x"},
                 {AQ_INT(Values, format)},
                 sizeof(Values),
                 inferValues});
  ops.push_back({"fp4_pack",
                 {{"codes"}, {"scale"}},
                 {"packed", "packed_scale"},
                 {AQ_INT(Pack, format)},
                 sizeof(Pack),
                 inferPack});
  ops.push_back({"fp4_matmul",
                 {{"x"},
                  {"packed"},
                  {"packed_scale"},
                  {"factor", kOptional},
                  {"bias", kOptional},
                  {"x_global", kOptional}},
                 {"y"},
                 {AQ_INT(Product, outputs), AQ_INT(Product, format), AQ_INT(Product, tokens)},
                 sizeof(Product),
                 inferMatmul});
}

}  // namespace aq
