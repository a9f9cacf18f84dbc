// Shape rules: fill, cast, add, axpy, mul, exp.
#include "native/core/op.h"

namespace aq {

namespace {
void inferFill(Infer&) {}

void inferCast(Infer& in) {
  const int32_t dtype = in.params<aq_cast_params>().dtype;
  in.range("dtype", dtype, 0, AQ_DTYPE_COUNT - 1);
  in.output(dtype, in.shape(0));
}

void inferPair(Infer& in) {
  in.compute({0, 1});
  in.same(0, 1);
  in.outputLike(0);
}

void inferAxpy(Infer& in) {
  in.compute({0, 1});
  in.elements(1, in.numel(0), "as many as y");
}

void inferUnary(Infer& in) {
  in.compute({0});
  in.outputLike(0);
}
}  // namespace

void addElementwiseOps(std::vector<OpSpec>& ops) {
  ops.push_back({"fill",
                 {{"x", kMutable}},
                 {},
                 {AQ_FLOAT(aq_fill_params, value)},
                 sizeof(aq_fill_params),
                 inferFill});
  ops.push_back(
      {"cast", {{"x"}}, {"y"}, {AQ_INT(aq_cast_params, dtype)}, sizeof(aq_cast_params), inferCast});
  ops.push_back({"add",
                 {{"a"}, {"b"}},
                 {"y"},
                 {AQ_FLOAT(aq_add_params, alpha)},
                 sizeof(aq_add_params),
                 inferPair});
  ops.push_back({"axpy",
                 {{"y", kMutable}, {"x"}},
                 {},
                 {AQ_FLOAT(aq_axpy_params, alpha)},
                 sizeof(aq_axpy_params),
                 inferAxpy});
  ops.push_back({"mul",
                 {{"a"}, {"b"}},
                 {"y"},
                 {AQ_FLOAT(aq_mul_params, alpha)},
                 sizeof(aq_mul_params),
                 inferPair});
  ops.push_back(
      {"exp", {{"x"}}, {"y"}, {AQ_FLOAT(aq_exp_params, scale)}, sizeof(aq_exp_params), inferUnary});
}

}  // namespace aq
