// attention_tiles.h: what attention and its gradient share: packed keys and values, tiles, powers.
//
// Keys and values of a kv head are packed once; then blocks of query rows meet chunks of keys tile
// by tile, and tiles that the mask empties are skipped. The forward pass keeps the logits of a
// block of rows; the backward pass keeps one block x chunk and rebuilds its probabilities from lse.
// The cut into blocks and chunks is fixed, and every output element adds up its parts in the order
// of the chunks or blocks, so no result depends on the number of threads.

// Keys per chunk, a whole number of panels.
template <class T>
inline constexpr int64_t kKeyChunk = 256 - 256 % kTileCols<T>;
inline constexpr int64_t kForwardRows = 56 / kTileRows * kTileRows;
inline constexpr int64_t kBackwardRows = 112 / kTileRows * kTileRows;
inline constexpr int kSlotKeys = 2, kSlotRows = 3;  // threadScratch slots
inline constexpr int64_t kMaxKeyBytes = 64 << 20;   // of packed keys and values at a time

template <class T>
inline int64_t roundToPanel(int64_t n) {
  return ceilDiv(n, kTileCols<T>) * kTileCols<T>;
}

// Hands out consecutive parts of one scratch buffer, on cache lines. First without a buffer, to
// learn the size.
template <class T>
struct Carver {
  T* base;
  int64_t used = 0;
  T* take(int64_t count) {
    T* const part = base ? base + used : nullptr;
    used += ceilDiv(count, kLanes<T>) * kLanes<T>;
    return part;
  }
};

template <class T>
struct AttentionCase {
  int64_t batch, tokens, heads, kvHeads, size;
  T scale, top;
  const aq_view* in;  // q, k, v, then scale and zero of each

  // One head of q (0), k (1) or v (2): a matrix [tokens, size].
  Operand<T> head(int which, int64_t b, int64_t h, bool rowsAreK) const {
    const int64_t count = which == 0 ? heads : kvHeads;
    Operand<T> x(ptr<T>(in[which]) + (b * tokens * count + h) * size, count * size, rowsAreK);
    const aq_view& gridScale = in[3 + 2 * which];
    if (!present(gridScale)) return x;
    x.scale = ptr<T>(gridScale) + b * tokens * count + h;
    x.zero = ptr<T>(in[4 + 2 * which]) + b * tokens * count + h;
    x.gridLd = count;
    x.group = size;
    x.top = top;
    return x;
  }
};

template <class T>
static AttentionCase<T> attentionCase(const aq_view* in, double scale, int32_t heads,
                                      int32_t kvHeads, int32_t bits) {
  return {in[0].dim[0],
          in[0].dim[1],
          heads,
          kvHeads,
          in[0].dim[2] / heads,
          T(scale),
          T((int64_t(1) << bits) - 1),
          in};
}

// Packed keys and values of one kv head.
//  keysT, valuesT: panels of tokens [ceil(tokens / cols)][size][cols], to multiply rows with keys;
//  keys, values: per chunk, panels of the head's columns [ceil(size / cols)][chunk][cols], to add
//  up rows. The forward pass needs keysT and values, the backward pass all but values.
template <class T>
struct PackedHead {
  T *keysT, *valuesT, *keys, *values;

  static int64_t turnedSize(const AttentionCase<T>& c) {
    return roundToPanel<T>(c.tokens) * c.size;
  }
  static int64_t plainSize(const AttentionCase<T>& c) { return c.tokens * roundToPanel<T>(c.size); }
  static PackedHead carve(Carver<T>& carver, const AttentionCase<T>& c, bool backward) {
    const int64_t slack = kPackSlack / int64_t(sizeof(T));
    PackedHead head{};
    head.keysT = carver.take(turnedSize(c) + slack);
    if (backward) {
      head.valuesT = carver.take(turnedSize(c) + slack);
      head.keys = carver.take(plainSize(c) + slack);
    } else {
      head.values = carver.take(plainSize(c) + slack);
    }
    return head;
  }
};

// Packed kv heads of `batches` batches from b0 on, [batches][kvHeads]; all threads pack.
template <class T>
class PackedHeads {
 public:
  PackedHeads(const AttentionCase<T>& c, bool backward) : c_(c), backward_(backward) {
    Carver<T> carver{nullptr};
    PackedHead<T>::carve(carver, c, backward);
    headSize_ = carver.used;
    const int64_t batchBytes = headSize_ * c.kvHeads * int64_t(sizeof(T));
    batches = std::max<int64_t>(1, std::min(c.batch, kMaxKeyBytes / batchBytes));
    base_ = static_cast<T*>(threadScratch(kSlotKeys, uint64_t(batches * batchBytes)));
  }

  PackedHead<T> at(int64_t b, int64_t g) const {
    Carver<T> carver{base_ + (b * c_.kvHeads + g) * headSize_};
    return PackedHead<T>::carve(carver, c_, backward_);
  }

  void pack(int64_t b0, int64_t count) const {
    const int64_t chunks = ceilDiv(c_.tokens, kKeyChunk<T>);
    parallelFor(count * c_.kvHeads * chunks, [&](int64_t task) {
      const int64_t t = task % chunks * kKeyChunk<T>, g = task / chunks % c_.kvHeads;
      const int64_t b = task / chunks / c_.kvHeads;
      const PackedHead<T> head = at(b, g);
      const int64_t n = std::min(kKeyChunk<T>, c_.tokens - t), size = c_.size;
      constexpr int N = kTileCols<T>;
      packPanels<T, N>(c_.head(1, b0 + b, g, false), t, n, 0, size, head.keysT + t * size);
      if (backward_) {
        packPanels<T, N>(c_.head(2, b0 + b, g, false), t, n, 0, size, head.valuesT + t * size);
        packPanels<T, N>(c_.head(1, b0 + b, g, true), 0, size, t, n,
                         head.keys + t * roundToPanel<T>(size));
      } else {
        packPanels<T, N>(c_.head(2, b0 + b, g, true), 0, size, t, n,
                         head.values + t * roundToPanel<T>(size));
      }
    });
  }

  int64_t batches;

 private:
  const AttentionCase<T>& c_;
  bool backward_;
  int64_t headSize_;
  T* base_;
};

// Rows r0 .. r0 + rows of a head as they are used: in place, or quantized into `buffer`.
template <class T>
struct RowBlock {
  const T* data;
  int64_t ld;
};
template <class T>
static RowBlock<T> readRows(const Operand<T>& x, int64_t r0, int64_t rows, int64_t size,
                            T* buffer) {
  if (!x.scale) return {x.data + r0 * x.ld, x.ld};
  for (int64_t i = 0; i < rows; i++) x.read(r0 + i, 0, size, buffer + i * size);
  return {buffer, size};
}

// out [rows, keys of one chunk] = x (rows of `size`) times the packed rows of `turned`. A row tile
// needs the first limit(its end) keys only. `out` has room for whole panels.
template <class T, class Limit>
static void multiplyKeys(const RowBlock<T>& x, int64_t rows, int64_t size, const T* turned,
                         const Limit& limit, T* out, int64_t ldo) {
  constexpr int64_t R = kTileRows, N = kTileCols<T>;
  const int64_t most = limit(rows);
  for (int64_t j = 0; j < most; j += N) {
    for (int64_t i = 0; i < rows; i += R) {
      const int64_t end = std::min(rows, i + R);
      if (j >= limit(end)) continue;
      runTile(int(end - i), TileJob<T>{size, x.data + i * x.ld, x.ld, 1, turned + j * size,
                                       out + i * ldo + j, ldo, int(N), false, nullptr});
    }
  }
}

// out [rows, size] (=, +=) w [rows, limit(row tile)] times the packed columns of a chunk of
// `depth`.
template <class T, class Limit>
static void addUpKeys(const T* w, int64_t ldw, int64_t rows, const T* packed, int64_t depth,
                      int64_t size, const Limit& limit, T* out, int64_t ldo, bool accumulate) {
  constexpr int64_t R = kTileRows, N = kTileCols<T>;
  for (int64_t j = 0; j < size; j += N) {
    for (int64_t i = 0; i < rows; i += R) {
      const int64_t end = std::min(rows, i + R), deep = limit(end);
      if (deep <= 0) continue;
      runTile(int(end - i),
              TileJob<T>{deep, w + i * ldw, ldw, 1, packed + j * depth, out + i * ldo + j, ldo,
                         int(std::min(N, size - j)), accumulate, nullptr});
    }
  }
}

// ---------------------------------------------------------------- powers

template <class T>
inline constexpr T kLog2E = T(1.44269504088896340736);

// 2^x for x <= 127, and at least 2^-126, which counts as nothing beside the 1 that each row has.
// About half the work of expOf: at 64 columns a head, the softmax costs a sixth of the products.
inline Vec<float>::Type powerOfTwo(Vec<float>::Type x) {
  using V = Vec<float>;
  typedef int32_t Ints __attribute__((vector_size(sizeof(V::Type))));
  const V::Type low = V::splat(-126.0f), high = V::splat(127.0f), magic = V::splat(12582912.0f);
  V::Type y = x < low ? low : x;
  y = y > high ? high : y;
  const V::Type shifted = y + magic;  // the low bits are now round(y)
  const V::Type f = y - (shifted - magic);
  V::Type p = V::splat(1.5403530e-4f);  // ln2^k / k!, k = 6 .. 0: |f| <= 1/2 leaves 2e-8
  p = V::fma(p, f, V::splat(1.3333558e-3f));
  p = V::fma(p, f, V::splat(9.6181291e-3f));
  p = V::fma(p, f, V::splat(5.5504109e-2f));
  p = V::fma(p, f, V::splat(2.4022651e-1f));
  p = V::fma(p, f, V::splat(6.9314718e-1f));
  p = V::fma(p, f, V::splat(1.0f));
  const V::Type power = V::Type(Ints(p) + (Ints(shifted) << 23));
  return x == x ? power : x;
}
inline Vec<double>::Type powerOfTwo(Vec<double>::Type x) {
  double lanes[Vec<double>::kWidth];
  Vec<double>::store(lanes, x);
  for (double& lane : lanes) lane = std::exp2(lane);
  return Vec<double>::load(lanes);
}
