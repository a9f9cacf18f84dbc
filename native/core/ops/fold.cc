// Shape rules of the folds on the weight side: scale_weight, head_matmul, rotate_pairs, gradual_mask.
#include "native/core/op.h"

namespace aq {

namespace {

void checkScales(const Infer& in) {
  in.rank(0, 2);
  if (in.has(1)) in.elements(1, in.shape(0)[0], "one per row of w");
  if (in.has(2)) in.elements(2, in.shape(0)[1], "one per column of w");
}

void inferScaleWeight(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2});
  checkScales(in);
  in.outputLike(0);
}

void inferScaleWeightGrad(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.compute(dtype, {1, 2});
  in.gradient(3, 0);
  checkScales(in);
  in.same(0, 3);
  in.output(dtype, {in.shape(0)[0]});
  in.output(dtype, {in.shape(0)[1]});
}

// Head size of w [heads*D, I] (side 0) or [O, heads*D] (side 1).
int64_t headSize(const Infer& in, int32_t side, int32_t heads) {
  in.range("side", side, 0, 1);
  in.range("heads", heads, 1, 1 << 20);
  in.rank(0, 2);
  const int64_t wide = in.shape(0)[size_t(side)];
  if (wide % heads != 0) {
    in.fail(AQ_SHAPE, "%lld %s of w %s cannot be cut into %d heads", static_cast<long long>(wide),
            side ? "columns" : "rows", toString(in.shape(0)).c_str(), heads);
  }
  return wide / heads;
}

void checkGroups(const Infer& in, int64_t heads, int64_t kvHeads) {
  if (kvHeads < 1 || heads % kvHeads != 0) {
    in.fail(AQ_SHAPE, "%lld heads cannot share %lld kv heads", static_cast<long long>(heads),
            static_cast<long long>(kvHeads));
  }
}

void inferHeadMatmul(Infer& in) {
  in.stored(1, in.computeOf(0));
  const auto& p = in.params<aq_head_matmul_params>();
  const int64_t d = headSize(in, p.side, p.heads);
  in.rank(1, 3);
  const Shape& m = in.shape(1);
  if (m[1] != d || m[2] != d) {
    in.fail(AQ_SHAPE, "m %s must be [Hkv, %lld, %lld] for w %s and %d heads", toString(m).c_str(),
            static_cast<long long>(d), static_cast<long long>(d), toString(in.shape(0)).c_str(),
            p.heads);
  }
  checkGroups(in, p.heads, m[0]);
  in.outputLike(0);
}

void inferHeadMatmulGrad(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.gradient(1, 0);
  const auto& p = in.params<aq_head_matmul_grad_params>();
  const int64_t d = headSize(in, p.side, p.heads);
  in.same(0, 1);
  checkGroups(in, p.heads, p.kv_heads);
  in.output(dtype, {p.kv_heads, d, d});
}

void checkSign(const Infer& in, const char* name, int32_t sign) {
  if (sign != 1 && sign != -1) in.fail(AQ_ARG, "%s must be 1 or -1, got %d", name, sign);
}

int64_t pairCount(const Infer& in, int32_t heads) {
  const int64_t d = headSize(in, 0, heads);
  if (d % 2 != 0) {
    in.fail(AQ_SHAPE, "the head size %lld is odd, so it has no pairs", static_cast<long long>(d));
  }
  return d / 2;
}

void inferRotatePairs(Infer& in) {
  in.compute(in.computeOf(0), {1, 2});
  const auto& p = in.params<aq_rotate_pairs_params>();
  const int64_t pairs = pairCount(in, p.heads);
  in.same(1, 2);
  in.rank(1, 2);
  if (in.shape(1)[1] != pairs) {
    in.fail(AQ_SHAPE, "log_r %s must be [Hkv, %lld] for w %s and %d heads",
            toString(in.shape(1)).c_str(), static_cast<long long>(pairs),
            toString(in.shape(0)).c_str(), p.heads);
  }
  checkGroups(in, p.heads, in.shape(1)[0]);
  checkSign(in, "sign_r", p.sign_r);
  checkSign(in, "sign_theta", p.sign_theta);
  in.outputLike(0);
}

void inferRotatePairsGrad(Infer& in) {
  const int32_t dtype = in.computeOf(0);
  in.gradient(1, 0);
  const auto& p = in.params<aq_rotate_pairs_grad_params>();
  const int64_t pairs = pairCount(in, p.heads);
  in.same(0, 1);
  checkGroups(in, p.heads, p.kv_heads);
  checkSign(in, "sign_r", p.sign_r);
  checkSign(in, "sign_theta", p.sign_theta);
  in.output(dtype, {p.kv_heads, pairs});
  in.output(dtype, {p.kv_heads, pairs});
}

void inferGradualMask(Infer& in) {
  in.compute({0});
  in.rank(0, 3);
  const Shape& s = in.shape(0);
  if (s[1] != s[2]) in.fail(AQ_SHAPE, "s %s must be [B, D, D]", toString(s).c_str());
  in.range("band", in.params<aq_gradual_mask_params>().band, 0, 1 << 30);
  in.outputLike(0);
}

}  // namespace

void addFoldOps(std::vector<OpSpec>& ops) {
  using Mm = aq_head_matmul_params;
  using MmGrad = aq_head_matmul_grad_params;
  using Rot = aq_rotate_pairs_params;
  using RotGrad = aq_rotate_pairs_grad_params;
  ops.push_back({"scale_weight",
                 {{"w"}, {"r", kOptional}, {"c", kOptional}},
                 {"y"},
                 {},
                 sizeof(aq_scale_weight_params),
                 inferScaleWeight});
  ops.push_back({"scale_weight_grad",
                 {{"w"}, {"r", kOptional}, {"c", kOptional}, {"g"}},
                 {"gr", "gc"},
                 {},
                 sizeof(aq_scale_weight_grad_params),
                 inferScaleWeightGrad});
  ops.push_back({"head_matmul",
                 {{"w"}, {"m"}},
                 {"y"},
                 {AQ_INT(Mm, side), AQ_INT(Mm, transpose), AQ_INT(Mm, heads)},
                 sizeof(Mm),
                 inferHeadMatmul});
  ops.push_back({"head_matmul_grad",
                 {{"w"}, {"g"}},
                 {"gm"},
                 {AQ_INT(MmGrad, side), AQ_INT(MmGrad, transpose), AQ_INT(MmGrad, heads),
                  AQ_INT(MmGrad, kv_heads), AQ_INT(MmGrad, accumulate)},
                 sizeof(MmGrad),
                 inferHeadMatmulGrad});
  ops.push_back({"rotate_pairs",
                 {{"w"}, {"log_r"}, {"theta"}},
                 {"y"},
                 {AQ_INT(Rot, heads), AQ_INT(Rot, sign_r), AQ_INT(Rot, sign_theta)},
                 sizeof(Rot),
                 inferRotatePairs});
  ops.push_back({"rotate_pairs_grad",
                 {{"y"}, {"g"}},
                 {"glog_r", "gtheta"},
                 {AQ_INT(RotGrad, heads), AQ_INT(RotGrad, kv_heads), AQ_INT(RotGrad, sign_r),
                  AQ_INT(RotGrad, sign_theta)},
                 sizeof(RotGrad),
                 inferRotatePairsGrad});
  ops.push_back({"gradual_mask",
                 {{"s"}},
                 {"a"},
                 {AQ_INT(aq_gradual_mask_params, band), AQ_FLOAT(aq_gradual_mask_params, sf)},
                 sizeof(aq_gradual_mask_params),
                 inferGradualMask});
}

}  // namespace aq
