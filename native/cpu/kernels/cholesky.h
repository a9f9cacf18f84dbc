// cholesky.h: the upper triangular U with Ut U = H^-1 of a positive definite H, in f64, which is what
// GPTQ needs of the inverse, without computing the inverse.
//
// With rows and columns in reverse order H = L Lt, and U is L^-1 in reverse order again: one
// factorization and one triangular inverse, a third of the work of inverting and factorizing anew,
// and fewer roundings. Both are done in place, in blocks, so that the packed product does the work.

inline constexpr int64_t kCholeskyBlock = 64;
inline constexpr int kSlotCholesky = 7;  // threadScratch slot

class InverseFactor {
 public:
  // w [n, n]: the lower triangle of H in reverse order, overwritten. Throws std::bad_alloc.
  InverseFactor(double* w, int64_t n) : w_(w), n_(n) {
    const int64_t rows = std::min(n, kCholeskyBlock);
    const uint64_t count = uint64_t(2 * rows * n + rows * rows);
    negated_ = static_cast<double*>(threadScratch(kSlotCholesky, count * sizeof(double)));
    product_ = negated_ + rows * n;
    corner_ = product_ + rows * n;
  }

  // L in place. Returns -1, or the column of H whose pivot is not positive and finite.
  int64_t factorize() {
    for (int64_t k = 0; k < n_; k += kCholeskyBlock) {
      const int64_t end = std::min(n_, k + kCholeskyBlock), width = end - k;
      if (k > 0) {
        for (int64_t i = 0; i < width; i++) negate(w_ + (k + i) * n_, negated_ + i * k, k);
        gemm<double>(n_ - k, width, k, Operand<double>(w_ + k * n_, n_, false),
                     Operand<double>(negated_, k, false), w_ + k * n_ + k, n_, true);
      }
      for (int64_t j = k; j < end; j++) {
        double* const row = w_ + j * n_;
        solveRow(row, k, j);
        pivot_ = row[j] - dotOf(row + k, row + k, j - k);
        if (!(pivot_ > 0) || pivot_ > std::numeric_limits<double>::max()) return n_ - 1 - j;
        row[j] = std::sqrt(pivot_);
      }
      forRows(n_ - end, width * width / 2, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) solveRow(w_ + (end + i) * n_, k, end);
      });
    }
    return -1;
  }

  // L^-1 in place of L, zeros above the diagonal.
  void invert() {
    for (int64_t k = 0; k < n_; k += kCholeskyBlock) {
      const int64_t end = std::min(n_, k + kCholeskyBlock), width = end - k;
      invertCorner(k, width);
      if (k > 0) {  // X[k..end, 0..k] = -X[k..end, k..end] L[k..end, 0..k] X[0..k, 0..k]
        gemm<double>(width, k, k, Operand<double>(w_ + k * n_, n_, false),
                     Operand<double>(w_, n_, true), product_, k);
        gemm<double>(width, k, width, Operand<double>(corner_, width, false),
                     Operand<double>(product_, k, true), w_ + k * n_, n_);
      }
      for (int64_t i = 0; i < width; i++) {
        double* const row = w_ + (k + i) * n_ + k;
        negate(corner_ + i * width, row, i + 1);
        std::memset(row + i + 1, 0, size_t(n_ - k - i - 1) * sizeof(double));
      }
    }
  }

  double pivot() const { return pivot_; }  // the last one, before its root is taken

  // to[0 .. n - j) = U[j, j .. n)
  template <class T>
  void copyRow(int64_t j, T* to) const {
    const double* const row = w_ + (n_ - 1 - j) * n_;
    for (int64_t c = j; c < n_; c++) to[c - j] = T(row[n_ - 1 - c]);
  }

 private:
  static void negate(const double* x, double* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = -x[i];
  }

  // Columns k .. end of a row of L, after the columns before k were taken off.
  void solveRow(double* row, int64_t k, int64_t end) const {
    for (int64_t j = k; j < end; j++)
      row[j] = (row[j] - dotOf(row + k, w_ + j * n_ + k, j - k)) / w_[j * n_ + j];
  }

  // corner_ = -L[k.., k..]^-1, lower triangular with zeros above.
  void invertCorner(int64_t k, int64_t width) {
    std::memset(corner_, 0, size_t(width * width) * sizeof(double));
    for (int64_t i = 0; i < width; i++) {
      const double* const row = w_ + (k + i) * n_ + k;
      double* const to = corner_ + i * width;
      for (int64_t s = 0; s < i; s++) {
        const double factor = row[s];
        const double* const from = corner_ + s * width;
        for (int64_t c = 0; c <= s; c++) to[c] += factor * from[c];
      }
      for (int64_t c = 0; c < i; c++) to[c] /= -row[i];
      to[i] = -1.0 / row[i];
    }
  }

  double* w_;
  int64_t n_;
  double pivot_ = 0;
  double* negated_;  // [block, n] rows of L with the sign that the product, which only adds, needs
  double* product_;  // [block, n]
  double* corner_;   // [block, block]
};
