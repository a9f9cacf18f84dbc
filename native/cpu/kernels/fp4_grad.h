// fp4_grad.h: the gradient of quantizing to 4-bit floats, straight through its roundings (params.h).
//
// Of a group, one pass gives what passes to x and v and two sums: that of the gradient by s' = s / g, and
// how many elements have the largest magnitude. From them follows what the scale passes on, to the
// clipping logit and, in a second pass over the piece that lies in cache, to those elements.

namespace fp4 {

// A piece of a row; gx (the gradient of r x c) and gv are null where they are not wanted. Of its groups:
// g / s, s / g, the largest magnitude.
template <class T>
struct GradPiece {
  const T *x, *grad, *v;
  T *gx, *gv;
  const T *k, *step, *most;
  int64_t group, groups;
};

// Vectors of the terms of each group's sums: grad (q - P u), and how many elements are of the largest
// magnitude.
template <class T>
struct GradLanes {
  GroupLanes<T> sums, counts;
};

// P grad into gx, P grad h s / g into gv, and the terms of the sums.
template <class T, bool kOffset, bool kValues>
static void gradGroups(const GradPiece<T>& piece, GradLanes<T>& to) {
  using V = Vec<T>;
  using Type = typename V::Type;
  using Lanes = LaneArray<T>;
  const T *x = piece.x, *grad = piece.grad, *v = piece.v;
  T *gx = piece.gx, *gv = piece.gv;
  const Type none{}, one = none + T(1), top = none + T(kTop);
  for (int64_t j = 0; j < piece.groups; j++) {
    const Type k = none + piece.k[j], step = none + piece.step[j], most = none + piece.most[j];
    Lanes sums{}, counts{};
    for (int64_t i = 0; i < piece.group; i += Lanes::kCount) {
      AQ_UNROLL
      for (int p = 0; p < Lanes::kParts; p++) {
        const Type value = V::load(x), u = value * k, g = V::load(grad);
        const Type h = stepAt<T>(sizeOf<T>(u));
        const Type w = kOffset ? u + V::load(v) * h : u;
        const auto inside = sizeOf<T>(w) <= top;
        const Type q = nearestE2m1<T>(clamped<T>(w));
        const Type passed = inside ? g : none;
        sums.part[p] += g * (q - (inside ? u : none));
        x += V::kWidth;
        grad += V::kWidth;
        if constexpr (kValues) {
          V::store(gx, passed);
          counts.part[p] += sizeOf<T>(value) == most ? one : none;
          gx += V::kWidth;
        }
        if constexpr (kOffset) {
          V::store(gv, passed * (h * step));
          v += V::kWidth;
          gv += V::kWidth;
        }
      }
    }
    AQ_UNROLL
    for (int width = Lanes::kParts / 2; width > 0; width /= 2) {
      for (int p = 0; p < width; p++) {
        sums.part[p] += sums.part[p + width];
        counts.part[p] += counts.part[p + width];
      }
    }
    to.sums.lanes[j] = sums.part[0];
    if constexpr (kValues) to.counts.lanes[j] = counts.part[0];
  }
}

template <class T>
inline void gradGroups(const GradPiece<T>& piece, GradLanes<T>& to) {
  if (piece.v && piece.gx) return gradGroups<T, true, true>(piece, to);
  if (piece.v) return gradGroups<T, true, false>(piece, to);
  if (piece.gx) return gradGroups<T, false, true>(piece, to);
  return gradGroups<T, false, false>(piece, to);
}

// Adds `share` to the elements of the largest magnitude, with their signs.
template <class T>
inline void addAtLargest(const T* x, T most, T share, T* gx, int64_t n) {
  using V = Vec<T>;
  const typename V::Type none{};
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const typename V::Type value = V::load(x + i);
    const typename V::Type to = Lane<T>::turned(none + share, value);
    V::store(gx + i, V::load(gx + i) + (sizeOf<T>(value) == none + most ? to : none));
  }
}

// What a unit of the gradient by s' is to the clipped magnitude a.
template <class T>
inline T slopeOf(T a, T s, T g, int32_t format) {
  if (format == kMxfp4) return a > T(0) ? s / a : T(0);
  const T t = scaleBefore(a, g);
  return t >= T(kLeastScale) && t <= T(kMostScale) ? T(1) / T(kTop) : T(0);
}

// The gradients of one matrix; sums over rows and columns are kept by the caller.
template <class T>
struct Gradient {
  Source<T> source;
  Clip<T> clip;
  T g;
  int32_t format;
  int64_t group;
  const T *scale, *grad, *v;
  T *gx, *gv, *gclip;  // null where not wanted; gclip only of logits of groups

  // Of rows first .. end: adds what columns' factors get into `columnSums` (or null), gives rows'
  // factors theirs in `rowSums` (or null), and returns the sum for a shared logit, by its factor.
  double rows(int64_t first, int64_t end, T* rowSums, T* columnSums) const {
    T values[kPiece], own[kPiece], f[kMostGroups], most[kMostGroups], k[kMostGroups];
    T step[kMostGroups], slope[kMostGroups], sums[kMostGroups], counts[kMostGroups];
    GradLanes<T> lanes;
    const bool needsValues = gx || source.isScaled();
    double factorGrad = 0;
    if (source.isScaled())
      for (int64_t row = first; row < end; row++) rowSums[row] = T(0);
    source.inRows(first, end, [&](int64_t row, int64_t column, int64_t n) {
      const int64_t at = row * source.columns + column, index = at / group, groups = n / group;
      const T* const x = source.read(row, column, n, values);
      const T* const s = scale + index;
      T* const to = !needsValues ? nullptr : (source.isScaled() ? own : gx + at);
      clip.factors(index, groups, f);
      largestSizes(x, group, groups, most);
      for (int64_t j = 0; j < groups; j++) {
        k[j] = g / s[j];
        step[j] = s[j] / g;
        slope[j] = slopeOf(f[j] * most[j], s[j], g, format);
      }
      const GradPiece<T> piece{
          x,     grad + at, v ? v + at : nullptr, to, gv ? gv + at : nullptr, k, step, most,
          group, groups};
      gradGroups(piece, lanes);
      lanes.sums.fold(groups, sums, Sum{});
      for (int64_t j = 0; j < groups; j++) sums[j] *= slope[j];
      if (gclip) {
        for (int64_t j = 0; j < groups; j++)
          gclip[index + j] = sums[j] * most[j] * (f[j] * (T(1) - f[j]));
      } else if (clip.logits) {
        for (int64_t j = 0; j < groups; j++) factorGrad += double(sums[j]) * double(most[j]);
      }
      if (to) {
        lanes.counts.fold(groups, counts, Sum{});
        for (int64_t j = 0; j < groups; j++) counts[j] = sums[j] * f[j] / counts[j];
        for (int64_t j = 0; j < groups; j++)
          addAtLargest(x + j * group, most[j], counts[j], to + j * group, group);
      }
      if (!source.isScaled()) return;
      const T r = source.r ? source.r[row] : T(1);
      const T* const c = source.c ? source.c + column : nullptr;
      rowSums[row] += scaleGradRow(source.x + at, own, r, c, columnSums + column, n);
      if (gx) scaleRow(own, r, c, gx + at, n);
    });
    return factorGrad;
  }
};

template <class T>
static int32_t gradient(const aq_view* in, const aq_view* out, const aq_fp4_grad_params& p,
                        aq_error* err) {
  const Source<T> source(in[0], in[6], in[7]);
  const Clip<T> clip(in[4]);
  const bool hasLogit = clip.logits && clip.shared;
  const Gradient<T> job{source,
                        clip,
                        globalOf<T>(in[2]),
                        p.format,
                        groupOf(p.format),
                        ptr<T>(in[1]),
                        ptr<T>(in[3]),
                        ptr<T>(in[5]),
                        p.need_gx ? mut<T>(out[0]) : nullptr,
                        present(in[5]) ? mut<T>(out[2]) : nullptr,
                        clip.logits && !hasLogit ? mut<T>(out[1]) : nullptr};
  // One logit collects from all groups: a partial sum per chunk of rows, added in order.
  const int64_t step =
      source.isScaled() ? columnChunkRows(source.rows) : rowsPerTask(source.columns);
  const int64_t chunks = ceilDiv(source.rows, step);
  const Partials<double> partials(chunks);
  const Partials<T> rowSums(source.rows), columnSums(source.columns);
  if (!partials.data() || !rowSums.data() || !columnSums.data())
    return noPartials(err, "fp4_grad", (source.rows + source.columns) * int64_t(sizeof(T)));
  const auto body = [&](int64_t first, int64_t end, T* sums) {
    T* const toRows = source.r ? mut<T>(out[3]) : rowSums.data();
    partials.data()[first / step] = job.rows(first, end, toRows, sums);
  };
  if (source.isScaled()) {
    T* const toColumns = source.c ? mut<T>(out[4]) : columnSums.data();
    const int32_t code = sumColumns("fp4_grad", source.rows, source.columns, toColumns, err, body);
    if (code != AQ_OK) return code;
  } else {
    forRows(source.rows, source.columns,
            [&](int64_t first, int64_t end) { body(first, end, nullptr); });
  }
  if (hasLogit) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += partials.data()[chunk];
    *mut<T>(out[1]) = T(total * (double(clip.common) * (1.0 - double(clip.common))));
  }
  return AQ_OK;
}

}  // namespace fp4

static int32_t fp4_grad(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_fp4_grad_params*>(params);
  return visitFloat(in[0].dtype,
                    [&](auto zero) { return fp4::gradient<decltype(zero)>(in, out, p, err); });
}
