// Shape rules: adam (any shape), masked_adam (banded matrices with the dominance projection),
// keep_away and sign_step (learned rounding).
#include "native/core/op.h"

namespace aq {

namespace {
template <class P>
int32_t checkAdam(Infer& in) {
  const int32_t dtype = in.compute({0, 1, 2, 3});
  in.same(0, 1);
  in.same(0, 2);
  in.same(0, 3);
  const auto& p = in.params<P>();
  in.range("beta1", p.beta1, 0, 0.999999999);
  in.range("beta2", p.beta2, 0, 0.999999999);
  in.range("eps", p.eps, 0, 1);
  in.range("step", p.step, 1, 2147483647.0);
  return dtype;
}

void inferAdam(Infer& in) { checkAdam<aq_adam_params>(in); }

void inferMaskedAdam(Infer& in) {
  const int32_t dtype = checkAdam<aq_masked_adam_params>(in);
  const auto& p = in.params<aq_masked_adam_params>();
  in.rank(0, 3);
  const Shape& s = in.shape(0);
  if (s[1] != s[2]) in.fail(AQ_SHAPE, "p %s must be [B, D, D]", toString(s).c_str());
  in.range("band", p.band, 0, 1 << 30);
  in.range("limit", p.limit, -1, 0.999999);
  in.output(dtype, {s[0]});
}

void inferKeepAway(Infer& in) {
  in.compute({0});
  in.range("limit", in.params<aq_keep_away_params>().limit, 0, 1e30);
}

void inferSignStep(Infer& in) {
  in.compute({0, 1});
  in.same(0, 1);
  in.range("limit", in.params<aq_sign_step_params>().limit, 0, 1e30);
}

const std::vector<InputSpec> kInputs = {{"p", kMutable}, {"g"}, {"m", kMutable}, {"v", kMutable}};
}  // namespace

void addOptimizerOps(std::vector<OpSpec>& ops) {
  using A = aq_adam_params;
  using M = aq_masked_adam_params;
  ops.push_back({"adam",
                 kInputs,
                 {},
                 {AQ_FLOAT(A, lr), AQ_FLOAT(A, beta1), AQ_FLOAT(A, beta2), AQ_FLOAT(A, eps),
                  AQ_FLOAT(A, weight_decay), AQ_INT(A, step)},
                 sizeof(A),
                 inferAdam});
  ops.push_back({"masked_adam",
                 kInputs,
                 {"margin"},
                 {AQ_FLOAT(M, lr), AQ_FLOAT(M, beta1), AQ_FLOAT(M, beta2), AQ_FLOAT(M, eps),
                  AQ_FLOAT(M, weight_decay), AQ_FLOAT(M, sf), AQ_FLOAT(M, limit), AQ_INT(M, step),
                  AQ_INT(M, band)},
                 sizeof(M),
                 inferMaskedAdam});
  ops.push_back({"keep_away",
                 {{"p", kMutable}},
                 {},
                 {AQ_FLOAT(aq_keep_away_params, limit)},
                 sizeof(aq_keep_away_params),
                 inferKeepAway});
  ops.push_back({"sign_step",
                 {{"v", kMutable}, {"g"}},
                 {},
                 {AQ_FLOAT(aq_sign_step_params, lr), AQ_FLOAT(aq_sign_step_params, limit)},
                 sizeof(aq_sign_step_params),
                 inferSignStep});
}

}  // namespace aq
