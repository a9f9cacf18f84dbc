// fp4_numbers.h: the numbers of 4-bit floats: e2m1, whose groups share a scale, an e4m3 (NVFP4) or a power
// of two (MXFP4). The rules are in params.h.
//
// A row is taken in pieces that stay in the first-level cache: the largest magnitude of every group,
// then the scales of all groups together, then the numbers. Magnitudes are compared as their bits, in
// which a NaN is larger than any number and so is never lost.

namespace fp4 {

inline constexpr int32_t kMxfp4 = 1;     // the other format is 0, NVFP4
inline constexpr int64_t kPiece = 1024;  // columns; whole groups of either format
inline constexpr int64_t kMostGroups = kPiece / 16;
inline constexpr double kLeastScale = 1.0 / 512, kMostScale = 448;  // e4m3fn's above zero
inline constexpr double kTop = 6;                                   // e2m1's largest
inline constexpr double kWholeRange = kMostScale * kTop;

inline int64_t groupOf(int32_t format) { return format == kMxfp4 ? 32 : 16; }

// Floats as their bits.
template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T>
inline constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
template <class T>
inline constexpr int kBias = sizeof(T) == 8 ? 1023 : 127;

// Adding and subtracting this rounds to whole numbers, half to even (as roundEven does).
template <class T>
inline constexpr T kRounding = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);

// The level's vectors of T, and the same lanes as whole numbers.
template <class T>
struct Lane {
  using Numbers = typename Vec<T>::Type;
  static constexpr int kWidth = Vec<T>::kWidth;
  typedef std::make_signed_t<BitsOf<T>> Bits __attribute__((vector_size(kWidth * sizeof(T))));

  static Bits splat(BitsOf<T> x) { return Bits{} + std::make_signed_t<BitsOf<T>>(x); }
  static Numbers size(Numbers x) { return (Numbers)((Bits)x & splat(~BitsOf<T>(0) >> 1)); }
  // y with its sign turned where x has one.
  static Numbers turned(Numbers y, Numbers x) {
    return (Numbers)((Bits)y ^ ((Bits)x & splat(~(~BitsOf<T>(0) >> 1))));
  }

  // Lane j of the result: all lanes of x[j] by the tree of LaneArray; x has kWidth vectors.
  template <int Step = kWidth / 2, class V, class Op>
  static V foldEach(V* x, const Op& op) {
    if constexpr (Step > 0) {
      AQ_UNROLL
      for (int j = 0; j < Step; j++)
        x[j] = joined<Step>(x[j], x[j + Step], op, std::make_integer_sequence<int, kWidth>{});
      return foldEach<Step / 2>(x, op);
    } else {
      return x[0];
    }
  }

 private:
  template <int Step, class V, class Op, int... I>
  static V joined(V x, V y, const Op& op, std::integer_sequence<int, I...>) {
    return op(__builtin_shufflevector(x, y, (I & Step ? kWidth + I - Step : I)...),
              __builtin_shufflevector(x, y, (I & Step ? kWidth + I : I + Step)...));
  }
};

// The larger of two magnitudes, of which a NaN is the largest.
template <class T>
struct Larger {
  using Numbers = typename Lane<T>::Numbers;
  using Bits = typename Lane<T>::Bits;
  Numbers operator()(Numbers a, Numbers b) const { return (Numbers)Most{}((Bits)a, (Bits)b); }
};

// A vector of every group of a piece, to be folded together.
template <class T>
struct GroupLanes {
  typename Lane<T>::Numbers lanes[kMostGroups];

  template <class Op>
  void fold(int64_t groups, T* to, const Op& op) {
    constexpr int kWidth = Lane<T>::kWidth;
    for (int64_t j = groups; j % kWidth != 0; j++) lanes[j] = Vec<T>::zero();
    for (int64_t j = 0; j < groups; j += kWidth)
      Vec<T>::store(to + j, Lane<T>::foldEach(lanes + j, op));
  }
};

template <class T>
inline typename Lane<T>::Numbers sizeOf(typename Lane<T>::Numbers x) {
  return Lane<T>::size(x);
}

// The largest magnitude of n values, a NaN where there is one.
template <class T>
inline T largestSize(const T* x, int64_t n) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  typename V::Type most[kWidth];
  for (int p = 0; p < kWidth; p++) most[p] = V::zero();
  int64_t i = 0;
  for (; i + kWidth * kWidth <= n; i += kWidth * kWidth) {
    AQ_UNROLL
    for (int p = 0; p < kWidth; p++)
      most[p] = Larger<T>{}(most[p], sizeOf<T>(V::load(x + i + p * kWidth)));
  }
  for (; i + kWidth <= n; i += kWidth) most[0] = Larger<T>{}(most[0], sizeOf<T>(V::load(x + i)));
  T sizes[kWidth], all = T(0);
  V::store(sizes, Lane<T>::foldEach(most, Larger<T>{}));
  const auto take = [&](T size) { all = size > all || size != size ? size : all; };
  for (int p = 0; p < kWidth; p++) take(sizes[p]);
  for (; i < n; i++) take(std::fabs(x[i]));
  return all;
}

// The same of every group of a piece; `sizes` has room for kMostGroups.
template <class T>
inline void largestSizes(const T* x, int64_t group, int64_t groups, T* sizes) {
  using V = Vec<T>;
  GroupLanes<T> most;
  for (int64_t j = 0; j < groups; j++, x += group) {
    typename V::Type all = sizeOf<T>(V::load(x));
    for (int64_t i = V::kWidth; i < group; i += V::kWidth)
      all = Larger<T>{}(all, sizeOf<T>(V::load(x + i)));
    most.lanes[j] = all;
  }
  most.fold(groups, sizes, Larger<T>{});
}

// ---------------------------------------------------------------- scales

// The matrix's global scale, for which a missing or unbounded one is 1.
template <class T>
inline T globalOf(const aq_view& g) {
  const T value = present(g) ? *ptr<T>(g) : T(1);
  return std::isfinite(value) ? value : T(1);
}

// What NVFP4's scale is the rounded form of.
template <class T>
inline T scaleBefore(T a, T g) {
  return a / T(kTop) * g;
}

// t as the nearest e4m3fn, ties to even, kept off zero; a NaN stays.
template <class T>
inline T nearestE4m3(T t) {
  t = t < T(kLeastScale) ? T(kLeastScale) : t;
  t = t > T(kMostScale) ? T(kMostScale) : t;
  // The power of two at or below t: eight steps.
  const BitsOf<T> power = __builtin_bit_cast(BitsOf<T>, t) >> kMantissa<T> << kMantissa<T>;
  T step = __builtin_bit_cast(T, power) * T(0.125);
  step = step < T(kLeastScale) ? T(kLeastScale) : step;
  const T rounding = step * kRounding<T>;
  return (t + rounding) - rounding;
}

// The power of two that lets the e2m1 numbers reach a; a NaN stays.
template <class T>
inline T powerScale(T a) {
  using I = std::make_signed_t<BitsOf<T>>;
  const BitsOf<T> raised = __builtin_bit_cast(BitsOf<T>, a) + (BitsOf<T>(1) << (kMantissa<T> - 2));
  I exponent = I(raised >> kMantissa<T>) - (kBias<T> + 2);
  exponent = exponent < I(-126) ? I(-126) : exponent;
  exponent = exponent > I(127) ? I(127) : exponent;
  const T s = __builtin_bit_cast(T, BitsOf<T>(exponent + kBias<T>) << kMantissa<T>);
  return a != a ? a : s;
}

// Scales of n groups with clipped magnitudes a.
template <class T>
inline void scalesOf(const T* __restrict a, T g, int32_t format, T* __restrict s, int64_t n) {
  if (format == kMxfp4) {
    for (int64_t i = 0; i < n; i++) s[i] = powerScale(a[i]);
  } else {
    for (int64_t i = 0; i < n; i++) s[i] = nearestE4m3(scaleBefore(a[i], g));
  }
}

// Clipping factors: sigmoid of one shared logit, of the group's own, or 1.
template <class T>
struct Clip {
  const T* logits;
  bool shared;
  T common;

  explicit Clip(const aq_view& clip)
      : logits(ptr<T>(clip)),
        shared(!logits || numel(clip) == 1),
        common(logits && shared ? sigmoidOf(logits[0]) : T(1)) {}

  // Those of n groups from `first` on.
  void factors(int64_t first, int64_t n, T* __restrict f) const {
    if (shared) {
      for (int64_t i = 0; i < n; i++) f[i] = common;
    } else {
      for (int64_t i = 0; i < n; i++) f[i] = sigmoidOf(logits[first + i]);
    }
  }
};

// ---------------------------------------------------------------- numbers

// Distance of neighbouring e2m1 numbers around a magnitude. V: a vector of T.
template <class T, class V>
inline V stepAt(V size) {
  const V none{};
  return size < none + T(2) ? none + T(0.5) : (size < none + T(4) ? none + T(1) : none + T(2));
}

// w within e2m1's range; a NaN stays.
template <class T, class V>
inline V clamped(V w) {
  const V none{}, top = none + T(kTop);
  const V atLeast = w < -top ? -top : w;
  return atLeast > top ? top : atLeast;
}

// The e2m1 number nearest to w, which lies in its range; zero is never negative.
template <class T, class V>
inline V nearestE2m1(V w) {
  const V rounding = stepAt<T, V>(sizeOf<T>(w)) * kRounding<T>;
  return (w + rounding) - rounding;
}

// The e2m1 numbers of x, where k = g / s, times `by`.
template <class T, bool kOffset>
inline void numbersOf(const T* x, const T* v, T k, T by, T* y, int64_t n) {
  using V = Vec<T>;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    typename V::Type u = V::load(x + i) * k;
    if constexpr (kOffset) u += V::load(v + i) * stepAt<T>(sizeOf<T>(u));
    V::store(y + i, nearestE2m1<T>(clamped<T>(u)) * by);
  }
}

// Codes of e2m1 numbers; 0 for a NaN, whose scale is one.
template <class T>
inline void codesOf(const T* __restrict q, uint8_t* __restrict codes, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const T size = q[i] < T(0) ? -q[i] : q[i];
    const T code = size < T(2) ? size * T(2) : (size < T(4) ? size + T(2) : size * T(0.5) + T(4));
    codes[i] = uint8_t(int32_t(code == code ? code : T(0)) | (q[i] < T(0) ? 8 : 0));
  }
}

// The numbers of n codes 0 .. 15. Twice them are whole, and are found in bytes.
template <class T>
inline void decode(const uint8_t* codes, T* __restrict q, int64_t n) {
  constexpr int64_t kRun = 256;
  int8_t twice[kRun];
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t count = n - first < kRun ? n - first : kRun;
    for (int64_t i = 0; i < count; i++) {
      const uint8_t code = codes[first + i], size = code & 7;
      const uint8_t most = size > 6 ? 12 : (size > 5 ? 8 : (size > 4 ? 6 : size));
      twice[i] = int8_t(code & 8 ? -most : most);
    }
    for (int64_t i = 0; i < count; i++) q[first + i] = T(0.5) * T(twice[i]);
  }
}

// A piece of a row, of whole groups: scales s and numbers q s, or q alone. f: clipping factors of the
// groups, null where they are 1; v may be null.
template <class T>
inline void quantizePiece(const T* x, const T* f, const T* v, T g, int32_t format, bool isScaled,
                          T* s, T* y, int64_t n) {
  const int64_t group = groupOf(format), groups = n / group;
  T a[kMostGroups], k[kMostGroups];
  largestSizes(x, group, groups, a);
  if (f)
    for (int64_t j = 0; j < groups; j++) a[j] *= f[j];
  scalesOf(a, g, format, s, groups);
  for (int64_t j = 0; j < groups; j++) k[j] = g / s[j];
  for (int64_t j = 0; j < groups; j++) {
    const T by = isScaled ? s[j] : T(1);
    const int64_t from = j * group;
    if (v)
      numbersOf<T, true>(x + from, v + from, k[j], by, y + from, group);
    else
      numbersOf<T, false>(x + from, nullptr, k[j], by, y + from, group);
  }
}

}  // namespace fp4
