// Shape rules: adam (any shapes), masked_adam (banded matrices with the dominance projection),
// keep_away and sign_step (learned rounding).
#include "native/core/op.h"

namespace aq {

namespace {
// Inputs of every optimizer: the guard, the schedule, then what it works on.
constexpr int kFirst = 2;
// masked_adam's masked matrix, and that matrix rounded.
constexpr int kMatrix = kFirst + 4, kCopy = kMatrix + 1;

// Whether the ops may change anything, and where in its schedule a step is.
void checkControl(const Infer& in) {
  if (in.has(0)) {
    if (in.dtype(0) != AQ_I32)
      in.fail(AQ_DTYPE, "guard must be i32, got %s", dtypeName(in.dtype(0)));
    in.elements(0, 1, "what all_finite says");
  }
  if (in.has(1)) {
    if (in.dtype(1) != AQ_F64)
      in.fail(AQ_DTYPE, "schedule must be f64, got %s", dtypeName(in.dtype(1)));
    in.elements(1, 2, "rate and step");
  }
}

template <class P>
int32_t checkAdam(Infer& in, int end) {
  checkControl(in);
  const int32_t dtype = in.compute({kFirst});
  for (int p = kFirst; p < end; p += 4) {
    in.compute(dtype, {p, p + 1, p + 2, p + 3});
    for (int other = 1; other < 4; other++) in.same(p, p + other);
  }
  const auto& p = in.params<P>();
  in.range("beta1", p.beta1, 0, 0.999999999);
  in.range("beta2", p.beta2, 0, 0.999999999);
  in.range("eps", p.eps, 0, 1);
  in.range("step", p.step, 1, 2147483647.0);
  return dtype;
}

void inferAdam(Infer& in) { checkAdam<aq_adam_params>(in, in.count()); }

void inferMaskedAdam(Infer& in) {
  const int32_t dtype = checkAdam<aq_masked_adam_params>(in, kMatrix);
  const auto& p = in.params<aq_masked_adam_params>();
  in.rank(kFirst, 3);
  const Shape& s = in.shape(kFirst);
  if (s[1] != s[2]) in.fail(AQ_SHAPE, "p %s must be [B, D, D]", toString(s).c_str());
  in.range("band", p.band, 0, 1 << 30);
  in.range("limit", p.limit, -1, 0.999999);
  in.range("floor", p.floor, 0, 1e30);
  if (in.has(kMatrix)) in.compute(dtype, {kMatrix});
  if (in.has(kCopy) && in.dtype(kCopy) != AQ_BF16)
    in.fail(AQ_DTYPE, "copy must be bf16, got %s", dtypeName(in.dtype(kCopy)));
  for (int i : {kMatrix, kCopy})
    if (in.has(i)) in.same(kFirst, i);
  in.output(dtype, {s[0]});
}

void inferKeepAway(Infer& in) {
  in.compute({0});
  in.range("limit", in.params<aq_keep_away_params>().limit, 0, 1e30);
}

void inferSignStep(Infer& in) {
  checkControl(in);
  const int32_t dtype = in.compute({kFirst});
  for (int v = kFirst; v < in.count(); v += 2) {
    in.compute(dtype, {v});
    in.stored(v + 1, dtype);
    in.same(v, v + 1);
  }
  in.range("limit", in.params<aq_sign_step_params>().limit, 0, 1e30);
}

const std::vector<InputSpec> kAdamInputs = {{"guard", kOptional}, {"schedule", kOptional},
                                            {"p", kMutable},      {"g"},
                                            {"m", kMutable},      {"v", kMutable}};

std::vector<InputSpec> maskedAdamInputs() {
  std::vector<InputSpec> inputs = kAdamInputs;
  inputs.push_back({"a", uint8_t(kMutable | kOptional)});
  inputs.push_back({"copy", uint8_t(kMutable | kOptional)});
  return inputs;
}
}  // namespace

void addOptimizerOps(std::vector<OpSpec>& ops) {
  using A = aq_adam_params;
  using M = aq_masked_adam_params;
  ops.push_back({"adam",
                 kAdamInputs,
                 {},
                 {AQ_FLOAT(A, lr), AQ_FLOAT(A, beta1), AQ_FLOAT(A, beta2), AQ_FLOAT(A, eps),
                  AQ_FLOAT(A, weight_decay), AQ_INT(A, step)},
                 sizeof(A),
                 inferAdam,
                 kFirst});
  ops.push_back({"masked_adam",
                 maskedAdamInputs(),
                 {"margin"},
                 {AQ_FLOAT(M, lr), AQ_FLOAT(M, beta1), AQ_FLOAT(M, beta2), AQ_FLOAT(M, eps),
                  AQ_FLOAT(M, weight_decay), AQ_FLOAT(M, sf), AQ_FLOAT(M, limit),
                  AQ_FLOAT(M, floor), AQ_INT(M, step), AQ_INT(M, band)},
                 sizeof(M),
                 inferMaskedAdam});
  ops.push_back({"keep_away",
                 {{"p", kMutable}},
                 {},
                 {AQ_FLOAT(aq_keep_away_params, limit)},
                 sizeof(aq_keep_away_params),
                 inferKeepAway});
  ops.push_back({"sign_step",
                 {{"guard", kOptional}, {"schedule", kOptional}, {"v", kMutable}, {"g"}},
                 {},
                 {AQ_FLOAT(aq_sign_step_params, lr), AQ_FLOAT(aq_sign_step_params, limit)},
                 sizeof(aq_sign_step_params),
                 inferSignStep,
                 kFirst});
}

}  // namespace aq
