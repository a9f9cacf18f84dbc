// silu_mul.h: the gate of a SwiGLU MLP, y = gate sigmoid(gate) up, and its gradient.

template <class T>
inline void siluMulRange(const T* gate, const T* up, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = gate[i] * sigmoidOf(gate[i]) * up[i];
}

static int32_t silu_mul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void*, aq_error*) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      siluMulRange(ptr<T>(in[0]) + i, ptr<T>(in[1]) + i, mut<T>(out[0]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}

// d silu = sigmoid (1 + gate (1 - sigmoid)).
template <class T>
inline void siluMulGradRange(const T* gate, const T* up, const T* g, T* __restrict gGate,
                             T* __restrict gUp, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const T sigmoid = sigmoidOf(gate[i]);
    gGate[i] = g[i] * up[i] * (sigmoid * (T(1) + gate[i] * (T(1) - sigmoid)));
    gUp[i] = g[i] * (gate[i] * sigmoid);
  }
}

static int32_t silu_mul_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                             const void*, aq_error*) {
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forChunks(numel(in[0]), [&](int64_t i, int64_t end) {
      siluMulGradRange(ptr<T>(in[0]) + i, ptr<T>(in[1]) + i, ptr<T>(in[2]) + i, mut<T>(out[0]) + i,
                       mut<T>(out[1]) + i, end - i);
    });
    return int32_t(AQ_OK);
  });
}
