// lu_inverse.h: inverses of a batch of matrices by LU, blocked so that nearly all the work is done
// by the GEMM micro-kernel.
//
// A strictly diagonally dominant matrix, by rows or by columns, needs no pivoting: that is what the
// gradual mask of AffineQuant keeps its matrices to be. Others get partial pivoting. L and the
// strict upper part of U are stored negated, since the micro-kernel only adds. A start x0 is not
// used: two products a Newton step cost as much as this.

inline constexpr int64_t kLuPanel = 32;  // columns eliminated before an update
inline constexpr int64_t kLuRows = 56 / kTileRows * kTileRows;           // rows of an update's task
inline constexpr int kSlotLu = 4, kSlotLuColumns = 5, kSlotLuFlags = 6;  // threadScratch slots

template <class T>
class LuInverse {
 public:
  explicit LuInverse(int64_t n)
      : n_(n),
        ld_(ceilDiv(n, kTileCols<T>) * kTileCols<T> + std::max(kLuPanel, int64_t(kTileCols<T>))) {
    const int64_t packed = kLuPanel * ld_ + kPackSlack / int64_t(sizeof(T));
    const int64_t count = n * ld_ + packed + 2 * n;
    w_ = static_cast<T*>(threadScratch(kSlotLu, uint64_t(count) * sizeof(T) + uint64_t(n) * 8));
    packed_ = w_ + n * ld_;
    reciprocal_ = packed_ + packed;
    sums_ = reciprocal_ + n;
    order_ = reinterpret_cast<int64_t*>(sums_ + n);
  }

  // x = a^-1; false if a is singular or the result is not finite.
  bool run(const T* a, bool alwaysPivot, T* x) {
    const bool pivot = alwaysPivot || !(dominantRows(a) || dominantColumns(a));
    for (int64_t i = 0; i < n_; i++) {
      order_[i] = i;
      std::memcpy(w_ + i * ld_, a + i * n_, size_t(n_) * sizeof(T));
      std::memset(w_ + i * ld_ + n_, 0, size_t(ld_ - n_) * sizeof(T));
    }
    for (int64_t k = 0; k < n_; k += kLuPanel) {
      if (!eliminate(k, std::min(n_, k + kLuPanel), pivot)) return false;
      if (k + kLuPanel < n_) update(k, k + kLuPanel);
    }
    for (int64_t i = 0; i < n_; i++)
      for (int64_t j = i + 1; j < n_; j++) w_[i * ld_ + j] = -w_[i * ld_ + j];

    const int64_t panels = ceilDiv(n_, kTileCols<T>);
    parallelFor(panels, [&](int64_t panel) { solve(panel * kTileCols<T>, pivot, x); });
    return isFinite(x);
  }

 private:
  bool dominantRows(const T* a) const {
    for (int64_t i = 0; i < n_; i++) {
      const T* row = a + i * n_;
      T off = -std::fabs(row[i]);
      for (int64_t j = 0; j < n_; j++) off += std::fabs(row[j]);
      if (!(off < std::fabs(row[i]))) return false;
    }
    return true;
  }

  bool dominantColumns(const T* a) {
    for (int64_t j = 0; j < n_; j++) sums_[j] = T(0);
    for (int64_t i = 0; i < n_; i++)
      for (int64_t j = 0; j < n_; j++) sums_[j] += i == j ? T(0) : std::fabs(a[i * n_ + j]);
    for (int64_t j = 0; j < n_; j++)
      if (!(sums_[j] < std::fabs(a[j * n_ + j]))) return false;
    return true;
  }

  // Swaps the row with the largest entry of column j, from row j on, into row j.
  void bringPivot(int64_t j) {
    int64_t best = j;
    T most = std::fabs(w_[j * ld_ + j]);
    for (int64_t i = j + 1; i < n_; i++) {
      const T value = std::fabs(w_[i * ld_ + j]);
      if (value > most) most = value, best = i;
    }
    if (best == j) return;
    for (int64_t c = 0; c < n_; c++) {
      const T held = w_[j * ld_ + c];
      w_[j * ld_ + c] = w_[best * ld_ + c];
      w_[best * ld_ + c] = held;
    }
    const int64_t held = order_[j];
    order_[j] = order_[best];
    order_[best] = held;
  }

  // Columns k .. end of L and U, from the diagonal down; false at a pivot that is zero or not
  // finite.
  bool eliminate(int64_t k, int64_t end, bool pivot) {
    for (int64_t j = k; j < end; j++) {
      if (pivot) bringPivot(j);
      const T p = w_[j * ld_ + j];
      if (!(std::fabs(p) > T(0)) || !(std::fabs(p) <= std::numeric_limits<T>::max())) return false;
      reciprocal_[j] = T(1) / p;
      // Row j of the panel with zeros up to the diagonal: every row gets the same fixed-length
      // update.
      T row[kLuPanel];
      for (int64_t c = 0; c < kLuPanel; c++) row[c] = k + c > j ? w_[j * ld_ + k + c] : T(0);
      for (int64_t i = j + 1; i < n_; i++) {
        T* const target = w_ + i * ld_ + k;
        const T factor = -(target[j - k] * reciprocal_[j]);
        for (int64_t c = 0; c < kLuPanel; c++) target[c] += factor * row[c];
        target[j - k] = factor;
      }
    }
    // In the last block the panel reaches beyond column n; nobody reads what lies there.
    return true;
  }

  // Rows k .. end of U right of the panel, then the rest of the matrix.
  void update(int64_t k, int64_t end) {
    const int64_t cols = n_ - end;
    for (int64_t r = k + 1; r < end; r++) {
      T* const target = w_ + r * ld_ + end;
      for (int64_t s = k; s < r; s++) {
        const T factor = w_[r * ld_ + s];
        const T* const source = w_ + s * ld_ + end;
        for (int64_t c = 0; c < cols; c++) target[c] += factor * source[c];
      }
    }
    constexpr int64_t N = kTileCols<T>;
    packPanels<T, int(N)>(Operand<T>(w_ + end, ld_, true), 0, cols, k, end - k, packed_);
    parallelFor(ceilDiv(n_ - end, kLuRows), [&](int64_t task) {
      const int64_t from = end + task * kLuRows, to = std::min(n_, from + kLuRows);
      for (int64_t j = 0; j < cols; j += N)
        for (int64_t i = from; i < to; i += kTileRows)
          runTile(int(std::min<int64_t>(kTileRows, to - i)),
                  TileJob<T>{end - k, w_ + i * ld_ + k, ld_, 1, packed_ + j * (end - k),
                             w_ + i * ld_ + end + j, ld_, int(N), true, nullptr});
    });
  }

  // Columns c0 .. c0 + kTileCols of U^-1 L^-1, then to their places in x. The columns stand in a
  // packed panel, so that finished rows serve the micro-kernel as they are.
  void solve(int64_t c0, bool permuted, T* x) const {
    constexpr int64_t N = kTileCols<T>, R = kTileRows;
    const int64_t width = std::min(N, n_ - c0);
    T* const z = static_cast<T*>(threadScratch(kSlotLuColumns, uint64_t(n_ * N) * sizeof(T)));
    std::memset(z, 0, size_t(n_ * N) * sizeof(T));
    for (int64_t c = 0; c < width; c++) z[(c0 + c) * N + c] = T(1);

    const int64_t first = c0 / R * R;  // the rows above are zero in L^-1
    for (int64_t k = first; k < n_; k += R) {
      const int64_t end = std::min(n_, k + R);
      addRows(k, end, first, k, z);
      for (int64_t r = k + 1; r < end; r++)
        for (int64_t s = k; s < r; s++) addRow(w_[r * ld_ + s], z + s * N, z + r * N);
    }
    for (int64_t k = (n_ - 1) / R * R; k >= 0; k -= R) {
      const int64_t end = std::min(n_, k + R);
      addRows(k, end, end, n_, z);
      for (int64_t r = end - 1; r >= k; r--) {
        for (int64_t s = r + 1; s < end; s++) addRow(w_[r * ld_ + s], z + s * N, z + r * N);
        for (int64_t c = 0; c < N; c++) z[r * N + c] *= reciprocal_[r];
      }
    }

    for (int64_t i = 0; i < n_; i++) {
      T* const row = x + i * n_;
      if (permuted) {
        for (int64_t c = 0; c < width; c++) row[order_[c0 + c]] = z[i * N + c];
      } else {
        std::memcpy(row + c0, z + i * N, size_t(width) * sizeof(T));
      }
    }
  }

  // z[k .. end) += w[k .. end, from .. to) z[from .. to)
  void addRows(int64_t k, int64_t end, int64_t from, int64_t to, T* z) const {
    constexpr int64_t N = kTileCols<T>;
    if (from >= to) return;
    runTile(int(end - k), TileJob<T>{to - from, w_ + k * ld_ + from, ld_, 1, z + from * N,
                                     z + k * N, N, int(N), true, nullptr});
  }

  static void addRow(T factor, const T* source, T* target) {
    for (int64_t c = 0; c < kTileCols<T>; c++) target[c] += factor * source[c];
  }

  bool isFinite(const T* x) const {
    T sum = T(0);  // 0 x is NaN for an infinity or a NaN, else 0
    for (int64_t i = 0; i < n_; i++) {
      T lane[kLanes<T>] = {};
      int64_t j = 0;
      for (; j + kLanes<T> <= n_; j += kLanes<T>)
        for (int l = 0; l < kLanes<T>; l++) lane[l] += x[i * n_ + j + l] * T(0);
      for (; j < n_; j++) sum += x[i * n_ + j] * T(0);
      for (int l = 0; l < kLanes<T>; l++) sum += lane[l];
    }
    return sum == T(0);
  }

  int64_t n_, ld_;
  T* w_;       // [n, ld]: negated L below, U on and above the diagonal, at last negated above it
  T* packed_;  // rows of U for the update
  T* reciprocal_;  // of the pivots
  T* sums_;
  int64_t* order_;  // row i of the factors is row order_[i] of the matrix
};

template <class T>
static int32_t inverseBatch(const aq_view& in, const aq_view& out, bool alwaysPivot,
                            aq_error* err) {
  const int64_t batch = in.dim[0], n = in.dim[2];
  if (batch == 0 || n == 0) return AQ_OK;
  uint8_t* const singular = static_cast<uint8_t*>(threadScratch(kSlotLuFlags, uint64_t(batch)));
  const auto one = [&](int64_t i) {
    LuInverse<T> lu(n);
    singular[i] = !lu.run(ptr<T>(in) + i * n * n, alwaysPivot, mut<T>(out) + i * n * n);
  };
  // A task a matrix; the loops inside then run inline. Few matrices: each is shared instead.
  if (batch >= threadCount()) {
    parallelFor(batch, one);
  } else {
    for (int64_t i = 0; i < batch; i++) one(i);
  }
  for (int64_t i = 0; i < batch; i++) {
    if (singular[i])
      return fail(
          err, AQ_NUMERIC,
          "lu_inverse: matrix %lld of the batch is singular or holds values that are not finite "
          "(batch of %lld, size %lld); lower the learning rate or keep it diagonally dominant",
          static_cast<long long>(i), static_cast<long long>(batch), static_cast<long long>(n));
  }
  return AQ_OK;
}

static int32_t lu_inverse(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  const bool alwaysPivot = static_cast<const aq_lu_inverse_params*>(params)->pivot != 0;
  return withScratch("lu_inverse", err, [&]() -> int32_t {
    return in[0].dtype == AQ_F64 ? inverseBatch<double>(in[0], out[0], alwaysPivot, err)
                                 : inverseBatch<float>(in[0], out[0], alwaysPivot, err);
  });
}
