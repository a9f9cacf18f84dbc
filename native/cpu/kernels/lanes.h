// lanes.h: running values of a reduction, kept in the level's vectors and folded by a fixed tree.

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

  static LaneArray splat(T x) {
    LaneArray all;
    AQ_UNROLL
    for (int p = 0; p < kParts; p++) all.part[p] = V::splat(x);
    return all;
  }

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
  V operator()(V a, V b) const {
    return a + b;
  }
};
struct Most {
  template <class V>
  V operator()(V a, V b) const {
    return b > a ? b : a;
  }
};
struct Least {
  template <class V>
  V operator()(V a, V b) const {
    return b < a ? b : a;
  }
};
