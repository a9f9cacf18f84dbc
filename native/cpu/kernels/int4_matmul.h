// int4_matmul.h: packing of codes of at most 4 bits (int4_pack), and the product of activations with
// such a matrix (int4_matmul). The packed order is the GPU's; see params.h.
//
// A row's 64 codes of half a tile lie together, two rows to a byte, in a fixed order of columns. So
// instead of sorting weights, which are many, the product sorts the columns of x, once, and turns the
// codes into numbers in the order in which they lie.

namespace int4 {

inline constexpr int64_t kRows = 16, kColumns = 128, kBytes = 1024;  // of a tile
inline constexpr int64_t kHalfColumns = 64, kHalfBytes = 512;        // of half a tile
inline constexpr int64_t kTop = 15;
inline constexpr int kSlotX = 2, kSlotWeights = 3, kSlotRow = 4;  // threadScratch; gemm has 0 and 1
inline constexpr int64_t kFewRows = 4;           // up to here dot products beat packing for gemm
inline constexpr int64_t kSlabBytes = 16 << 20;  // of weights as numbers, at a time

// Column within half a tile whose code lies at byte b of its row's 64.
inline int64_t columnAt(int64_t b) {
  const int64_t t = b / 16, k = b / 4 % 4, i = b % 4;
  return 16 * k + 2 * t + i / 2 + i % 2 * 8;
}

// Place of row r (0..15) of a tile among its 16 scales or zeros.
inline int64_t gridSlot(int64_t r) { return r % 8 * 2 + r / 8; }

template <class T>
static void pack(const aq_view* in, const aq_view* out, int32_t groupParam) {
  const int64_t outputs = rowCount(in[0]), inputs = lastDim(in[0]);
  const int64_t tiles = ceilDiv(inputs, kColumns);
  const int64_t groups = groupParam ? ceilDiv(inputs, groupParam) : 1;
  const uint8_t* const codes = ptr<uint8_t>(in[0]);
  const T *const scale = ptr<T>(in[1]), *const zero = ptr<T>(in[2]);
  parallelFor(ceilDiv(outputs, kRows), [&](int64_t tileRow) {
    uint8_t* const to = mut<uint8_t>(out[0]) + tileRow * tiles * kBytes;
    const auto codeAt = [&](int64_t r, int64_t column) -> int32_t {
      if (r >= outputs || column >= inputs) return 0;
      const int32_t code = codes[r * inputs + column];
      return code < kTop ? code : int32_t(kTop);
    };
    for (int64_t half = 0; half < 2 * tiles; half++) {
      for (int64_t byte = 0; byte < kHalfBytes; byte++) {
        const int64_t r = tileRow * kRows + byte / 64;
        const int64_t column = half * kHalfColumns + columnAt(byte % 64);
        to[half * kHalfBytes + byte] = uint8_t(codeAt(r, column) | codeAt(r + 8, column) << 4);
      }
    }
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t r = 0; r < kRows; r++) {
        const int64_t row = tileRow * kRows + r, slot = (tileRow * groups + g) * kRows;
        const T z = row < outputs ? roundEven(zero[row * groups + g]) : T(0);
        mut<Half>(out[1])[slot + gridSlot(r)] =
            toHalf(row < outputs ? float(scale[row * groups + g]) : 0.0f);
        mut<uint8_t>(out[2])[slot + gridSlot(r)] =
            uint8_t(z > T(0) ? (z < T(kTop) ? z : T(kTop)) : T(0));
      }
    }
  });
}

// The packed matrix, as numbers of T on request.
template <class T>
struct Weights {
  const uint8_t* codes;
  const Half* scale;
  const uint8_t* zero;
  int64_t tiles, groups, group;  // tiles and groups of a row; columns of a group

  // Row r, tiles * kColumns numbers in the packed order of columns.
  void row(int64_t r, T* __restrict y) const {
    const int64_t inTile = r % kRows, shift = inTile / 8 * 4, tileRow = r / kRows;
    const uint8_t* from = codes + tileRow * tiles * kBytes + inTile % 8 * 64;
    for (int64_t half = 0; half < 2 * tiles; half++, from += kHalfBytes, y += kHalfColumns) {
      T s[2], z[2];  // of the half's first and second 32 columns
      for (int64_t h = 0; h < 2; h++) {
        const int64_t g = (half * kHalfColumns + h * 32) / group;
        const int64_t slot =
            (tileRow * groups + (g < groups ? g : groups - 1)) * kRows + gridSlot(inTile);
        s[h] = T(toFloat(scale[slot]));
        z[h] = T(zero[slot]);
      }
      for (int64_t b = 0; b < kHalfColumns; b += 16)
        for (int64_t h = 0; h < 2; h++)
          for (int64_t i = b + 8 * h; i < b + 8 * h + 8; i++)
            y[i] = (T(int32_t(from[i] >> shift & kTop)) - z[h]) * s[h];
    }
  }
};

// Row m of x as numbers of T: through its grid, if there is one, and in the packed order of columns,
// with zeros up to whole tiles.
template <class T, class X, class Read>
static void sortRow(const X* x, int64_t inputs, const T* scale, const T* zero, T top, int64_t m,
                    const Read& read, T* y, int64_t padded) {
  for (int64_t half = 0; half < padded; half += kHalfColumns) {
    for (int64_t b = 0; b < kHalfColumns; b++) {
      const int64_t column = half + columnAt(b);
      T value = column < inputs ? read(x[m * inputs + column]) : T(0);
      if (scale && column < inputs)
        value = (codeOf(value / scale[m], zero[m], top) - zero[m]) * scale[m];
      y[half + b] = value;
    }
  }
}

template <class T, class X, class Read, class Write>
static void multiply(const aq_view* in, const aq_view& out, const aq_int4_matmul_params& p,
                     const Read& read, const Write& write) {
  const int64_t rows = rowCount(in[0]), inputs = lastDim(in[0]), outputs = p.outputs;
  const int64_t tiles = ceilDiv(inputs, kColumns), padded = tiles * kColumns;
  if (rows == 0 || outputs == 0) return;
  const int64_t group = p.group ? p.group : (padded ? padded : 1);
  const int64_t groups = p.group ? ceilDiv(inputs, group) : 1;
  const Weights<T> weights{
      ptr<uint8_t>(in[1]), ptr<Half>(in[2]), ptr<uint8_t>(in[3]), tiles, groups, group};
  const X* const bias = ptr<X>(in[4]);
  const T *const scale = ptr<T>(in[5]), *const zero = ptr<T>(in[6]);
  const T top = T((int64_t(1) << p.x_bits) - 1);

  T* const x = static_cast<T*>(threadScratch(kSlotX, uint64_t(rows * padded) * sizeof(T) + 1));
  parallelFor(rows, [&](int64_t m) {
    sortRow(ptr<X>(in[0]), inputs, scale, zero, top, m, read, x + m * padded, padded);
  });
  const auto finish = [&](T sum, int64_t m, int64_t o) {
    mut<X>(out)[m * outputs + o] = write(bias ? sum + read(bias[o]) : sum);
  };

  if (rows <= kFewRows) {
    parallelFor(ceilDiv(outputs, kRows), [&](int64_t tileRow) {
      T* const w = static_cast<T*>(threadScratch(kSlotRow, uint64_t(padded) * sizeof(T) + 1));
      const int64_t end = std::min(outputs, (tileRow + 1) * kRows);
      for (int64_t o = tileRow * kRows; o < end; o++) {
        weights.row(o, w);
        for (int64_t m = 0; m < rows; m++) finish(dotOf(x + m * padded, w, padded), m, o);
      }
    });
    return;
  }
  const int64_t rowBytes = padded * int64_t(sizeof(T)) + 1;
  const int64_t slab = std::min(outputs, std::max<int64_t>(kRows, kSlabBytes / rowBytes));
  T* const memory = static_cast<T*>(
      threadScratch(kSlotWeights, uint64_t(slab * (padded + rows)) * sizeof(T) + 1));
  T* const sums = memory + slab * padded;
  for (int64_t first = 0; first < outputs; first += slab) {
    const int64_t count = std::min(slab, outputs - first);
    parallelFor(count, [&](int64_t i) { weights.row(first + i, memory + i * padded); });
    gemm<T>(rows, count, padded, Operand<T>(x, padded, false), Operand<T>(memory, padded, false),
            sums, count);
    parallelFor(rows, [&](int64_t m) {
      for (int64_t i = 0; i < count; i++) finish(sums[m * count + i], m, first + i);
    });
  }
}

}  // namespace int4

static int32_t int4_pack(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error*) {
  const auto& p = *static_cast<const aq_int4_pack_params*>(params);
  if (in[1].dtype == AQ_F64)
    int4::pack<double>(in, out, p.group);
  else
    int4::pack<float>(in, out, p.group);
  return AQ_OK;
}

static int32_t int4_matmul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_int4_matmul_params*>(params);
  return withScratch("int4_matmul", err, [&]() -> int32_t {
    const auto same = [](auto value) { return value; };
    const auto widen = [](auto value) { return toFloat(value); };
    switch (in[0].dtype) {
      case AQ_F64:
        int4::multiply<double, double>(in, out[0], p, same, same);
        break;
      case AQ_F32:
        int4::multiply<float, float>(in, out[0], p, same, same);
        break;
      case AQ_BF16:
        int4::multiply<float, Bfloat>(in, out[0], p, widen, [](float v) { return toBfloat(v); });
        break;
      default:
        int4::multiply<float, Half>(in, out[0], p, widen, [](float v) { return toHalf(v); });
    }
    return AQ_OK;
  });
}
