// sign_step.h: the step of learned rounding (SignRound): every offset moves by the rate against the
// sign of its gradient and stays within its limit, v = clamp(v - lr sign(g), -limit, limit).

template <class T>
inline void signStepRange(T* __restrict v, const T* __restrict g, T rate, T limit, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const T move = g[i] > T(0) ? rate : (g[i] < T(0) ? -rate : T(0));
    const T next = v[i] - move;
    const T atMost = next > limit ? limit : next;
    v[i] = atMost < -limit ? -limit : atMost;
  }
}

static int32_t sign_step(aq_queue*, const aq_view* all, int32_t n_in, const aq_view*, int32_t,
                         const void* params, aq_error*) {
  const OptimizerControl control(all);
  const auto o = control.adjusted(*static_cast<const aq_sign_step_params*>(params));
  if (!control.mayChange) return AQ_OK;
  return visitFloat(all[OptimizerControl::kInputs].dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int32_t first = OptimizerControl::kInputs; first < n_in; first += 2) {
      const aq_view &v = all[first], &g = all[first + 1];
      forChunks(numel(v), [&](int64_t begin, int64_t end) {
        // A short gradient is widened piece by piece.
        constexpr int64_t kPiece = 512;
        for (int64_t i = begin; i < end; i += kPiece) {
          const int64_t n = i + kPiece < end ? kPiece : end - i;
          T piece[kPiece];
          aq_view widened = g;
          widened.dtype = v.dtype;
          widened.data = piece;
          if (g.dtype != v.dtype) convertElements(g, i, widened, 0, n);
          const T* const gradient = g.dtype == v.dtype ? ptr<T>(g) + i : piece;
          signStepRange(mut<T>(v) + i, gradient, T(o.lr), T(o.limit), n);
        }
      });
    }
    return int32_t(AQ_OK);
  });
}
