// fake_quant_grad.h: the gradient of learned fake quantization.
//
// y = (q - z) s with u = x / s, q = clamp(round(u + v) + z, 0, n), through every round as if it were
// not there; `in` is 1 where the clamp did not act (its bounds included):
//   dy/dx = in     dy/dv = in s     dy/ds = (q - z) - in u     dy/dz = s (in - 1)
//   asymmetric: s = (hi - lo) / n, z = -lo / s, so dz/ds = lo / s^2 and dz/dlo = -1 / s
//   symmetric:  s = max(hi, -lo) / h, z constant; a tie of hi and -lo shares equally
// hi = f1 max(max x, 0) and lo = f2 min(min x, 0) pass on to their factors and, in equal parts, to
// the elements that attain them; s passes nothing on where its floor acts.
// With S = sum g ((q - z) - in u) and Z = sum g (1 - in), everything a group needs is S, Z, the
// extremes and how often they occur: one pass over x and g, and one more for the few elements that
// are extreme. Where x wants no gradient (it is a constant while rounding is learned) neither counts
// nor the second pass are needed.
// The published rule differs in that z passes nothing on, and in that hi and lo need not lie on
// either side of zero.

// What one pass over a group gathers. The extremes start at the grid's seed; a count of 0 says that
// no element attains the extreme, and then nothing flows to x through it.
template <class T>
struct GroupSums {
  T steps = T(0);    // S
  T outside = T(0);  // Z
  T low = T(0), high = T(0), lowCount = T(0), highCount = T(0);
};

// A group's memory. v and gv are null or not together; gx is null where it is not wanted.
template <class T>
struct GradGroup {
  const T* x;
  const T* g;
  const T* v;
  T* gx;
  T* gv;
  T s, z, top, seed;
  int64_t n;
};

// Takes one x, g and v (V = T) or a vector of them into the running values; returns in g.
template <class T, bool kOffset, bool kCounts, class V>
inline V gradStep(V x, V g, V v, T s, T z, T top, V& steps, V& outside, V& low, V& high,
                  V& lowCount, V& highCount) {
  constexpr T magic = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);  // as in roundEven
  const V none{}, one = none + T(1), most = none + top;
  const V u = x / s;
  const V code = (((kOffset ? u + v : u) + magic) - magic) + z;
  const V atLeast = code < none ? none : code;
  const V q = atLeast > most ? most : atLeast;
  const auto inside = q == code;
  steps += g * ((q - z) - (inside ? u : none));
  outside += inside ? none : g;
  if constexpr (kCounts) {
    highCount = (x > high ? none : highCount) + (x >= high ? one : none);
    lowCount = (x < low ? none : lowCount) + (x <= low ? one : none);
  }
  high = Most{}(high, x);
  low = Least{}(low, x);
  return inside ? g : none;
}

// The sums of a group, gx = in g and gv = in g s.
template <class T, bool kOffset, bool kValues>
static GroupSums<T> gradSums(const GradGroup<T>& group) {
  using V = Vec<T>;
  using Lanes = LaneArray<T>;
  const T* const x = group.x;
  const T* const g = group.g;
  const T* const v = kOffset ? group.v : x;
  T* __restrict const gx = group.gx;
  T* __restrict const gv = group.gv;
  const T s = group.s, z = group.z, top = group.top;
  const int64_t n = group.n;
  Lanes steps{}, outside{}, lowCount{}, highCount{};
  Lanes low = Lanes::splat(group.seed), high = low;
  int64_t i = 0;
  for (; i + Lanes::kCount <= n; i += Lanes::kCount) {
    AQ_UNROLL
    for (int p = 0; p < Lanes::kParts; p++) {
      const int64_t at = i + p * V::kWidth;
      const auto passed = gradStep<T, kOffset, kValues>(
          V::load(x + at), V::load(g + at), V::load(v + at), s, z, top, steps.part[p],
          outside.part[p], low.part[p], high.part[p], lowCount.part[p], highCount.part[p]);
      if constexpr (kValues) V::store(gx + at, passed);
      if constexpr (kOffset) V::store(gv + at, passed * s);
    }
  }
  GroupSums<T> sums;
  sums.high = high.fold(Most{});
  sums.low = low.fold(Least{});
  sums.steps = steps.fold(Sum{});
  sums.outside = outside.fold(Sum{});
  if constexpr (kValues) {
    AQ_UNROLL
    for (int p = 0; p < Lanes::kParts; p++) {
      highCount.part[p] = high.part[p] == V::splat(sums.high) ? highCount.part[p] : V::zero();
      lowCount.part[p] = low.part[p] == V::splat(sums.low) ? lowCount.part[p] : V::zero();
    }
    sums.highCount = highCount.fold(Sum{});
    sums.lowCount = lowCount.fold(Sum{});
  }
  for (; i < n; i++) {
    const T passed =
        gradStep<T, kOffset, kValues>(x[i], g[i], v[i], s, z, top, sums.steps, sums.outside,
                                      sums.low, sums.high, sums.lowCount, sums.highCount);
    if constexpr (kValues) gx[i] = passed;
    if constexpr (kOffset) gv[i] = passed * s;
  }
  return sums;
}

template <class T>
inline GroupSums<T> gradSums(const GradGroup<T>& group) {
  if (group.v) return group.gx ? gradSums<T, true, true>(group) : gradSums<T, true, false>(group);
  return group.gx ? gradSums<T, false, true>(group) : gradSums<T, false, false>(group);
}

// Gradients of the clipped extremes hi = f1 high and lo = f2 low.
template <class T>
struct ExtremeGrads {
  T high, low;
};

template <class T>
inline ExtremeGrads<T> extremeGrads(const GroupSums<T>& sums, const GridRule<T>& rule, T s, T low,
                                    T high) {
  const bool free = rule.rawScale(low, high) >= rule.floor;
  if (rule.symmetric) {
    const T raw = free ? sums.steps / rule.levels : T(0);
    const T above = std::fabs(high), below = std::fabs(low);
    const T share = above > below ? T(1) : (above == below ? T(0.5) : T(0));
    return {raw * std::copysign(share, high), raw * std::copysign(T(1) - share, low)};
  }
  if (rule.published) {
    const T raw = free ? sums.steps / rule.levels : T(0);
    return {raw, -raw};
  }
  const T raw = free ? (sums.steps - sums.outside * low / s) / rule.levels : T(0);
  return {raw, sums.outside - raw};
}

// Adds to gx what flows through the extremes of the group.
template <class T>
inline void addAtExtremes(const GradGroup<T>& group, const GroupSums<T>& sums, T lowGrad,
                          T highGrad) {
  const T lowShare = sums.lowCount > T(0) ? lowGrad / sums.lowCount : T(0);
  const T highShare = sums.highCount > T(0) ? highGrad / sums.highCount : T(0);
  const T* const x = group.x;
  T* __restrict const gx = group.gx;
  for (int64_t i = 0; i < group.n; i++)
    gx[i] += (x[i] == sums.high ? highShare : T(0)) + (x[i] == sums.low ? lowShare : T(0));
}

static int32_t fakeQuantGrad(const aq_view* in, const aq_view* out, const void* params,
                             aq_error* err) {
  const auto& o = *static_cast<const aq_fake_quant_grad_params*>(params);
  const Grouping grouping(in[0], o.group);
  const int64_t groups = grouping.rows * grouping.perRow;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const GridRule<T> rule(o.bits, o.symmetric != 0, o.floor, o.rule);
    const ClipFactors<T> clip(in[4], groups);
    const bool oneLogit = clip.logits && clip.shared;
    const T* const v = ptr<T>(in[5]);
    T* const clipGrad = mut<T>(out[1]);

    // One logit collects from all groups: a partial sum per band of rows, added in order.
    const int64_t step = rowsPerTask(grouping.cols);
    const int64_t bands = ceilDiv(grouping.rows, step);
    const Partials<double> partials(oneLogit ? bands : 0);
    double* const bandSums = partials.data();
    if (!bandSums) return noPartials(err, "fake_quant_grad", bands * int64_t(sizeof(double)));

    parallelFor(bands, [&](int64_t band) {
      double factorGrad = 0;
      const int64_t first = band * step;
      const int64_t end = grouping.rows - first < step ? grouping.rows : first + step;
      grouping.inRows(first, end, [&](int64_t index, int64_t at, int64_t n) {
        const GradGroup<T> group{ptr<T>(in[0]) + at,
                                 ptr<T>(in[3]) + at,
                                 v ? v + at : nullptr,
                                 o.need_gx ? mut<T>(out[0]) + at : nullptr,
                                 v ? mut<T>(out[2]) + at : nullptr,
                                 ptr<T>(in[1])[index],
                                 ptr<T>(in[2])[index],
                                 rule.top,
                                 rule.seed(ptr<T>(in[0]) + at, n),
                                 n};
        const GroupSums<T> sums = gradSums(group);
        const T f1 = clip.high(index), f2 = clip.low(index);
        const ExtremeGrads<T> grads =
            extremeGrads(sums, rule, group.s, sums.low * f2, sums.high * f1);
        if (o.need_gx) addAtExtremes(group, sums, grads.low * f2, grads.high * f1);
        if (oneLogit) {
          factorGrad += double(grads.high) * double(sums.high);
          factorGrad += double(grads.low) * double(sums.low);
        } else if (clip.logits) {
          clipGrad[index] = grads.high * sums.high * (f1 * (T(1) - f1));
          clipGrad[groups + index] = grads.low * sums.low * (f2 * (T(1) - f2));
        }
      });
      if (oneLogit) bandSums[band] = factorGrad;
    });
    if (oneLogit) {
      double total = 0;
      for (int64_t band = 0; band < bands; band++) total += bandSums[band];
      clipGrad[0] = T(total * (double(clip.common) * (1.0 - double(clip.common))));
    }
    return int32_t(AQ_OK);
  });
}
