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

static int32_t sign_step(aq_queue*, const aq_view* in, int32_t, const aq_view*, int32_t,
                         const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_sign_step_params*>(params);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      signStepRange(mut<T>(in[0]) + i, ptr<T>(in[1]) + i, T(o.lr), T(o.limit), end - i);
    });
    return int32_t(AQ_OK);
  });
}
