// Shape rules of packed inference: weights of at most 4 bits in the order of the matrix units, and
// their product with activations.
#include "native/core/op.h"

namespace aq {

namespace {

// One tile of the packed order (params.h): 16 outputs x 128 inputs in 1024 bytes.
constexpr int64_t kTileRows = 16, kTileColumns = 128, kTileBytes = 1024;

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A group must not end inside what one step of the product takes.
int64_t groupsOf(const Infer& in, int32_t group, int64_t columns) {
  const bool fits = group == 0 || group == 32 || group == 64 || (group > 0 && group % 128 == 0);
  if (!fits) {
    in.fail(AQ_ARG, "group must be 0 (the whole row), 32, 64 or a multiple of 128, got %d",
            int(group));
  }
  return group == 0 ? 1 : ceilDiv(columns, group);
}

Shape codesShape(int64_t outputs, int64_t inputs) {
  return {ceilDiv(outputs, kTileRows), ceilDiv(inputs, kTileColumns), kTileBytes};
}

Shape gridShape(int64_t outputs, int64_t groups) {
  return {ceilDiv(outputs, kTileRows), groups, kTileRows};
}

void inferPack(Infer& in) {
  in.compute({1, 2});
  if (in.dtype(0) != AQ_U8) in.fail(AQ_DTYPE, "codes must be u8, got %s", dtypeName(in.dtype(0)));
  in.rank(0, 2);
  const int64_t outputs = in.rows(0), inputs = in.cols(0);
  const int64_t groups = groupsOf(in, in.params<aq_int4_pack_params>().group, inputs);
  in.elements(1, outputs * groups, "one per row and group");
  in.elements(2, outputs * groups, "one per row and group");
  in.output(AQ_U8, codesShape(outputs, inputs));
  in.output(AQ_F16, gridShape(outputs, groups));
  in.output(AQ_U8, gridShape(outputs, groups));
}

// An output of int4_pack in input i: its type, and the shape that x and the parameters ask for.
void checkPacked(const Infer& in, int i, const char* name, int32_t dtype, const Shape& want) {
  if (in.dtype(i) != dtype) {
    in.fail(AQ_DTYPE, "%s must be the %s tensor that int4_pack gave, got %s", name,
            dtypeName(dtype), dtypeName(in.dtype(i)));
  }
  if (in.shape(i) != want) {
    in.fail(AQ_SHAPE, "%s must be %s for these inputs, outputs and groups, got %s", name,
            toString(want).c_str(), toString(in.shape(i)).c_str());
  }
}

void checkType(const Infer& in, int i, const char* name, int32_t dtype) {
  if (in.has(i) && in.dtype(i) != dtype) {
    in.fail(AQ_DTYPE, "%s must be %s, got %s", name, dtypeName(dtype), dtypeName(in.dtype(i)));
  }
}

void inferMatmul(Infer& in) {
  const auto& p = in.params<aq_int4_matmul_params>();
  const int32_t dtype = in.dtype(0);
  if (!isFloat(dtype)) {
    in.fail(AQ_DTYPE, "x must be f64, f32, bf16 or f16, got %s", dtypeName(dtype));
  }
  in.range("outputs", p.outputs, 0, 2147483647.0);
  const int64_t inputs = in.cols(0), groups = groupsOf(in, p.group, inputs);
  checkPacked(in, 1, "packed", AQ_U8, codesShape(p.outputs, inputs));
  checkPacked(in, 2, "packed_scale", AQ_F16, gridShape(p.outputs, groups));
  checkPacked(in, 3, "packed_zero", AQ_U8, gridShape(p.outputs, groups));
  checkType(in, 4, "bias", dtype);
  if (in.has(4)) in.elements(4, p.outputs, "one per output");
  if (in.has(5) != in.has(6)) {
    in.fail(AQ_ARG, "x needs both x_scale and x_zero for a grid, or neither");
  }
  if (in.has(5)) {
    in.range("x_bits", p.x_bits, 1, 8);
    const int32_t gridType = isCompute(dtype) ? dtype : AQ_F32;
    checkType(in, 5, "x_scale", gridType);
    checkType(in, 6, "x_zero", gridType);
    in.elements(5, in.rows(0), "one per row of x");
    in.elements(6, in.rows(0), "one per row of x");
  }
  Shape shape = in.shape(0);
  if (shape.empty()) shape.push_back(1);
  shape.back() = p.outputs;
  in.output(dtype, std::move(shape));
}

}  // namespace

void addPackedOps(std::vector<OpSpec>& ops) {
  using Pack = aq_int4_pack_params;
  using Product = aq_int4_matmul_params;
  ops.push_back({"int4_pack",
                 {{"codes"}, {"scale"}, {"zero"}},
                 {"packed", "packed_scale", "packed_zero"},
                 {AQ_INT(Pack, group)},
                 sizeof(Pack),
                 inferPack});
  ops.push_back({"int4_matmul",
                 {{"x"},
                  {"packed"},
                  {"packed_scale"},
                  {"packed_zero"},
                  {"bias", kOptional},
                  {"x_scale", kOptional},
                  {"x_zero", kOptional}},
                 {"y"},
                 {AQ_INT(Product, outputs), AQ_INT(Product, group), AQ_INT(Product, x_bits)},
                 sizeof(Product),
                 inferMatmul});
}

}  // namespace aq
