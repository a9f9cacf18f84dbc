// attention.h: causal softmax attention, forward (attention_tiles.h says how).

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

// A CPU reads q, k and v where they are: nothing is worth keeping for the gradient.
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
