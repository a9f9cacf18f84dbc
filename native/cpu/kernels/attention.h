// attention.h: causal softmax attention and its gradient, for grouped heads and optional grids.
//
// Keys and values of a kv head are packed once; then blocks of query rows meet chunks of keys tile
// by tile, and tiles that the mask empties are skipped. The forward pass keeps the logits of a
// block of rows; the backward pass keeps one block x chunk and rebuilds its probabilities from lse.
// The cut into blocks and chunks is fixed, and every output element adds up its parts in the order
// of the chunks or blocks, so no result depends on the number of threads.

// Keys per chunk, a whole number of panels.
template <class T>
inline constexpr int64_t kKeyChunk = 256 / kTileCols<T>* kTileCols<T>;
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

// ---------------------------------------------------------------- forward

// x[0..n) <- 2^(scale x - shift), where the shift is the largest scale x, so that no power
// overflows; returns their sum. x has room for whole vectors; what follows the n values is lost.
template <class T>
static T softmaxRow(T* x, int64_t n, T scale, T& shift) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  const int64_t padded = ceilDiv(n, W) * W;
  for (int64_t i = n; i < padded; i++) x[i] = x[0];
  const typename V::Type factor = V::splat(scale);
  T lanes[W];
  typename V::Type top = V::load(x) * factor;
  for (int64_t i = W; i < padded; i += W) {
    const typename V::Type y = V::load(x + i) * factor;
    top = y > top ? y : top;
  }
  V::store(lanes, top);
  shift = lanes[0];
  for (T lane : lanes) shift = lane > shift ? lane : shift;

  const typename V::Type low = V::splat(-shift);
  typename V::Type sum = V::zero();
  for (int64_t i = 0; i < padded; i += W) {
    const typename V::Type e = powerOfTwo(V::fma(V::load(x + i), factor, low));
    V::store(x + i, e);
    if (i + W <= n) sum += e;
  }
  V::store(lanes, sum);
  T total = T(0);
  for (T lane : lanes) total += lane;
  for (int64_t i = n / W * W; i < n; i++) total += x[i];
  return total;
}

// o and lse of the query rows r0 .. r0 + rows of one head.
template <class T>
static void attentionRows(const AttentionCase<T>& c, const PackedHead<T>& keys, const Operand<T>& q,
                          int64_t r0, int64_t rows, T* o, T* lse) {
  const int64_t size = c.size, ldo = c.heads * size;
  // An odd number of cache lines a row: rows must not share cache sets.
  const int64_t ldw = (ceilDiv(c.tokens + kTileCols<T>, 2 * kLanes<T>) * 2 + 1) * kLanes<T>;
  Carver<T> sizes{nullptr};
  sizes.take(kForwardRows * ldw);
  sizes.take(kForwardRows * size);
  Carver<T> carver{static_cast<T*>(threadScratch(kSlotRows, uint64_t(sizes.used) * sizeof(T)))};
  T* const w = carver.take(kForwardRows * ldw);
  const RowBlock<T> x = readRows(q, r0, rows, size, carver.take(kForwardRows * size));

  const auto limit = [=](int64_t rowEnd) { return r0 + rowEnd; };
  multiplyKeys(x, rows, size, keys.keysT, limit, w, ldw);

  T inverseSum[kForwardRows];
  for (int64_t i = 0; i < rows; i++) {
    T* const row = w + i * ldw;
    const int64_t seen = r0 + i + 1;
    T shift;
    const T sum = softmaxRow(row, seen, c.scale * kLog2E<T>, shift);
    lse[r0 + i] = (shift + std::log2(sum)) / kLog2E<T>;
    inverseSum[i] = T(1) / sum;
    const int64_t tileEnd = limit(std::min(rows, (i / kTileRows + 1) * kTileRows));
    for (int64_t j = seen; j < tileEnd; j++) row[j] = T(0);
  }

  for (int64_t t = 0; t < r0 + rows; t += kKeyChunk<T>) {
    const int64_t depth = std::min(kKeyChunk<T>, c.tokens - t);
    addUpKeys(
        w + t, ldw, rows, keys.values + t * roundToPanel<T>(size), depth, size,
        [=](int64_t rowEnd) { return std::min(depth, limit(rowEnd) - t); }, o + r0 * ldo, ldo,
        t > 0);
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t d = 0; d < size; d++) o[(r0 + i) * ldo + d] *= inverseSum[i];
}

template <class T>
static void attentionForward(const AttentionCase<T>& c, T* o, T* lse) {
  if (c.batch * c.tokens * c.size == 0) return;
  const PackedHeads<T> packed(c, false);
  const int64_t blocks = ceilDiv(c.tokens, kForwardRows);
  for (int64_t b0 = 0; b0 < c.batch; b0 += packed.batches) {
    const int64_t batches = std::min(packed.batches, c.batch - b0);
    packed.pack(b0, batches);
    parallelFor(blocks * batches * c.heads, [&](int64_t task) {
      const int64_t h = task % c.heads, b = task / c.heads % batches;
      // The last rows see the most keys: long tasks first.
      const int64_t r0 = (blocks - 1 - task / c.heads / batches) * kForwardRows;
      attentionRows(c, packed.at(b, h / (c.heads / c.kvHeads)), c.head(0, b0 + b, h, false), r0,
                    std::min(kForwardRows, c.tokens - r0),
                    o + ((b0 + b) * c.tokens * c.heads + h) * c.size,
                    lse + ((b0 + b) * c.heads + h) * c.tokens);
    });
  }
}

static int32_t attention(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_attention_params*>(params);
  return withScratch("attention", err, [&]() -> int32_t {
    if (in[0].dtype == AQ_F64) {
      attentionForward(attentionCase<double>(in, p.scale, p.heads, p.kv_heads, p.bits),
                       mut<double>(out[0]), mut<double>(out[1]));
    } else {
      attentionForward(attentionCase<float>(in, p.scale, p.heads, p.kv_heads, p.bits),
                       mut<float>(out[0]), mut<float>(out[1]));
    }
    return AQ_OK;
  });
}

// ---------------------------------------------------------------- backward

// Tensors of the backward pass, each at the head (or kv head) in question.
template <class T>
struct AttentionGrads {
  const T *o, *lse, *go;
  T *gq, *gk, *gv;
};

// A block of query rows, made ready for all chunks of keys: q and go as rows and as packed columns.
template <class T>
class GradRows {
 public:
  GradRows(const AttentionCase<T>& c) : c_(c) {
    Carver<T> sizes{nullptr};
    carve(sizes);
    Carver<T> carver{static_cast<T*>(threadScratch(kSlotRows, uint64_t(sizes.used) * sizeof(T)))};
    carve(carver);
  }

  void prepare(const AttentionGrads<T>& x, const Operand<T>& q, int64_t r0, int64_t rows,
               bool forKeys) {
    const int64_t size = c_.size, ld = c_.heads * size;
    x_ = x;
    r0_ = r0;
    rows_ = rows;
    q_ = readRows(q, r0, rows, size, qBuffer_);
    go_ = {x.go + r0 * ld, ld};
    for (int64_t i = 0; i < rows; i++)
      delta_[i] = dotOf(x.go + (r0 + i) * ld, x.o + (r0 + i) * ld, size);
    if (!forKeys) return;
    constexpr int N = kTileCols<T>;
    packPanels<T, N>(Operand<T>(q_.data, q_.ld, true), 0, size, 0, rows, qPacked_);
    packPanels<T, N>(Operand<T>(go_.data, go_.ld, true), 0, size, 0, rows, goPacked_);
  }

  // Adds what the keys t .. t + n (one chunk) give to gq, if `forQueries`, and what they get in gk
  // and gv, if `forKeys`.
  void meet(const PackedHead<T>& keys, int64_t t, int64_t n, bool forQueries, bool forKeys) {
    const int64_t size = c_.size;
    const int64_t lead = r0_ - t;  // row i sees lead + i + 1 keys of the chunk
    const auto limit = [=](int64_t rowEnd) { return std::min(n, lead + rowEnd); };
    multiplyKeys(q_, rows_, size, keys.keysT + t * size, limit, p_, kLd);
    multiplyKeys(go_, rows_, size, keys.valuesT + t * size, limit, ds_, kLd);
    for (int64_t i = 0; i < rows_; i++) {
      const int64_t seen = std::max<int64_t>(0, std::min(n, lead + i + 1));
      turnToGradient(p_ + i * kLd, ds_ + i * kLd, seen, x_.lse[r0_ + i], delta_[i]);
    }
    if (forQueries) {
      const int64_t ld = c_.heads * size;
      addUpKeys(ds_, kLd, rows_, keys.keys + t * roundToPanel<T>(size), n, size, limit,
                x_.gq + r0_ * ld, ld, t > 0);
    }
    if (forKeys) {
      addUpRows(ds_, qPacked_, lead, n, x_.gk + t * c_.kvHeads * size);
      addUpRows(p_, goPacked_, lead, n, x_.gv + t * c_.kvHeads * size);
    }
  }

 private:
  // Room for a chunk of whole panels, an odd number of cache lines.
  static constexpr int64_t kLd = ((kKeyChunk<T> + kLanes<T> - 1) / kLanes<T> | 1) * kLanes<T>;

  void carve(Carver<T>& carver) {
    const int64_t slack = kPackSlack / int64_t(sizeof(T));
    p_ = carver.take(kBackwardRows * kLd);
    ds_ = carver.take(kBackwardRows * kLd);
    qBuffer_ = carver.take(kBackwardRows * c_.size);
    qPacked_ = carver.take(kBackwardRows * roundToPanel<T>(c_.size) + slack);
    goPacked_ = carver.take(kBackwardRows * roundToPanel<T>(c_.size) + slack);
    delta_ = carver.take(kBackwardRows);
  }

  // Logits and dP become probabilities and the gradient of the logits; zero where nothing is seen.
  void turnToGradient(T* p, T* ds, int64_t seen, T lse, T delta) const {
    using V = Vec<T>;
    const typename V::Type scale = V::splat(c_.scale), power = V::splat(c_.scale * kLog2E<T>);
    const typename V::Type low = V::splat(-lse * kLog2E<T>), mean = V::splat(delta);
    for (int64_t j = 0; j < seen; j += V::kWidth) {
      const typename V::Type e = powerOfTwo(V::fma(V::load(p + j), power, low));
      V::store(p + j, e);
      V::store(ds + j, e * (V::load(ds + j) - mean) * scale);
    }
    for (int64_t j = seen; j < kLd; j++) p[j] = T(0);
    for (int64_t j = seen; j < kLd; j++) ds[j] = T(0);
  }

  // out [keys n, size] += wT times the packed rows; key j is seen from row j - lead on.
  void addUpRows(const T* w, const T* packed, int64_t lead, int64_t n, T* out) const {
    constexpr int64_t R = kTileRows, N = kTileCols<T>;
    const int64_t size = c_.size, ldo = c_.kvHeads * size;
    for (int64_t d = 0; d < size; d += N) {
      for (int64_t j = 0; j < n; j += R) {
        const int64_t from = std::max<int64_t>(0, j - lead);
        if (from >= rows_) break;
        runTile(int(std::min(R, n - j)),
                TileJob<T>{rows_ - from, w + from * kLd + j, 1, kLd, packed + d * rows_ + from * N,
                           out + j * ldo + d, ldo, int(std::min(N, size - d)), true, nullptr});
      }
    }
  }

  const AttentionCase<T>& c_;
  AttentionGrads<T> x_{};
  int64_t r0_ = 0, rows_ = 0;
  RowBlock<T> q_{}, go_{};
  T *p_, *ds_, *qBuffer_, *qPacked_, *goPacked_, *delta_;
};

template <class T>
static void attentionBackward(const AttentionCase<T>& c, const AttentionGrads<T>& all) {
  if (c.batch * c.tokens * c.size == 0) return;
  const PackedHeads<T> packed(c, true);
  constexpr int64_t C = kKeyChunk<T>, R = kBackwardRows;
  const int64_t tokens = c.tokens, size = c.size, group = c.heads / c.kvHeads;
  const int64_t blocks = ceilDiv(tokens, R), chunks = ceilDiv(tokens, C);

  for (int64_t b0 = 0; b0 < c.batch; b0 += packed.batches) {
    const int64_t batches = std::min(packed.batches, c.batch - b0);
    packed.pack(b0, batches);
    const auto at = [&](int64_t b, int64_t h) {
      const int64_t q = ((b0 + b) * tokens * c.heads + h) * size;
      const int64_t k = ((b0 + b) * tokens * c.kvHeads + h / group) * size;
      return AttentionGrads<T>{all.o + q,  all.lse + ((b0 + b) * c.heads + h) * tokens,
                               all.go + q, all.gq + q,
                               all.gk + k, all.gv + k};
    };
    const auto clearKeys = [&](int64_t b, int64_t g, int64_t t, int64_t n) {
      const AttentionGrads<T> x = at(b, g * group);
      for (int64_t i = t; i < t + n; i++) {
        std::memset(x.gk + i * c.kvHeads * size, 0, size_t(size) * sizeof(T));
        std::memset(x.gv + i * c.kvHeads * size, 0, size_t(size) * sizeof(T));
      }
    };
    const auto rowsFrom = [=](int64_t r0) { return std::min(R, tokens - r0); };
    const auto keysFrom = [=](int64_t t) { return std::min(C, tokens - t); };

    // One task a kv head does all five products of each tile. Where that leaves threads idle, keys
    // and queries get passes of their own, which costs seven products and gives the same bits.
    const int64_t wide = batches * c.kvHeads, threads = threadCount();
    if (5 * threads * ceilDiv(wide, threads) <= 7 * wide) {
      parallelFor(wide, [&](int64_t task) {
        const int64_t b = task / c.kvHeads, g = task % c.kvHeads;
        GradRows<T> block(c);
        clearKeys(b, g, 0, tokens);
        for (int64_t h = g * group; h < (g + 1) * group; h++)
          for (int64_t r0 = 0; r0 < tokens; r0 += R) {
            block.prepare(at(b, h), c.head(0, b0 + b, h, false), r0, rowsFrom(r0), true);
            for (int64_t t = 0; t < r0 + rowsFrom(r0); t += C)
              block.meet(packed.at(b, g), t, keysFrom(t), true, true);
          }
      });
      continue;
    }
    parallelFor(wide * chunks,
                [&](int64_t task) {  // the first keys are seen most: long tasks first
                  const int64_t g = task % c.kvHeads, b = task / c.kvHeads % batches;
                  const int64_t t = task / wide * C;
                  GradRows<T> block(c);
                  clearKeys(b, g, t, keysFrom(t));
                  for (int64_t h = g * group; h < (g + 1) * group; h++)
                    for (int64_t r0 = t / R * R; r0 < tokens; r0 += R) {
                      block.prepare(at(b, h), c.head(0, b0 + b, h, false), r0, rowsFrom(r0), true);
                      block.meet(packed.at(b, g), t, keysFrom(t), false, true);
                    }
                });
    parallelFor(blocks * batches * c.heads, [&](int64_t task) {
      const int64_t h = task % c.heads, b = task / c.heads % batches;
      const int64_t r0 = (blocks - 1 - task / c.heads / batches) * R;
      GradRows<T> block(c);
      block.prepare(at(b, h), c.head(0, b0 + b, h, false), r0, rowsFrom(r0), false);
      for (int64_t t = 0; t < r0 + rowsFrom(r0); t += C)
        block.meet(packed.at(b, h / group), t, keysFrom(t), true, false);
    });
  }
}

static int32_t attention_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                              const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_attention_grad_params*>(params);
  return withScratch("attention_grad", err, [&]() -> int32_t {
    if (in[0].dtype == AQ_F64) {
      attentionBackward(
          attentionCase<double>(in, p.scale, p.heads, p.kv_heads, p.bits),
          AttentionGrads<double>{ptr<double>(in[9]), ptr<double>(in[10]), ptr<double>(in[11]),
                                 mut<double>(out[0]), mut<double>(out[1]), mut<double>(out[2])});
    } else {
      attentionBackward(
          attentionCase<float>(in, p.scale, p.heads, p.kv_heads, p.bits),
          AttentionGrads<float>{ptr<float>(in[9]), ptr<float>(in[10]), ptr<float>(in[11]),
                                mut<float>(out[0]), mut<float>(out[1]), mut<float>(out[2])});
    }
    return AQ_OK;
  });
}
