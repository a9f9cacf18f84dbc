// gemm_pack.h: the factors of a product as gemm reads them: how they are stored, and their panels.
//
// An Operand says how a factor is stored and, if it has a grid, how it is quantized. Packing reads
// it through the grid, so a quantized factor never exists in memory.

// A stored matrix, rows `ld` apart, optionally fake-quantized on a grid along its rows.
template <class T>
struct Operand {
  const T* data;
  int64_t ld;
  bool rowsAreK;  // stored rows run along k (A transposed, B as is)
  // Grid: row r, column c has scale[r gridLd + c / group]. Null: values as they are.
  const T* scale;
  const T* zero;
  const T* offset;  // rounding offsets, stored like data, or null
  int64_t gridLd, group;
  T top;  // 2^bits - 1

  Operand(const T* data, int64_t ld, bool rowsAreK)
      : data(data),
        ld(ld),
        rowsAreK(rowsAreK),
        scale(nullptr),
        zero(nullptr),
        offset(nullptr),
        gridLd(0),
        group(1),
        top(0) {}

  // Stored rows lie on pages of their own, where the processor does not look ahead by itself.
  void prefetch(int64_t r, int64_t c0, int64_t n) const {
    const T* x = data + r * ld + c0;
    for (int64_t i = 0; i < n; i += kLanes<T>) __builtin_prefetch(x + i);
    if (!offset) return;
    const T* v = offset + r * ld + c0;
    for (int64_t i = 0; i < n; i += kLanes<T>) __builtin_prefetch(v + i);
  }

  // n values of stored row r from column c0 on: in place where there is no grid, else in `buffer`.
  const T* read(int64_t r, int64_t c0, int64_t n, T* buffer) const {
    const T* x = data + r * ld + c0;
    if (!scale) return x;
    const T* v = offset ? offset + r * ld + c0 : nullptr;
    for (int64_t i = 0; i < n;) {
      const int64_t g = (c0 + i) / group;
      const int64_t end = (g + 1) * group - c0;
      const int64_t run = (end < n ? end : n) - i;
      fakeQuantRange(x + i, v ? v + i : nullptr, scale[r * gridLd + g], zero[r * gridLd + g], top,
                     buffer + i, run);
      i += run;
    }
    return buffer;
  }
};

// ---------------------------------------------------------------- packing

// A square block of W rows of W values in registers, turned by exchanging ever larger sub-blocks:
// step S swaps the odd S-blocks of row i with the even ones of row i + S. (Shuffles by the
// compiler's vector extension, so that each level gets the instructions it has.)
template <class T>
struct Turn {
  static constexpr int W = Vec<T>::kWidth;
  typedef T V __attribute__((vector_size(W * sizeof(T))));

  template <int... I>
  struct Lanes {
    template <int S>
    static void exchange(V& x, V& y) {
      const V even = __builtin_shufflevector(x, y, (I & S ? W + I - S : I)...);
      y = __builtin_shufflevector(x, y, (I & S ? W + I : I + S)...);
      x = even;
    }
  };
  template <int N, int... I>
  struct Count : Count<N - 1, N - 1, I...> {};
  template <int... I>
  struct Count<0, I...> : Lanes<I...> {};

  template <int S = 1>
  static void turn(V* r) {
    if constexpr (S < W) {
      AQ_UNROLL
      for (int i = 0; i < W; i++)
        if (!(i & S)) Count<W>::template exchange<S>(r[i], r[i + S]);
      turn<S * 2>(r);
    }
  }

  // to[k ld + i] = rows[i][k] for k < count. Writes whole vectors.
  static void block(const T* const* rows, int count, T* to, int64_t ld) {
    V r[W];
    if (count == W) {
      AQ_UNROLL
      for (int i = 0; i < W; i++) std::memcpy(&r[i], rows[i], sizeof(V));
      turn(r);
      AQ_UNROLL
      for (int k = 0; k < W; k++) std::memcpy(to + k * ld, &r[k], sizeof(V));
    } else {
      for (int i = 0; i < W; i++) {
        r[i] = V{};
        std::memcpy(&r[i], rows[i], size_t(count) * sizeof(T));
      }
      turn(r);
      for (int k = 0; k < count; k++) std::memcpy(to + k * ld, &r[k], sizeof(V));
    }
  }
};

// Lets the packed buffers be written a vector past their end.
inline constexpr int kPackSlack = 64;

// to[k R + i] = rows[i][k]. A vector may spill past its R values: the right part of a block goes
// first, so that what is written next repairs it. Rows that do not exist repeat the last: the
// micro-kernel does not store what comes of them.
template <class T, int R>
inline void turnRows(const T* const* rows, int live, int64_t depth, T* to) {
  constexpr int W = Turn<T>::W;
  for (int64_t k = 0; k < depth; k += W) {
    const int count = int(depth - k < W ? depth - k : W);
    for (int i = (R - 1) / W * W; i >= 0; i -= W) {
      const T* part[W];
      for (int j = 0; j < W; j++) part[j] = rows[i + j < live ? i + j : live - 1] + k;
      Turn<T>::block(part, count, to + k * R + i, R);
    }
  }
}

// Packs positions p0 .. p0 + count and k0 .. k0 + depth of x into panels [depth][R], with zeros or
// copies where the last one reaches beyond `count`. `to` needs kPackSlack bytes more. To pack a
// part of deeper panels, `to` is its place in the first one and `panelDepth` the whole depth.
template <class T, int R>
static void packPanels(const Operand<T>& x, int64_t p0, int64_t count, int64_t k0, int64_t depth,
                       T* to, int64_t panelDepth = 0) {
  const int64_t stride = panelDepth > 0 ? panelDepth : depth;  // panels lie stride R apart
  if (x.rowsAreK) {
    // A run of several panels at a time, so that quantizing works on long rows.
    constexpr int64_t kRun = 512 / R * R, kAhead = 8;
    T buffer[kRun];
    for (int64_t c = 0; c < count; c += kRun) {
      const int64_t run = count - c < kRun ? count - c : kRun;
      for (int64_t k = 0; k < depth; k++) {
        if (k + kAhead < depth) x.prefetch(k0 + k + kAhead, p0 + c, run);
        const T* row = x.read(k0 + k, p0 + c, run, buffer);
        T* panel = to + c * stride + k * R;
        int64_t i = 0;
        if (k + 1 < depth) {  // whole vectors; what spills past R is overwritten by the next k
          constexpr int W = Vec<T>::kWidth, wide = (R + W - 1) / W * W;
          for (; i + wide <= run; i += R, panel += stride * R)
            for (int j = wide - W; j >= 0; j -= W)
              Vec<T>::store(panel + j, Vec<T>::load(row + i + j));
        }
        for (; i + R <= run; i += R, panel += stride * R)
          for (int j = 0; j < R; j++) panel[j] = row[i + j];
        if (i < run)
          for (int j = 0; j < R; j++) panel[j] = i + j < run ? row[i + j] : T(0);
      }
    }
    return;
  }
  constexpr int64_t kRun = 128;
  T buffer[R * kRun];
  const T* rows[R];
  for (int64_t c = 0; c < count; c += R) {
    const int live = int(count - c < R ? count - c : R);
    for (int64_t k = 0; k < depth; k += kRun) {
      const int64_t run = depth - k < kRun ? depth - k : kRun;
      for (int i = 0; i < live; i++) rows[i] = x.read(p0 + c + i, k0 + k, run, buffer + i * kRun);
      turnRows<T, R>(rows, live, run, to + c * stride + k * R);
    }
  }
}
