// cached_attention.h: attention of tokens whose predecessors' keys and values lie in caches (params.h).
//
// Tokens of a slot that follow each other are a run, and a run and kv head is a task: it reads each key
// and value once for all of its rows, which are the query heads of those tokens. Keys and values become
// panels (gemm_pack.h) a few at a time and meet the rows in the product's tiles. The cut into panels is by
// position, and every row is a chain of its own: what a token gets does not depend on its run.

// Inputs by position, those of attention first.
namespace cached {
enum : int {
  kKeys = 9,
  kValues,
  kKeyGrid,
  kValueGrid,
  kSlots,
  kPositions,
  kCosines,
  kSines,
  kInputs
};
inline constexpr int64_t kMostRows = 2 * kTileRows;  // of a run, where a token has fewer
inline constexpr int64_t kDeep = 64;                 // values that are added up at a time
}  // namespace cached

template <class T>
struct CachedAttention {
  const aq_view* in;
  const aq_view& out;
  const aq_cached_attention_params& p;
  int64_t tokens = rowCount(in[0]), size = lastDim(in[0]) / p.heads, kvHeads = p.kv_heads;
  int64_t group = p.heads / p.kv_heads, capacity = in[cached::kKeys].dim[1];
  const int32_t* slots = ptr<int32_t>(in[cached::kSlots]);
  const int32_t* positions = ptr<int32_t>(in[cached::kPositions]);
  T top = T((1 << p.bits) - 1);
  HeadCache<T> keys{in[cached::kKeys], in[cached::kKeyGrid], kvHeads, size};
  HeadCache<T> values{in[cached::kValues], in[cached::kValueGrid], kvHeads, size};

  void run() const {
    parallelFor(tokens, [&](int64_t m) { write(m); });
    auto* const starts =
        static_cast<int64_t*>(threadScratch(kSlotShared, uint64_t(tokens + 1) * sizeof(int64_t)));
    const int64_t most = std::max<int64_t>(1, cached::kMostRows / group);
    int64_t runs = 0;
    for (int64_t m = 0; m < tokens; m++) {
      const bool follows = m > 0 && slots[m] == slots[m - 1] &&
                           positions[m] == positions[m - 1] + 1 && m - starts[runs - 1] < most;
      if (!follows) starts[runs++] = m;
    }
    starts[runs] = tokens;
    parallelFor(runs * kvHeads, [&](int64_t task) {
      const int64_t i = task / kvHeads;
      attend(starts[i], starts[i + 1] - starts[i], task % kvHeads);
    });
  }

 private:
  void write(int64_t m) const {
    const int64_t place = slots[m] * capacity + positions[m];
    for (int side = 0; side < 2; side++) {
      const T *const scale = ptr<T>(in[5 + 2 * side]), *const zero = ptr<T>(in[6 + 2 * side]);
      for (int64_t h = 0; h < kvHeads; h++) {
        const int64_t at = m * kvHeads + h;
        (side ? values : keys)
            .write(place, h, ptr<T>(in[1 + side]) + at * size, scale ? scale + at : nullptr,
                   zero ? zero + at : nullptr, top);
      }
    }
  }

  // One query head of a token in the order of the keys.
  void readQuery(int64_t m, int64_t head, T* buffer, T* to) const {
    const int64_t at = m * p.heads + head;
    const T* x = ptr<T>(in[0]) + at * size;
    if (const T* const scale = ptr<T>(in[3])) {
      fakeQuantRange(x, static_cast<const T*>(nullptr), scale[at], ptr<T>(in[4])[at], top, buffer,
                     size);
      x = buffer;
    }
    keys.sort(x, to);
  }

  // Logits to weights of the first `seen` keys of `all`; returns their sum.
  T weigh(T* l, int64_t seen, int64_t all) const {
    T least = 0, most = T(p.scale) * l[0];
    for (int64_t t = 0; t < seen; t++) l[t] = T(p.scale) * l[t];
    minMaxOf(l, seen, least, most);
    for (int64_t t = 0; t < seen; t++) l[t] = expOf(l[t] - most);
    for (int64_t t = seen; t < all; t++) l[t] = 0;
    return sumOf(l, seen);
  }

  // Tokens m .. m + count of a slot and the query heads of kv head h.
  void attend(int64_t m, int64_t count, int64_t h) const {
    constexpr int64_t N = kTileCols<T>, R = kTileRows;
    const int64_t rows = count * group, all = positions[m + count - 1] + 1;
    const int64_t first = int64_t(slots[m]) * capacity, ld = roundToPanel<T>(all);
    Carver<T> carver{nullptr};
    T *query, *logits, *panel, *buffer, *sums, *totals;
    for (int pass = 0; pass < 2; pass++) {
      query = carver.take(rows * size);
      sums = carver.take(rows * size);
      totals = carver.take(rows);
      buffer = carver.take(std::max(N, cached::kDeep) * (size + 1));
      panel = carver.take(std::max(N * size, cached::kDeep * roundToPanel<T>(size)) +
                          kPackSlack / int64_t(sizeof(T)));
      logits = carver.take(rows * ld);
      if (pass == 0)
        carver = {static_cast<T*>(threadScratch(kSlotKeys, uint64_t(carver.used) * sizeof(T)))};
    }
    for (int64_t r = 0; r < rows; r++)
      readQuery(m + r / group, h * group + r % group, buffer, query + r * size);

    for (int64_t t = 0; t < all; t += N) {
      const int64_t n = std::min(N, all - t);
      packPanels<T, int(N)>(keys.rows(first + t, n, h, buffer, false), 0, n, 0, size, panel);
      for (int64_t i = 0; i < rows; i += R)
        runTile(int(std::min(R, rows - i)),
                TileJob<T>{size, query + i * size, size, 1, panel, logits + i * ld + t, ld, int(N),
                           false, nullptr});
    }
    for (int64_t r = 0; r < rows; r++)
      totals[r] = weigh(logits + r * ld, positions[m + r / group] + 1, all);

    for (int64_t t = 0; t < all; t += cached::kDeep) {
      const int64_t n = std::min(cached::kDeep, all - t);
      packPanels<T, int(N)>(values.rows(first + t, n, h, buffer, true), 0, size, 0, n, panel);
      for (int64_t j = 0; j < size; j += N) {
        for (int64_t i = 0; i < rows; i += R)
          runTile(int(std::min(R, rows - i)),
                  TileJob<T>{n, logits + i * ld + t, ld, 1, panel + j * n, sums + i * size + j,
                             size, int(std::min(N, size - j)), t > 0, nullptr});
      }
    }
    for (int64_t r = 0; r < rows; r++)
      values.unsort(sums + r * size, totals[r],
                    mut<T>(out) + ((m + r / group) * p.heads + h * group + r % group) * size);
  }
};

template <class T>
static void cachedAttention(const aq_view* in, const aq_view& out,
                            const aq_cached_attention_params& p) {
  CachedAttention<T>{in, out, p}.run();
}

// A call whose q, k and v stand side by side or are yet to be turned, with each in a row of its own.
template <class T>
class ApartRows {
 public:
  ApartRows(const aq_view* in, const aq_view& out, const aq_cached_attention_params& p)
      : size_(lastDim(out) / p.heads),
        count_(rowCount(out) * (p.heads + 2 * p.kv_heads) * size_),
        memory_(count_) {
    std::copy(in, in + cached::kInputs, in_);
    const int64_t tokens = rowCount(in[0]);
    T* to = memory_.data();
    if (!to) return;
    const bool isJoined = !present(in[1]);
    int64_t first = 0;
    for (int i = 0; i < 3; i++) {
      const int64_t heads = i == 0 ? p.heads : p.kv_heads, width = heads * size_;
      const aq_view& from = isJoined ? in[0] : in[i];
      const T* const x = ptr<T>(from) + (isJoined ? first : 0);
      for (int64_t m = 0; m < tokens; m++) {
        for (int64_t h = 0; h < heads; h++)
          copyHead(m, x + m * lastDim(from) + h * size_, i < 2, to + m * width + h * size_);
      }
      in_[i] = {to, in[0].dtype, 2, {tokens, width}};
      to += tokens * width;
      first += width;
    }
  }

  const aq_view* views() const { return memory_.data() ? in_ : nullptr; }
  int64_t bytes() const { return count_ * int64_t(sizeof(T)); }

 private:
  void copyHead(int64_t m, const T* x, bool turns, T* y) const {
    const int64_t half = size_ / 2;
    const T *const c = ptr<T>(in_[cached::kCosines]), *const s = ptr<T>(in_[cached::kSines]);
    if (turns && c) return ropeHead(x, c + m * half, s + m * half, T(1), y, half);
    std::copy(x, x + size_, y);
  }

  int64_t size_, count_;
  Partials<T> memory_;
  aq_view in_[cached::kInputs];
};

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
  WidenedViews result;
  if (!result.add(out[0], false))
    return noPartials(err, "cached_attention", numel(out[0]) * int64_t(sizeof(float)));
  const aq_view& o = result.views()[0];
  const int32_t code = visitFloat(in[0].dtype, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    const auto attend = [&](const aq_view* views) {
      return withScratch("cached_attention", err, [&]() -> int32_t {
        cachedAttention<T>(views, o, p);
        return AQ_OK;
      });
    };
    if (present(in[1]) && !present(in[cached::kCosines])) return attend(in);
    const ApartRows<T> rows(in, o, p);
    if (!rows.views()) return noPartials(err, "cached_attention", rows.bytes());
    return attend(rows.views());
  });
  if (code == AQ_OK) result.finish();
  return code;
}
