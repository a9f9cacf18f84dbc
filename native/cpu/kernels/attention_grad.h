// attention_grad.h: the gradient of causal softmax attention (attention_tiles.h says how).

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
