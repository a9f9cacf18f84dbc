// cached_attention.h: attention of tokens whose predecessors' keys and values lie in caches (params.h).
//
// Every token and kv head is a task: it reads each key of its slot once for all of its query heads.

// One kind of cache: how a head's values of a place are written and read.
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

  void read(int64_t place, int64_t head, T* __restrict y) const {
    const int64_t at = place * heads_ + head;
    if (isCodes_) {
      const uint8_t* const from = ptr<uint8_t>(cache_) + at * bytes_;
      const T s = grid_[2 * at], z = grid_[2 * at + 1];
      for (int64_t d = 0; d < size_; d++)
        y[d] = (T(int32_t(from[d / 2] >> (d % 2 * 4) & 15)) - z) * s;
      return;
    }
    const int64_t first = at * size_;
    switch (cache_.dtype) {
      case AQ_BF16:
        for (int64_t d = 0; d < size_; d++) y[d] = T(toFloat(ptr<Bfloat>(cache_)[first + d]));
        return;
      case AQ_F16:
        for (int64_t d = 0; d < size_; d++) y[d] = T(toFloat(ptr<Half>(cache_)[first + d]));
        return;
      default:
        for (int64_t d = 0; d < size_; d++) y[d] = ptr<T>(cache_)[first + d];
    }
  }

 private:
  static constexpr int64_t kPiece = 64;

  static int32_t code(T x, T s, T z, T top) { return int32_t(codeOf(x / s, z, top)); }

  void store(int64_t at, T value) const {
    if (cache_.dtype == AQ_BF16) {
      mut<Bfloat>(cache_)[at] = toBfloat(float(value));
    } else if (cache_.dtype == AQ_F16) {
      mut<Half>(cache_)[at] = toHalf(float(value));
    } else {
      mut<T>(cache_)[at] = value;
    }
  }

  aq_view cache_;
  T* grid_;  // (scale, zero) of a place and head, or null
  int64_t heads_, size_, bytes_;
  bool isCodes_;
};

// Inputs by position, those of attention first.
namespace cached {
enum : int { kKeys = 9, kValues, kKeyGrid, kValueGrid, kSlots, kPositions };
}

template <class T>
static void cachedAttention(const aq_view* in, const aq_view& out,
                            const aq_cached_attention_params& p) {
  const int64_t tokens = rowCount(in[0]), size = lastDim(in[0]) / p.heads;
  const int64_t kvHeads = p.kv_heads, group = p.heads / p.kv_heads;
  const int64_t capacity = in[cached::kKeys].dim[1];
  const int32_t* const slots = ptr<int32_t>(in[cached::kSlots]);
  const int32_t* const positions = ptr<int32_t>(in[cached::kPositions]);
  const T top = T((1 << p.bits) - 1);
  const HeadCache<T> caches[] = {{in[cached::kKeys], in[cached::kKeyGrid], kvHeads, size},
                                 {in[cached::kValues], in[cached::kValueGrid], kvHeads, size}};

  parallelFor(tokens, [&](int64_t m) {
    const int64_t place = slots[m] * capacity + positions[m];
    for (int side = 0; side < 2; side++) {
      const T *const scale = ptr<T>(in[5 + 2 * side]), *const zero = ptr<T>(in[6 + 2 * side]);
      for (int64_t h = 0; h < kvHeads; h++) {
        const int64_t at = m * kvHeads + h;
        caches[side].write(place, h, ptr<T>(in[1 + side]) + at * size, scale ? scale + at : nullptr,
                           zero ? zero + at : nullptr, top);
      }
    }
  });

  constexpr int kSlotQuery = 2, kSlotLogits = 3;  // threadScratch
  parallelFor(tokens * kvHeads, [&](int64_t task) {
    const int64_t m = task / kvHeads, h = task % kvHeads, seen = positions[m] + 1;
    const int64_t first = int64_t(slots[m]) * capacity;
    T* const query =
        static_cast<T*>(threadScratch(kSlotQuery, uint64_t((group + 1) * size) * sizeof(T)));
    T* const row = query + group * size;
    T* const logits =
        static_cast<T*>(threadScratch(kSlotLogits, uint64_t(group * seen) * sizeof(T)));
    const T *const scale = ptr<T>(in[3]), *const zero = ptr<T>(in[4]);
    const int64_t q0 = m * p.heads + h * group;
    for (int64_t g = 0; g < group; g++) {
      const T* const x = ptr<T>(in[0]) + (q0 + g) * size;
      if (scale) {
        fakeQuantRange(x, static_cast<const T*>(nullptr), scale[q0 + g], zero[q0 + g], top,
                       query + g * size, size);
      } else {
        for (int64_t d = 0; d < size; d++) query[g * size + d] = x[d];
      }
    }
    for (int64_t t = 0; t < seen; t++) {
      caches[0].read(first + t, h, row);
      for (int64_t g = 0; g < group; g++)
        logits[g * seen + t] = T(p.scale) * dotOf(query + g * size, row, size);
    }
    T* const o = mut<T>(out) + q0 * size;
    for (int64_t i = 0; i < group * size; i++) o[i] = T(0);
    for (int64_t g = 0; g < group; g++) {
      T* const l = logits + g * seen;
      T most = l[0];
      for (int64_t t = 1; t < seen; t++) most = l[t] > most ? l[t] : most;
      for (int64_t t = 0; t < seen; t++) l[t] = expOf(l[t] - most);
      const T total = sumOf(l, seen);
      for (int64_t t = 0; t < seen; t++) l[t] /= total;
    }
    for (int64_t t = 0; t < seen; t++) {
      caches[1].read(first + t, h, row);
      for (int64_t g = 0; g < group; g++) {
        const T weight = logits[g * seen + t];
        T* __restrict const y = o + g * size;
        for (int64_t d = 0; d < size; d++) y[d] += weight * row[d];
      }
    }
  });
}

static int32_t cached_attention(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                                const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_cached_attention_params*>(params);
  const aq_view& cache = in[cached::kKeys];
  for (int64_t m = 0; m < rowCount(in[0]); m++) {
    const int32_t slot = ptr<int32_t>(in[cached::kSlots])[m];
    const int32_t position = ptr<int32_t>(in[cached::kPositions])[m];
    if (slot >= 0 && slot < cache.dim[0] && position >= 0 && position < cache.dim[1]) continue;
    return fail(err, AQ_ARG,
                "cached_attention: token %lld is at position %d of slot %d, the caches have %lld "
                "positions in %lld slots; make them larger, or the text shorter",
                static_cast<long long>(m), position, slot, static_cast<long long>(cache.dim[1]),
                static_cast<long long>(cache.dim[0]));
  }
  return withScratch("cached_attention", err, [&]() -> int32_t {
    if (in[0].dtype == AQ_F64) {
      cachedAttention<double>(in, out[0], p);
    } else {
      cachedAttention<float>(in, out[0], p);
    }
    return AQ_OK;
  });
}
