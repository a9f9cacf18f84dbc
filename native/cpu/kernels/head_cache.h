// head_cache.h: a cache of keys or of values: how a head's numbers of a place are written, and read as
// rows of a product.

template <class T>
class HeadCache {
 public:
  HeadCache(const aq_view& cache, const aq_view& grid, int64_t heads, int64_t size)
      : cache_(cache), grid_(mut<T>(grid)), heads_(heads), size_(size) {
    isCodes_ = cache.dtype == AQ_U8;
    bytes_ = (size + 1) / 2;
  }

  // x is on its grid (s, z, top) if there is one.
  void write(int64_t place, int64_t head, const T* x, const T* s, const T* z, T top) const {
    const int64_t at = place * heads_ + head;
    if (isCodes_) {
      uint8_t* const to = mut<uint8_t>(cache_) + at * bytes_;
      for (int64_t b = 0; b < bytes_; b++) {
        const int32_t low = code(x[2 * b], *s, *z, top);
        const int32_t high = 2 * b + 1 < size_ ? code(x[2 * b + 1], *s, *z, top) : 0;
        to[b] = uint8_t(low | high << 4);
      }
      grid_[2 * at] = *s;
      grid_[2 * at + 1] = *z;
      return;
    }
    T values[kPiece];
    for (int64_t d = 0; d < size_; d += kPiece) {
      const int64_t n = std::min(kPiece, size_ - d);
      if (s) {
        fakeQuantRange(x + d, static_cast<const T*>(nullptr), *s, *z, top, values, n);
      }
      const T* const from = s ? values : x + d;
      for (int64_t i = 0; i < n; i++) store(at * size_ + d + i, from[i]);
    }
  }

  // Rows of n places from `place` on, the numbers of a head in the order that `sort` makes, in
  // `buffer`, which has room for n width() of them. (Where they lie they are often a power of two apart,
  // and would fall on the same few lines of the cache.)
  Operand<T> rows(int64_t place, int64_t n, int64_t head, T* buffer, bool rowsAreK) const {
    for (int64_t i = 0; i < n; i++) read(place + i, head, buffer + i * width());
    return {buffer, width(), rowsAreK};
  }

  // Numbers from a row of `buffer` to the next: codes come in pairs.
  int64_t width() const { return isCodes_ ? 2 * bytes_ : size_; }

  // A head's numbers in the order of rows: of codes the first of all pairs, then the second.
  void sort(const T* x, T* y) const {
    for (int64_t d = 0; d < size_; d++) y[sorted(d)] = x[d];
  }
  // The other way, divided by `total`.
  void unsort(const T* x, T total, T* y) const {
    for (int64_t d = 0; d < size_; d++) y[d] = x[sorted(d)] / total;
  }

 private:
  static constexpr int64_t kPiece = 64, kAhead = 16;

  static int32_t code(T x, T s, T z, T top) { return int32_t(codeOf(x / s, z, top)); }

  int64_t sorted(int64_t d) const { return isCodes_ ? d % 2 * bytes_ + d / 2 : d; }

  void store(int64_t at, T value) const {
    if (cache_.dtype == AQ_BF16) {
      mut<Bfloat>(cache_)[at] = toBfloat(float(value));
    } else if (cache_.dtype == AQ_F16) {
      mut<Half>(cache_)[at] = toHalf(float(value));
    } else {
      mut<T>(cache_)[at] = value;
    }
  }

  void read(int64_t place, int64_t head, T* __restrict y) const {
    const int64_t at = place * heads_ + head, first = at * size_;
    if (isCodes_) {
      const uint8_t* const from = ptr<uint8_t>(cache_) + at * bytes_;
      const T s = grid_[2 * at], z = grid_[2 * at + 1];
      for (int64_t b = 0; b < bytes_; b++) y[b] = (T(int32_t(from[b] & 15)) - z) * s;
      for (int64_t b = 0; b < bytes_; b++) y[bytes_ + b] = (T(int32_t(from[b] >> 4)) - z) * s;
    } else if (cache_.dtype == AQ_BF16) {
      for (int64_t d = 0; d < size_; d++) y[d] = T(toFloat(ptr<Bfloat>(cache_)[first + d]));
    } else if (cache_.dtype == AQ_F16) {
      for (int64_t d = 0; d < size_; d++) y[d] = T(toFloat(ptr<Half>(cache_)[first + d]));
    } else {
      const T* const from = ptr<T>(cache_) + first;
      // The next rows are too far apart for the processor to see them coming.
      for (int64_t d = 0; d < size_; d += kLanes<T>)
        __builtin_prefetch(from + kAhead * heads_ * size_ + d);
      for (int64_t d = 0; d < size_; d++) y[d] = from[d];
    }
  }

  aq_view cache_;
  T* grid_;  // (scale, zero) of a place and head, or null
  int64_t heads_, size_, bytes_;
  bool isCodes_;
};
