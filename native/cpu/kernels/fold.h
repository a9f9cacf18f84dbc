// fold.h: the transforms on the weight side and their gradients: scale_weight (diagonals),
// head_matmul (one D x D matrix per kv head), rotate_pairs (scaled rotations that commute with
// RoPE), gradual_mask.

// ---------------------------------------------------------------- scale_weight

template <class T>
inline void scaleRow(const T* w, T r, const T* c, T* __restrict y, int64_t n) {
  if (c) {
    for (int64_t i = 0; i < n; i++) y[i] = r * w[i] * c[i];
  } else {
    for (int64_t i = 0; i < n; i++) y[i] = r * w[i];
  }
}

static int32_t scale_weight(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                            const void*, aq_error*) {
  const int64_t cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* r = ptr<T>(in[1]);
    forRows(rowCount(in[0]), cols, [&](int64_t first, int64_t end) {
      for (int64_t o = first; o < end; o++)
        scaleRow(ptr<T>(in[0]) + o * cols, r ? r[o] : T(1), ptr<T>(in[2]),
                 mut<T>(out[0]) + o * cols, cols);
    });
    return int32_t(AQ_OK);
  });
}

// Adds r w g into sums and returns the sum of w g c.
template <class T>
inline T scaleGradRow(const T* w, const T* g, T r, const T* c, T* __restrict sums, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) {
      const T product = w[i + j] * g[i + j];
      sums[i + j] += r * product;
      lane[j] += c ? product * c[i + j] : product;
    }
  for (int j = 0; i < n; i++, j++) {
    const T product = w[i] * g[i];
    sums[i] += r * product;
    lane[j] += c ? product * c[i] : product;
  }
  return sumOf(lane, L);
}

static int32_t scale_weight_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                 const void*, aq_error* err) {
  const int64_t cols = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* r = ptr<T>(in[1]);
    const auto body = [&](int64_t first, int64_t end, T* sums) {
      for (int64_t o = first; o < end; o++)
        mut<T>(out[0])[o] = scaleGradRow(ptr<T>(in[0]) + o * cols, ptr<T>(in[3]) + o * cols,
                                         r ? r[o] : T(1), ptr<T>(in[2]), sums, cols);
    };
    return sumColumns("scale_weight_grad", rowCount(in[0]), cols, mut<T>(out[1]), err, body);
  });
}

// ---------------------------------------------------------------- head_matmul

// Part of the long dimension that one task multiplies, so long that packing the D x D matrix for it
// costs little.
inline constexpr int64_t kHeadPart = 512;

// w is cut into heads and parts of its long dimension: columns on side 0, rows on side 1. Products
// inside a task run inline.
template <class T>
static void headProducts(const aq_view* in, const aq_view& out, const aq_head_matmul_params& o) {
  const int64_t size = in[1].dim[2];
  const int64_t perKv = o.heads / in[1].dim[0];
  const int64_t length = numel(in[0]) / (o.heads * size);
  const int64_t parts = ceilDiv(length, kHeadPart);
  parallelFor(o.heads * parts, [&](int64_t task) {
    const int64_t head = task / parts;
    const int64_t first = task % parts * kHeadPart;
    const int64_t count = length - first < kHeadPart ? length - first : kHeadPart;
    const T* m = ptr<T>(in[1]) + head / perKv * size * size;
    if (o.side == 0) {
      const int64_t at = head * size * length + first;
      gemm<T>(size, count, size, Operand<T>(m, size, o.transpose != 0),
              Operand<T>(ptr<T>(in[0]) + at, length, true), mut<T>(out) + at, length);
    } else {
      const int64_t cols = o.heads * size;
      const int64_t at = first * cols + head * size;
      gemm<T>(count, size, size, Operand<T>(ptr<T>(in[0]) + at, cols, false),
              Operand<T>(m, size, o.transpose == 0), mut<T>(out) + at, cols);
    }
  });
}

static int32_t head_matmul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_head_matmul_params*>(params);
  return withScratch("head_matmul", err, [&] {
    return visitFloat(in[0].dtype, [&](auto zero) {
      headProducts<decltype(zero)>(in, out[0], o);
      return int32_t(AQ_OK);
    });
  });
}

// side 0: y = m w gives gm = g wT, and y = mT w gives gm = w gT; side 1: y = w m gives wT g, and
// y = w mT gives gT w. So with a, b = g, w or w, g the sums are a bT (side 0) and aT b (side 1).
template <class T>
static void headGradients(const aq_view* in, const aq_view& out,
                          const aq_head_matmul_grad_params& o) {
  const bool gFirst = (o.side == 0) == (o.transpose == 0);
  const T* a = ptr<T>(in[gFirst ? 1 : 0]);
  const T* b = ptr<T>(in[gFirst ? 0 : 1]);
  const int64_t size = out.dim[2];
  const int64_t perKv = o.heads / o.kv_heads;
  const int64_t length = numel(in[0]) / (o.heads * size);
  const int64_t row = o.side == 0 ? length : o.heads * size;
  const int64_t headStep = o.side == 0 ? size * length : size;
  const auto one = [&](int64_t kv) {
    for (int64_t i = 0; i < perKv; i++) {
      const int64_t at = (kv * perKv + i) * headStep;
      gemm<T>(size, size, length, Operand<T>(a + at, row, o.side != 0),
              Operand<T>(b + at, row, o.side != 0), mut<T>(out) + kv * size * size, size,
              o.accumulate != 0 || i > 0);
    }
  };
  // With fewer matrices than threads the threads share each product; its bits stay the same.
  if (o.kv_heads >= threadCount()) {
    parallelFor(o.kv_heads, one);
  } else {
    for (int64_t kv = 0; kv < o.kv_heads; kv++) one(kv);
  }
}

static int32_t head_matmul_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_head_matmul_grad_params*>(params);
  return withScratch("head_matmul_grad", err, [&] {
    return visitFloat(in[0].dtype, [&](auto zero) {
      headGradients<decltype(zero)>(in, out[0], o);
      return int32_t(AQ_OK);
    });
  });
}

// ---------------------------------------------------------------- rotate_pairs

template <class T>
inline void rotateRows(const T* w0, const T* w1, T c, T s, T* __restrict y0, T* __restrict y1,
                       int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    y0[i] = w0[i] * c - w1[i] * s;
    y1[i] = w1[i] * c + w0[i] * s;
  }
}

static int32_t rotate_pairs(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                            const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_rotate_pairs_params*>(params);
  const int64_t half = in[1].dim[1];
  const int64_t perKv = o.heads / in[1].dim[0];
  const int64_t cols = numel(in[0]) / (o.heads * 2 * half);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    forRows(o.heads * half, 2 * cols, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; pair++) {
        const int64_t head = pair / half, i = pair % half;
        const int64_t parameter = head / perKv * half + i;
        const T factor = std::exp(T(o.sign_r) * ptr<T>(in[1])[parameter]);
        const T angle = T(o.sign_theta) * ptr<T>(in[2])[parameter];
        const int64_t at0 = (head * 2 * half + i) * cols, at1 = at0 + half * cols;
        rotateRows(ptr<T>(in[0]) + at0, ptr<T>(in[0]) + at1, factor * std::cos(angle),
                   factor * std::sin(angle), mut<T>(out[0]) + at0, mut<T>(out[0]) + at1, cols);
      }
    });
    return int32_t(AQ_OK);
  });
}

// From the output alone: dy/dlog_r = sign_r y, dy_i/dangle = -y_{i+D/2}, dy_{i+D/2}/dangle = y_i.
static int32_t rotate_pairs_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                 const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_rotate_pairs_grad_params*>(params);
  const int64_t half = out[0].dim[1];
  const int64_t perKv = o.heads / o.kv_heads;
  const int64_t cols = numel(in[0]) / (o.heads * 2 * half);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* y = ptr<T>(in[0]);
    const T* g = ptr<T>(in[1]);
    forRows(o.kv_heads * half, 4 * perKv * cols, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; pair++) {
        const int64_t kv = pair / half, i = pair % half;
        T along = T(0), across = T(0);
        for (int64_t head = kv * perKv; head < (kv + 1) * perKv; head++) {
          const int64_t at0 = (head * 2 * half + i) * cols, at1 = at0 + half * cols;
          along += dotOf(g + at0, y + at0, cols) + dotOf(g + at1, y + at1, cols);
          across += dotOf(g + at1, y + at0, cols) - dotOf(g + at0, y + at1, cols);
        }
        mut<T>(out[0])[pair] = T(o.sign_r) * along;
        mut<T>(out[1])[pair] = T(o.sign_theta) * across;
      }
    });
    return int32_t(AQ_OK);
  });
}

// ---------------------------------------------------------------- gradual_mask

static int32_t gradual_mask(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                            const void* params, aq_error*) {
  const auto& o = *static_cast<const aq_gradual_mask_params*>(params);
  const int64_t size = lastDim(in[0]);
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T sf = T(o.sf);
    forRows(rowCount(in[0]), size, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        const T* s = ptr<T>(in[0]) + row * size;
        T* a = mut<T>(out[0]) + row * size;
        const int64_t i = row % size;
        const int64_t low = i > o.band ? i - o.band : 0;
        const int64_t high = size - i > o.band ? i + o.band + 1 : size;
        for (int64_t j = 0; j < low; j++) a[j] = T(0);
        for (int64_t j = low; j < high; j++) a[j] = sf * s[j];
        for (int64_t j = high; j < size; j++) a[j] = T(0);
        a[i] = s[i];
      }
    });
    return int32_t(AQ_OK);
  });
}
