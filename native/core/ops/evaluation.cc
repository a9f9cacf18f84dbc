// Shape rules of losses, embedding lookup, choice of tokens and statistics.
#include "native/core/op.h"

namespace aq {

namespace {

void inferMse(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2});
  in.elements(1, in.numel(0), "as many as y");
  if (in.has(2)) in.elements(2, in.numel(0), "as many as y");
  in.output(dtype, {1});
}

void inferMseGrad(Infer& in) {
  in.compute({0, 1, 2, 3});
  in.elements(1, in.numel(0), "as many as y");
  in.elements(2, 1, "the gradient of the loss");
  if (in.has(3)) in.elements(3, in.numel(0), "as many as y");
  in.outputLike(0);
}

void inferKlDiv(Infer& in) {
  const int32_t dtype = in.compute({0, 1});
  in.same(0, 1);
  if (in.numel(0) == 0) {
    in.fail(AQ_SHAPE, "logits %s are empty: there is no mean over no rows",
            toString(in.shape(0)).c_str());
  }
  in.output(dtype, {1});
}

void inferKlDivGrad(Infer& in) {
  in.compute({0, 1, 2});
  in.same(0, 1);
  in.elements(2, 1, "the gradient of the loss");
  in.outputLike(0);
}

void inferSqDiff(Infer& in) {
  in.compute({0, 1});
  if (in.has(1)) in.elements(1, in.numel(0), "as many as a");
  in.output(AQ_F64, {1});
}

void requireIds(const Infer& in, int i) {
  if (in.dtype(i) != AQ_I32) in.fail(AQ_DTYPE, "ids must be i32, got %s", dtypeName(in.dtype(i)));
}

void inferCrossEntropy(Infer& in) {
  const int32_t dtype = in.compute({0});
  requireIds(in, 1);
  in.elements(1, in.rows(0), "one per row of logits");
  in.output(dtype, {in.rows(0)});
}

void inferGatherRows(Infer& in) {
  if (!isFloat(in.dtype(0))) {
    in.fail(AQ_DTYPE, "table must be a floating type, got %s", dtypeName(in.dtype(0)));
  }
  requireIds(in, 1);
  in.rank(0, 2);
  const int32_t dtype = in.params<aq_gather_rows_params>().dtype;
  if (!isCompute(dtype)) in.fail(AQ_DTYPE, "dtype must be f32 or f64, got %s", dtypeName(dtype));
  Shape shape = in.shape(1);
  shape.push_back(in.shape(0)[1]);
  in.output(dtype, shape);
}

void inferDrawTokens(Infer& in) {
  in.compute({0});
  in.compute(AQ_F64, {1});
  in.elements(1, 2 * in.rows(0), "temperature and place of each row of logits");
  in.output(AQ_I32, {in.rows(0)});
}

void inferChannelStats(Infer& in) {
  const int32_t dtype = in.compute({0});
  for (int i = 0; i < 3; i++) in.output(dtype, {in.cols(0)});
}

void inferAllFinite(Infer& in) {
  for (int i = 0; i < in.count(); i++) in.computeOf(i);
  in.output(AQ_I32, {1});
}

}  // namespace

void addEvaluationOps(std::vector<OpSpec>& ops) {
  ops.push_back(
      {"mse", {{"y"}, {"t"}, {"t2", kOptional}}, {"loss"}, {}, sizeof(aq_mse_params), inferMse});
  ops.push_back({"mse_grad",
                 {{"y"}, {"t"}, {"g"}, {"t2", kOptional}},
                 {"gy"},
                 {},
                 sizeof(aq_mse_grad_params),
                 inferMseGrad});
  ops.push_back(
      {"kl_div", {{"logits"}, {"targets"}}, {"loss"}, {}, sizeof(aq_kl_div_params), inferKlDiv});
  ops.push_back({"kl_div_grad",
                 {{"logits"}, {"targets"}, {"g"}},
                 {"glogits"},
                 {},
                 sizeof(aq_kl_div_grad_params),
                 inferKlDivGrad});
  ops.push_back(
      {"sq_diff", {{"a"}, {"b", kOptional}}, {"sum"}, {}, sizeof(aq_sq_diff_params), inferSqDiff});
  ops.push_back({"cross_entropy",
                 {{"logits"}, {"ids"}},
                 {"loss"},
                 {},
                 sizeof(aq_cross_entropy_params),
                 inferCrossEntropy});
  ops.push_back({"gather_rows",
                 {{"table"}, {"ids"}},
                 {"y"},
                 {AQ_INT(aq_gather_rows_params, dtype)},
                 sizeof(aq_gather_rows_params),
                 inferGatherRows});
  ops.push_back({"channel_stats",
                 {{"x"}},
                 {"abs_max", "max", "min"},
                 {},
                 sizeof(aq_channel_stats_params),
                 inferChannelStats});
  ops.push_back(
      {"all_finite", {{"x"}}, {"flag"}, {}, sizeof(aq_all_finite_params), inferAllFinite, 0});
  ops.push_back({"draw_tokens",
                 {{"logits"}, {"draws"}},
                 {"ids"},
                 {},
                 sizeof(aq_draw_tokens_params),
                 inferDrawTokens});
}

}  // namespace aq
