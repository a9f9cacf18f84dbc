// int4_layout.h: the packed form of codes of at most 4 bits: making it (int4_pack) and reading it back
// as numbers. The order is the GPU's; see params.h. A row's 64 codes of half a tile lie together, two
// rows to a byte, in a fixed order of columns.

namespace int4 {

inline constexpr int64_t kRows = 16, kColumns = 128, kBytes = 1024;  // of a tile
inline constexpr int64_t kHalfColumns = 64, kHalfBytes = 512;        // of half a tile
inline constexpr int64_t kTop = 15;
inline constexpr int kSlotX = 2, kSlotWeights = 3, kSlotRow = 4;  // threadScratch; gemm has 0 and 1

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

  // Row r in the order of the columns; numbers behind the last of these have no meaning. `bytes`
  // has room for the row's codes: sorted there first, they are read back long after they were stored.
  void row(int64_t r, uint8_t* __restrict bytes, T* __restrict y) const {
    const int64_t inTile = r % kRows, shift = inTile / 8 * 4, tileRow = r / kRows;
    const uint8_t* from = codes + tileRow * tiles * kBytes + inTile % 8 * 64;
    for (int64_t half = 0; half < 2 * tiles; half++, from += kHalfBytes) {
      uint8_t* const to = bytes + half * kHalfColumns;
      for (int64_t k = 0; k < 4; k++)
        for (int64_t t = 0; t < 4; t++) std::memcpy(to + 16 * k + 4 * t, from + 16 * t + 4 * k, 4);
    }
    for (int64_t g = 0, column = 0; g < groups; g++) {
      const int64_t slot = (tileRow * groups + g) * kRows + gridSlot(inTile);
      const T s = T(toFloat(scale[slot])), z = T(zero[slot]);
      const int64_t end = g + 1 < groups ? (g + 1) * group : tiles * kColumns;
      for (; column < end; column += 16) {
        uint16_t pair[8];  // a byte of the first eight columns and one of the second eight
        std::memcpy(pair, bytes + column, 16);
        for (int64_t j = 0; j < 8; j++)
          y[column + j] = (T(int32_t(pair[j] >> shift & kTop)) - z) * s;
        for (int64_t j = 0; j < 8; j++)
          y[column + 8 + j] = (T(int32_t(pair[j] >> (shift + 8) & kTop)) - z) * s;
      }
    }
  }
};

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
