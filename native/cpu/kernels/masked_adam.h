// masked_adam.h: AdamW on the learnable band of square matrices with the projection that keeps them
// strictly diagonally dominant (masked_adam), plain AdamW (adam), and the floor under magnitudes that
// the published code has instead of a projection (keep_away).
//
// Of a matrix only |i - j| <= band is read or written, so a step costs what the band holds. Its
// gradient is that of the masked matrix, which is written too where it is asked for. The
// update is that of torch.optim.AdamW: the decoupled decay first, then
//   p -= (lr / bc1) m / (sqrt(v / bc2) + eps).

template <class T>
struct AdamFactors {
  T decay, beta1, beta2, rest1, rest2, rate, inverseRoot, eps;

  // The parameter structs of both ops have these fields. Bias corrections are taken in f64.
  template <class P>
  explicit AdamFactors(const P& p)
      : decay(T(1.0 - p.lr * p.weight_decay)),
        beta1(T(p.beta1)),
        beta2(T(p.beta2)),
        rest1(T(1.0 - p.beta1)),
        rest2(T(1.0 - p.beta2)),
        rate(T(p.lr / (1.0 - std::pow(p.beta1, double(p.step))))),
        inverseRoot(T(1.0 / std::sqrt(1.0 - std::pow(p.beta2, double(p.step))))),
        eps(T(p.eps)) {}
};

// The gradient is `scale` times g.
template <class T>
inline void adamRange(const AdamFactors<T>& factors, T scale, T* __restrict p,
                      const T* __restrict g, T* __restrict m, T* __restrict v, int64_t n) {
  const AdamFactors<T> f = factors;
  for (int64_t i = 0; i < n; i++) {
    const T slope = scale * g[i];
    const T mean = f.beta1 * m[i] + f.rest1 * slope;
    const T square = f.beta2 * v[i] + f.rest2 * (slope * slope);
    m[i] = mean;
    v[i] = square;
    p[i] = f.decay * p[i] - f.rate * mean / (std::sqrt(square) * f.inverseRoot + f.eps);
  }
}

template <class T>
inline void keepAwayRange(T* __restrict p, T limit, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const bool inside = p[i] < limit && p[i] > -limit && p[i] != T(0);
    const T moved = p[i] > T(0) ? limit : -limit;
    p[i] = inside ? moved : p[i];
  }
}

template <class T>
inline T absSum(const T* x, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += x[i + j] < T(0) ? -x[i + j] : x[i + j];
  for (int j = 0; i < n; i++, j++) lane[j] += x[i] < T(0) ? -x[i] : x[i];
  for (int width = L / 2; width > 0; width /= 2)
    for (int j = 0; j < width; j++) lane[j] += lane[j + width];
  return lane[0];
}

// Row r of a matrix: `left` band entries before the diagonal at row[left], `right` after it.
// Returns the row's ratio off / |diagonal| after the projection.
template <class T>
inline T projectRow(T* row, int64_t left, int64_t right, T sf, T limit) {
  const T diagonal = row[left] < T(0) ? -row[left] : row[left];
  T off = sf * (absSum(row, left) + absSum(row + left + 1, right));
  if (limit > T(0) && off > limit * diagonal) {
    const T shrink = limit * diagonal / off;
    for (int64_t j = 0; j < left; j++) row[j] *= shrink;
    for (int64_t j = left + 1; j <= left + right; j++) row[j] *= shrink;
    off = sf * (absSum(row, left) + absSum(row + left + 1, right));
  }
  // A zero diagonal is as far from dominance as can be, whatever stands beside it.
  return diagonal == T(0) ? std::numeric_limits<T>::infinity() : off / diagonal;
}

// The masked row of p: sf times what stands beside the diagonal at row[left].
template <class T, class S>
inline void maskRow(const T* row, int64_t left, int64_t live, T sf, S* __restrict masked) {
  for (int64_t j = 0; j < live; j++) masked[j] = storeAs<S>(sf * row[j]);
  masked[left] = storeAs<S>(row[left]);
}

// What the inputs before an optimizer's own say: whether it may change anything, and its rate and step.
struct OptimizerControl {
  static constexpr int kInputs = 2;
  bool mayChange;
  const double* schedule;

  explicit OptimizerControl(const aq_view* in)
      : mayChange(!present(in[0]) || *ptr<int32_t>(in[0]) != 0), schedule(ptr<double>(in[1])) {}

  // The parameters of a step, by the schedule where there is one.
  template <class P>
  P adjusted(P params) const {
    if (!schedule) return params;
    params.lr *= schedule[0];
    if constexpr (requires { params.step; }) params.step = int32_t(schedule[1]);
    return params;
  }
};

static int32_t masked_adam(aq_queue*, const aq_view* all, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  const OptimizerControl control(all);
  const aq_view* const in = all + OptimizerControl::kInputs;
  const auto o = control.adjusted(*static_cast<const aq_masked_adam_params*>(params));
  if (!control.mayChange) {
    const aq_fill_params nothing = {std::numeric_limits<double>::quiet_NaN()};
    return fill(nullptr, out, 1, nullptr, 0, &nothing, err);
  }
  const int64_t matrices = in[0].dim[0];
  const int64_t size = in[0].dim[1];
  const int64_t band = o.band < 0 ? 0 : (o.band < size ? o.band : size - 1);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const AdamFactors<T> factors(o);
    const T sf = T(o.sf), weight = sf < T(0) ? -sf : sf;
    const Partials<T> partials(matrices * size);
    T* ratios = partials.data();
    if (!ratios) return noPartials(err, "masked_adam", matrices * size * int64_t(sizeof(T)));
    forRows(matrices * size, 2 * band + 1, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const int64_t i = row % size;
        const int64_t left = i < band ? i : band;
        const int64_t right = size - 1 - i < band ? size - 1 - i : band;
        const int64_t at = row * size + i - left;
        const int64_t live = left + 1 + right;
        T* const p = mut<T>(in[0]) + at;
        const auto step = [&](int64_t from, int64_t n, T scale) {
          const int64_t j = at + from;
          adamRange(factors, scale, p + from, ptr<T>(in[1]) + j, mut<T>(in[2]) + j,
                    mut<T>(in[3]) + j, n);
        };
        step(0, left, sf);
        step(left, 1, T(1));
        step(left + 1, right, sf);
        if (o.floor > 0) keepAwayRange(p, T(o.floor), live);
        ratios[row] = projectRow(p, left, right, weight, T(o.limit));
        if (T* const a = mut<T>(in[4])) maskRow(p, left, live, sf, a + at);
        if (Bfloat* const copy = mut<Bfloat>(in[5])) maskRow(p, left, live, sf, copy + at);
      }
    });
    for (int64_t b = 0; b < matrices; b++) {
      T worst = T(0);
      for (int64_t i = 0; i < size; i++) {
        const T ratio = ratios[b * size + i];
        if (ratio > worst || ratio != ratio) worst = ratio;  // a NaN stays
      }
      mut<T>(out[0])[b] = T(1) - worst;
    }
    return int32_t(AQ_OK);
  });
}

static int32_t adam(aq_queue*, const aq_view* all, int32_t n_in, const aq_view*, int32_t,
                    const void* params, aq_error*) {
  const OptimizerControl control(all);
  const auto o = control.adjusted(*static_cast<const aq_adam_params*>(params));
  if (!control.mayChange) return AQ_OK;
  return visitFloat(all[OptimizerControl::kInputs].dtype, [&](auto zero) {
    using T = decltype(zero);
    const AdamFactors<T> factors(o);
    for (int32_t first = OptimizerControl::kInputs; first < n_in; first += 4) {
      const aq_view* const in = all + first;
      forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
        adamRange(factors, T(1), mut<T>(in[0]) + i, ptr<T>(in[1]) + i, mut<T>(in[2]) + i,
                  mut<T>(in[3]) + i, end - i);
      });
    }
    return int32_t(AQ_OK);
  });
}

static int32_t keep_away(aq_queue*, const aq_view* in, int32_t, const aq_view*, int32_t,
                         const void* params, aq_error*) {
  const double limit = static_cast<const aq_keep_away_params*>(params)->limit;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]),
              [&](int64_t i, int64_t end) { keepAwayRange(mut<T>(in[0]) + i, T(limit), end - i); });
    return int32_t(AQ_OK);
  });
}
