// Shape rules: lu_inverse (batched), matmul (batched product), hadamard (fast transform).
#include "native/core/op.h"

namespace aq {

namespace {
void inferInverse(Infer& in) {
  in.compute({0, 1});
  in.rank(0, 3);
  const Shape& a = in.shape(0);
  if (a[1] != a[2]) {
    in.fail(AQ_SHAPE, "only square matrices have an inverse, a is %s", toString(a).c_str());
  }
  if (in.has(1)) in.same(0, 1);
  in.range("pivot", in.params<aq_lu_inverse_params>().pivot, 0, 1);
  in.outputLike(0);
}

void inferMatmul(Infer& in) {
  const int32_t dtype = in.compute({0, 1});
  const auto& p = in.params<aq_matmul_params>();
  in.rank(0, 3);
  in.rank(1, 3);
  const Shape& a = in.shape(0);
  const Shape& b = in.shape(1);
  const int64_t m = p.trans_a ? a[2] : a[1];
  const int64_t ka = p.trans_a ? a[1] : a[2];
  const int64_t kb = p.trans_b ? b[2] : b[1];
  const int64_t n = p.trans_b ? b[1] : b[2];
  if (a[0] != b[0] || ka != kb) {
    in.fail(AQ_SHAPE, "batch or inner sizes differ: a %s%s x b %s%s", toString(a).c_str(),
            p.trans_a ? " transposed" : "", toString(b).c_str(), p.trans_b ? " transposed" : "");
  }
  in.output(dtype, {a[0], m, n});
}

void inferHadamard(Infer& in) {
  in.compute({0, 1, 2});
  in.range("inverse", in.params<aq_hadamard_params>().inverse, 0, 1);
  const int64_t size = in.numel(1);
  if (size < 1 || in.cols(0) % size != 0) {
    in.fail(AQ_SHAPE, "x %s has rows of %lld, which are not whole runs of the %lld signs",
            toString(in.shape(0)).c_str(), static_cast<long long>(in.cols(0)),
            static_cast<long long>(size));
  }
  int64_t odd = size;
  while (odd % 2 == 0) odd /= 2;
  if (odd == 1 && in.has(2)) {
    in.fail(AQ_ARG, "%lld is a power of two and takes no odd part, got %s: leave it out",
            static_cast<long long>(size), toString(in.shape(2)).c_str());
  }
  if (odd > 1 && (!in.has(2) || in.shape(2) != Shape{odd, odd})) {
    in.fail(AQ_SHAPE,
            "%lld is a power of two times %lld: odd must be an orthogonal [%lld, %lld], got %s",
            static_cast<long long>(size), static_cast<long long>(odd), static_cast<long long>(odd),
            static_cast<long long>(odd), in.has(2) ? toString(in.shape(2)).c_str() : "nothing");
  }
  in.outputLike(0);
}
}  // namespace

void addLinalgOps(std::vector<OpSpec>& ops) {
  using P = aq_matmul_params;
  ops.push_back({"lu_inverse",
                 {{"a"}, {"x0", kOptional}},
                 {"x"},
                 {AQ_INT(aq_lu_inverse_params, pivot)},
                 sizeof(aq_lu_inverse_params),
                 inferInverse});
  ops.push_back({"matmul",
                 {{"a"}, {"b"}},
                 {"y"},
                 {AQ_INT(P, trans_a), AQ_INT(P, trans_b), AQ_FLOAT(P, alpha)},
                 sizeof(P),
                 inferMatmul});
  ops.push_back({"hadamard",
                 {{"x"}, {"signs"}, {"odd", kOptional}},
                 {"y"},
                 {AQ_INT(aq_hadamard_params, inverse)},
                 sizeof(aq_hadamard_params),
                 inferHadamard});
}

}  // namespace aq
