// quantize.h: uniform integer grids (quant_grid), what they do to values (fake_quant, quantize,
// dequantize) and the gradient of quantizing (fake_quant_grad).
//
// Gradient of y = (q - z) s with u = x / s, q = clamp(round(u) + z, 0, n), through every round as
// if it were not there; `in` is 1 where the clamp did not act (its bounds included):
//   dy/dx = in     dy/ds = (q - z) - in u     dy/dz = s (in - 1)
//   asymmetric: s = (hi - lo) / n, z = -lo / s, so dz/ds = lo / s^2 and dz/dlo = -1 / s
//   symmetric:  s = max(hi, -lo) / h, z constant; a tie of hi and -lo shares equally
// hi = f1 max(max x, 0) and lo = f2 min(min x, 0) pass on to their factors and, in equal parts, to
// the elements that attain them; s passes nothing on where its floor acts.
// With S = sum g ((q - z) - in u) and Z = sum g (1 - in), everything a group needs is S, Z, the
// extremes and how often they occur: one pass over x and g, and one more for the few elements that
// are extreme.

// The parameters of a grid in the arithmetic of T.
template <class T>
struct GridRule {
  T top;     // largest code
  T levels;  // steps between the extremes: top, or 2^(bits-1) - 1 when symmetric
  T middle;  // zero point of a symmetric grid
  T floor;
  bool symmetric;

  GridRule(int32_t bits, bool isSymmetric, double least)
      : top(T((1 << bits) - 1)),
        levels(isSymmetric ? T((1 << (bits - 1)) - 1) : top),
        middle(T(1 << (bits - 1))),
        floor(T(least)),
        symmetric(isSymmetric) {}

  T rawScale(T low, T high) const {
    return (symmetric ? (high > -low ? high : -low) : high - low) / levels;
  }
};

// Clipping factors f1, f2 of a group: sigmoid of one shared logit, of the group's own two, or 1.
template <class T>
struct ClipFactors {
  const T* logits;
  int64_t groups;  // of the whole tensor
  bool shared;
  T common;

  ClipFactors(const aq_view& clip, int64_t allGroups)
      : logits(ptr<T>(clip)),
        groups(allGroups),
        shared(!logits || numel(clip) == 1),
        common(logits && shared ? sigmoidOf(logits[0]) : T(1)) {}

  T high(int64_t index) const { return shared ? common : sigmoidOf(logits[index]); }
  T low(int64_t index) const { return shared ? common : sigmoidOf(logits[groups + index]); }
};

// A matrix cut into groups. body(index of the group, offset, length).
struct Grouping {
  int64_t rows, cols, group, perRow;

  Grouping(const aq_view& x, int32_t size)
      : rows(rowCount(x)),
        cols(lastDim(x)),
        group(groupSize(size, cols)),
        perRow(ceilDiv(cols, group)) {}

  template <class Body>
  void inRows(int64_t first, int64_t end, const Body& body) const {
    for (int64_t row = first; row < end; row++)
      for (int64_t g = 0, at = 0; g < perRow; g++, at += group)
        body(row * perRow + g, row * cols + at, cols - at < group ? cols - at : group);
  }

  template <class Body>
  void each(const Body& body) const {
    forRows(rows, cols, [&](int64_t first, int64_t end) { inRows(first, end, body); });
  }
};

// ---------------------------------------------------------------- lanes

// kLanes running values of T in the level's vectors. Explicit vectors, because GCC keeps several
// accumulators in memory when they are arrays (8 times slower). There are kLanes of them at every
// level, folded by the tree that sumOf uses, so that sums have the same bits everywhere.
template <class T>
struct LaneArray {
  using V = Vec<T>;
  using Type = typename V::Type;
  static constexpr int kCount = kLanes<T>;
  static constexpr int kParts = kCount / V::kWidth;
  Type part[kParts];

  template <class Op>
  T fold(const Op& op) const {
    Type x[kParts];
    AQ_UNROLL
    for (int p = 0; p < kParts; p++) x[p] = part[p];
    AQ_UNROLL
    for (int width = kParts / 2; width > 0; width /= 2)
      for (int p = 0; p < width; p++) x[p] = op(x[p], x[p + width]);
    return halve<V::kWidth / 2>(x[0], op)[0];
  }

 private:
  template <int Step, class Op>
  static Type halve(Type x, const Op& op) {
    if constexpr (Step > 0)
      return halve<Step / 2>(op(x, exchange<Step>(x, std::make_integer_sequence<int, V::kWidth>{})),
                             op);
    else
      return x;
  }
  template <int Step, int... I>
  static Type exchange(Type x, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, x, (I ^ Step)...);
  }
};

// For vectors lane by lane, and for single values. Where either is NaN, the first stays.
struct Sum {
  template <class V>
  V operator()(V a, V b) const { return a + b; }
};
struct Most {
  template <class V>
  V operator()(V a, V b) const { return b > a ? b : a; }
};
struct Least {
  template <class V>
  V operator()(V a, V b) const { return b < a ? b : a; }
};

// ---------------------------------------------------------------- grid

template <class T>
inline T roundToHalf(T s) {
  return T(toFloat(toHalf(narrow(s))));
}

// Extremes of n values and 0; NaN is ignored.
template <class T>
inline void extremesOf(const T* x, int64_t n, T& low, T& high) {
  LaneArray<T> lows{}, highs{};
  int64_t i = 0;
  for (; i + LaneArray<T>::kCount <= n; i += LaneArray<T>::kCount) {
    AQ_UNROLL
    for (int p = 0; p < LaneArray<T>::kParts; p++) {
      const auto value = Vec<T>::load(x + i + p * Vec<T>::kWidth);
      lows.part[p] = Least{}(lows.part[p], value);
      highs.part[p] = Most{}(highs.part[p], value);
    }
  }
  low = lows.fold(Least{});
  high = highs.fold(Most{});
  for (; i < n; i++) {
    low = Least{}(low, x[i]);
    high = Most{}(high, x[i]);
  }
}

static int32_t quant_grid(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_quant_grid_params*>(params);
  const Grouping grouping(in[0], o.group);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const GridRule<T> rule(o.bits, o.symmetric != 0, o.floor);
    const ClipFactors<T> clip(in[1], grouping.rows * grouping.perRow);
    const T* x = ptr<T>(in[0]);
    grouping.each([&](int64_t index, int64_t at, int64_t n) {
      T low, high;
      extremesOf(x + at, n, low, high);
      high *= clip.high(index);
      low *= clip.low(index);
      T s = rule.rawScale(low, high);
      s = s > rule.floor ? s : rule.floor;
      if (o.round_f16) s = roundToHalf(s);
      T z = rule.middle;
      if (!rule.symmetric) {
        z = roundEven(-low / s);
        z = z < rule.top ? z : rule.top;
      }
      mut<T>(out[0])[index] = s;
      mut<T>(out[1])[index] = z;
    });
    return int32_t(AQ_OK);
  });
}

// ---------------------------------------------------------------- values

// The code of x before it becomes an integer; NaN stays NaN.
template <class T>
inline T codeOf(T x, T s, T z, T top) {
  const T q = roundEven(x / s) + z;
  const T atLeast = q < T(0) ? T(0) : q;
  return atLeast > top ? top : atLeast;
}

template <class T>
inline void fakeQuantRange(const T* x, T s, T z, T top, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = (codeOf(x[i], s, z, top) - z) * s;
}

static int32_t fake_quant(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_fake_quant_params*>(params);
  const Grouping grouping(in[0], o.group);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T top = T((1 << o.bits) - 1);
    grouping.each([&](int64_t index, int64_t at, int64_t n) {
      fakeQuantRange(ptr<T>(in[0]) + at, ptr<T>(in[1])[index], ptr<T>(in[2])[index], top,
                     mut<T>(out[0]) + at, n);
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline void quantizeRange(const T* __restrict x, T s, T z, T top, uint8_t* __restrict codes,
                          int64_t n) {
  for (int64_t i = 0; i < n; i++) codes[i] = uint8_t(int32_t(codeOf(x[i], s, z, top)));
}

static int32_t quantize(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_quantize_params*>(params);
  const Grouping grouping(in[0], o.group);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T top = T((1 << o.bits) - 1);
    grouping.each([&](int64_t index, int64_t at, int64_t n) {
      quantizeRange(ptr<T>(in[0]) + at, ptr<T>(in[1])[index], ptr<T>(in[2])[index], top,
                    mut<uint8_t>(out[0]) + at, n);
    });
    return int32_t(AQ_OK);
  });
}

template <class T>
inline void dequantizeRange(const uint8_t* __restrict codes, T s, T z, T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (T(codes[i]) - z) * s;
}

static int32_t dequantize(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_dequantize_params*>(params);
  const Grouping grouping(in[0], o.group);
  return visitFloat(in[1].dtype, [&](auto zero) {
    using T = decltype(zero);
    grouping.each([&](int64_t index, int64_t at, int64_t n) {
      dequantizeRange(ptr<uint8_t>(in[0]) + at, ptr<T>(in[1])[index], ptr<T>(in[2])[index],
                      mut<T>(out[0]) + at, n);
    });
    return int32_t(AQ_OK);
  });
}

// ---------------------------------------------------------------- gradient

// What one pass over a group gathers. The extremes start at 0, as the grid's do; a count of 0 says
// that no element attains the extreme, and then nothing flows to x through it.
template <class T>
struct GroupSums {
  T steps = T(0);    // S
  T outside = T(0);  // Z
  T low = T(0), high = T(0), lowCount = T(0), highCount = T(0);
};

// Takes one x and g (V = T) or a vector of them into the running values; returns gx = in g.
template <class T, class V>
inline V gradStep(V x, V g, T s, T z, T top, V& steps, V& outside, V& low, V& high, V& lowCount,
                  V& highCount) {
  constexpr T magic = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);  // as in roundEven
  const V none{}, one = none + T(1), most = none + top;
  const V u = x / s;
  const V code = ((u + magic) - magic) + z;
  const V atLeast = code < none ? none : code;
  const V q = atLeast > most ? most : atLeast;
  const auto inside = q == code;
  steps += g * ((q - z) - (inside ? u : none));
  outside += inside ? none : g;
  highCount = (x > high ? none : highCount) + (x >= high ? one : none);
  lowCount = (x < low ? none : lowCount) + (x <= low ? one : none);
  high = Most{}(high, x);
  low = Least{}(low, x);
  return inside ? g : none;
}

// The sums of a group, and gx = in g.
template <class T>
inline GroupSums<T> gradSums(const T* x, const T* g, T s, T z, T top, T* __restrict gx, int64_t n) {
  using V = Vec<T>;
  using Lanes = LaneArray<T>;
  Lanes steps{}, outside{}, low{}, high{}, lowCount{}, highCount{};
  int64_t i = 0;
  for (; i + Lanes::kCount <= n; i += Lanes::kCount) {
    AQ_UNROLL
    for (int p = 0; p < Lanes::kParts; p++) {
      const int64_t at = i + p * V::kWidth;
      V::store(gx + at, gradStep<T>(V::load(x + at), V::load(g + at), s, z, top, steps.part[p],
                                    outside.part[p], low.part[p], high.part[p], lowCount.part[p],
                                    highCount.part[p]));
    }
  }
  GroupSums<T> sums;
  sums.high = high.fold(Most{});
  sums.low = low.fold(Least{});
  AQ_UNROLL
  for (int p = 0; p < Lanes::kParts; p++) {
    highCount.part[p] = high.part[p] == V::splat(sums.high) ? highCount.part[p] : V::zero();
    lowCount.part[p] = low.part[p] == V::splat(sums.low) ? lowCount.part[p] : V::zero();
  }
  sums.steps = steps.fold(Sum{});
  sums.outside = outside.fold(Sum{});
  sums.highCount = highCount.fold(Sum{});
  sums.lowCount = lowCount.fold(Sum{});
  for (; i < n; i++)
    gx[i] = gradStep<T>(x[i], g[i], s, z, top, sums.steps, sums.outside, sums.low, sums.high,
                        sums.lowCount, sums.highCount);
  return sums;
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
    const T share = high > -low ? T(1) : (high == -low ? T(0.5) : T(0));
    return {raw * share, -raw * (T(1) - share)};
  }
  const T raw = free ? (sums.steps - sums.outside * low / s) / rule.levels : T(0);
  return {raw, sums.outside - raw};
}

template <class T>
inline void addAtExtremes(const T* x, T low, T lowShare, T high, T highShare, T* __restrict gx,
                          int64_t n) {
  for (int64_t i = 0; i < n; i++)
    gx[i] += (x[i] == high ? highShare : T(0)) + (x[i] == low ? lowShare : T(0));
}

static int32_t fake_quant_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                               const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_fake_quant_grad_params*>(params);
  const Grouping grouping(in[0], o.group);
  const int64_t groups = grouping.rows * grouping.perRow;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const GridRule<T> rule(o.bits, o.symmetric != 0, o.floor);
    const ClipFactors<T> clip(in[4], groups);
    const bool oneLogit = clip.logits && clip.shared;
    T* clipGrad = mut<T>(out[1]);

    // One logit collects from all groups: a partial sum per band of rows, added in order.
    const int64_t step = rowsPerTask(grouping.cols);
    const int64_t bands = ceilDiv(grouping.rows, step);
    const Partials<double> partials(oneLogit ? bands : 0);
    double* bandSums = partials.data();
    if (!bandSums) return noPartials(err, "fake_quant_grad", bands * int64_t(sizeof(double)));

    parallelFor(bands, [&](int64_t band) {
      double factorGrad = 0;
      const int64_t first = band * step;
      const int64_t end = grouping.rows - first < step ? grouping.rows : first + step;
      grouping.inRows(first, end, [&](int64_t index, int64_t at, int64_t n) {
        const T* x = ptr<T>(in[0]) + at;
        T* gx = mut<T>(out[0]) + at;
        const T s = ptr<T>(in[1])[index], z = ptr<T>(in[2])[index];
        const GroupSums<T> sums = gradSums(x, ptr<T>(in[3]) + at, s, z, rule.top, gx, n);
        const T f1 = clip.high(index), f2 = clip.low(index);
        const ExtremeGrads<T> grads =
            extremeGrads(sums, rule, s, sums.low * f2, sums.high * f1);
        const T highShare = sums.highCount > T(0) ? grads.high * f1 / sums.highCount : T(0);
        const T lowShare = sums.lowCount > T(0) ? grads.low * f2 / sums.lowCount : T(0);
        addAtExtremes(x, sums.low, lowShare, sums.high, highShare, gx, n);
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
