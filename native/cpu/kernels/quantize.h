// quantize.h: uniform integer grids (quant_grid) and what they do to values (fake_quant, quantize,
// dequantize).

// Which rule a grid follows, and with it what is differentiated: ours, or the published code's.
inline constexpr int32_t kPublishedRule = 1;
inline constexpr double kPublishedZeroLimit = 1e4;

// The parameters of a grid in the arithmetic of T.
template <class T>
struct GridRule {
  T top;     // largest code
  T levels;  // steps between the extremes: top, or 2^(bits-1) - 1 when symmetric
  T middle;  // zero point of a symmetric grid
  T floor;
  bool symmetric;
  bool published;

  GridRule(int32_t bits, bool isSymmetric, double least, int32_t rule)
      : top(T((1 << bits) - 1)),
        levels(isSymmetric ? T((1 << (bits - 1)) - 1) : top),
        middle(T((1 << (bits - 1)) - (rule == kPublishedRule ? 1 : 0))),
        floor(T(least)),
        symmetric(isSymmetric),
        published(rule == kPublishedRule) {}

  T rawScale(T low, T high) const {
    const T above = std::fabs(high), below = std::fabs(low);
    return (symmetric ? (above > below ? above : below) : high - low) / levels;
  }

  // The code that stands for zero, where s is the scale in use.
  T zeroPoint(T low, T s) const {
    if (symmetric) return middle;
    if (!published) {
      const T z = roundEven(-low / s);
      return z < top ? z : top;
    }
    const T limit = T(kPublishedZeroLimit), z = -low / s;
    return roundEven(z < -limit ? -limit : (z > limit ? limit : z));
  }

  // What a group's extremes are taken from besides its n elements: zero, or nothing.
  T seed(const T* x, int64_t n) const { return published && n > 0 ? x[0] : T(0); }
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

// ---------------------------------------------------------------- grid

template <class T>
inline T roundToHalf(T s) {
  return T(toFloat(toHalf(narrow(s))));
}

// Extremes of n values and `seed`; NaN is ignored.
template <class T>
inline void extremesOf(const T* x, int64_t n, T seed, T& low, T& high) {
  LaneArray<T> lows = LaneArray<T>::splat(seed), highs = lows;
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

static int32_t quantGrid(const aq_view* in, const aq_view* out, const void* params) {
  const auto& o = *static_cast<const aq_quant_grid_params*>(params);
  const Grouping grouping(in[0], o.group);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const GridRule<T> rule(o.bits, o.symmetric != 0, o.floor, o.rule);
    const ClipFactors<T> clip(in[1], grouping.rows * grouping.perRow);
    const T* x = ptr<T>(in[0]);
    grouping.each([&](int64_t index, int64_t at, int64_t n) {
      T low, high;
      extremesOf(x + at, n, rule.seed(x + at, n), low, high);
      high *= clip.high(index);
      low *= clip.low(index);
      T s = rule.rawScale(low, high);
      s = s > rule.floor ? s : rule.floor;
      if (o.round_f16) s = roundToHalf(s);
      mut<T>(out[0])[index] = s;
      mut<T>(out[1])[index] = rule.zeroPoint(low, s);
    });
    return int32_t(AQ_OK);
  });
}

// ---------------------------------------------------------------- values

// Runs body(x, v or null, s, z, place of the group in the matrix, length) on every group.
template <class T, class Body>
inline void eachOnGrid(const aq_view* in, int32_t group, const Body& body) {
  const T* v = ptr<T>(in[3]);
  Grouping(in[0], group).each([&](int64_t index, int64_t at, int64_t n) {
    body(ptr<T>(in[0]) + at, v ? v + at : nullptr, ptr<T>(in[1])[index], ptr<T>(in[2])[index], at,
         n);
  });
}

static int32_t fake_quant(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_fake_quant_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T top = T((1 << o.bits) - 1);
    eachOnGrid<T>(in, o.group, [&](const T* x, const T* v, T s, T z, int64_t at, int64_t n) {
      fakeQuantRange(x, v, s, z, top, mut<T>(out[0]) + at, n);
    });
    return int32_t(AQ_OK);
  });
}

static int32_t quantize(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_quantize_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T top = T((1 << o.bits) - 1);
    eachOnGrid<T>(in, o.group, [&](const T* x, const T* v, T s, T z, int64_t at, int64_t n) {
      quantizeRange(x, v, s, z, top, mut<uint8_t>(out[0]) + at, n);
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
