// int4_layout.h: the packed form of codes of at most 4 bits: making it (int4_pack) and reading it back
// as numbers. The order is the GPU's; see params.h. A row's 64 codes of half a tile lie together, two
// rows to a byte, in a fixed order of columns.

namespace int4 {

using namespace packed;
inline constexpr int64_t kColumns = 128;                       // of a tile
inline constexpr int64_t kHalfColumns = 64, kHalfBytes = 512;  // of half a tile: a step
inline constexpr int64_t kTop = 15;

// Column within half a tile whose code lies at byte b of its row's 64.
inline int64_t columnAt(int64_t b) {
  const int64_t t = b / 16, k = b / 4 % 4, i = b % 4;
  return 16 * k + 2 * t + i / 2 + i % 2 * 8;
}

// Place of row r (0..15) of a tile among its 16 scales or zeros.
inline int64_t gridSlot(int64_t r) { return r % 8 * 2 + r / 8; }

// The codes of a row of tiles in their order.
inline void packTileRow(const uint8_t* codes, int64_t outputs, int64_t inputs, int64_t tileRow,
                        uint8_t* to) {
  typedef uint8_t Run __attribute__((vector_size(16)));
  const int64_t halves = 2 * ceilDiv(inputs, kColumns);
  // A row's codes of a half tile; zeros beyond the matrix.
  const auto readCodes = [&](int64_t r, int64_t half, uint8_t* __restrict y) {
    const int64_t first = half * kHalfColumns, left = r < outputs ? inputs - first : 0;
    const int64_t count = std::min(std::max<int64_t>(left, 0), kHalfColumns);
    const uint8_t* const from = codes + r * inputs + first;
    if (count < kHalfColumns) std::memset(y, 0, kHalfColumns);
    for (int64_t i = 0; i < count; i++) y[i] = from[i] < kTop ? from[i] : uint8_t(kTop);
  };
  for (int64_t half = 0; half < halves; half++) {
    for (int64_t r = 0; r < 8; r++, to += kHalfColumns) {
      uint8_t low[kHalfColumns], high[kHalfColumns];
      readCodes(tileRow * kRows + r, half, low);
      readCodes(tileRow * kRows + r + 8, half, high);
      // Of 16 columns, each of the first eight is followed by the eighth after it: columnAt.
      for (int64_t k = 0; k < 4; k++) {
        const Run pairs = loadVector<Run>(low + 16 * k) | loadVector<Run>(high + 16 * k) << 4;
        const Run sorted = __builtin_shufflevector(pairs, pairs, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5,
                                                   13, 6, 14, 7, 15);
        uint8_t bytes[16];
        std::memcpy(bytes, &sorted, 16);
        for (int64_t t = 0; t < 4; t++) std::memcpy(to + 16 * t + 4 * k, bytes + 4 * t, 4);
      }
    }
  }
}

template <class T>
static void pack(const aq_view* in, const aq_view* out, int32_t groupParam) {
  const int64_t outputs = rowCount(in[0]), inputs = lastDim(in[0]);
  const int64_t tiles = ceilDiv(inputs, kColumns);
  const int64_t groups = groupParam ? ceilDiv(inputs, groupParam) : 1;
  const T *const scale = ptr<T>(in[1]), *const zero = ptr<T>(in[2]);
  parallelFor(ceilDiv(outputs, kRows), [&](int64_t tileRow) {
    packTileRow(ptr<uint8_t>(in[0]), outputs, inputs, tileRow,
                mut<uint8_t>(out[0]) + tileRow * tiles * kBytes);
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

// A row's bytes of each of some half tiles, the first at `from`, so that those of 16 columns lie together:
// byte 2 j of them has the code of column j, byte 2 j + 1 that of column j + 8.
inline void sortBytes(const uint8_t* from, int64_t halves, uint8_t* __restrict bytes) {
  for (int64_t half = 0; half < halves; half++, from += kHalfBytes) {
    uint8_t* const to = bytes + half * kHalfColumns;
    for (int64_t k = 0; k < 4; k++)
      for (int64_t t = 0; t < 4; t++) std::memcpy(to + 16 * k + 4 * t, from + 16 * t + 4 * k, 4);
  }
}

// Row r in the order of the columns; numbers behind the last of these have no meaning. `bytes`
// has room for the row's codes: sorted there first, they are read back long after they were stored.
template <class T>
static void readRow(const Codes& w, int64_t r, uint8_t* __restrict bytes, T* __restrict y) {
  const int64_t inTile = r % kRows, shift = inTile / 8 * 4, tileRow = r / kRows;
  sortBytes(w.codes + tileRow * w.tiles * kBytes + inTile % 8 * 64, 2 * w.tiles, bytes);
  for (int64_t g = 0, column = 0; g < w.groups; g++) {
    const int64_t slot = (tileRow * w.groups + g) * kRows + gridSlot(inTile);
    const T s = T(toFloat(w.scale[slot])), z = T(w.zero[slot]);
    const int64_t end = g + 1 < w.groups ? (g + 1) * w.group : w.tiles * kColumns;
    for (; column < end; column += 16) {
      uint16_t pair[8];  // a byte of the first eight columns and one of the second eight
      std::memcpy(pair, bytes + column, 16);
      for (int64_t j = 0; j < 8; j++) y[column + j] = (T(int32_t(pair[j] >> shift & kTop)) - z) * s;
      for (int64_t j = 0; j < 8; j++)
        y[column + 8 + j] = (T(int32_t(pair[j] >> (shift + 8) & kTop)) - z) * s;
    }
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
