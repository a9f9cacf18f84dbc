// fp4_pack.h: the packed form of a matrix of 4-bit floats: making it (fp4_pack) and reading it back as
// numbers. Codes lie as int4_layout.h has them, scales as bytes in the order of its scales.

namespace fp4 {

using int4::gridSlot, int4::kColumns, int4::kHalfBytes, int4::kHalfColumns;
using packed::kBytes, packed::kRows;

// The byte of a scale: e4m3fn, or the power of two's exponent + 127.
template <class T>
inline uint8_t scaleByte(T s, int32_t format) {
  if (format == kMxfp4) {
    if (s != s) return 255;
    const int32_t exponent = std::ilogb(s) + 127;
    return uint8_t(s > T(0) ? std::min(std::max(exponent, 0), 254) : 0);
  }
  if (s != s) return 0x7f;
  if (!(s > T(0))) return 0;
  // Rounded, s has 4 bits: the bias of e4m3fn is 7, and below 2^-6 it counts steps of 2^-9.
  const float rounded = float(nearestE4m3(s));
  if (rounded < 0x1p-6f) return uint8_t(int32_t(rounded * 512));
  return uint8_t((__builtin_bit_cast(uint32_t, rounded) >> 20) - ((127 - 7) << 3));
}

// Half the number of a scale's byte. (The codes' numbers are twice theirs.)
inline float halfScale(uint8_t byte, bool isPower) {
  const uint32_t nan = 0x7fc00000u, bits = byte;
  if (isPower) {
    // Halved, the two smallest powers are not normal numbers.
    const uint32_t half = bits > 1 ? (bits - 1) << 23 : 0x200000u << (bits & 1);
    return __builtin_bit_cast(float, bits == 255 ? nan : half);
  }
  const float half = __builtin_bit_cast(float, bits << 20) * 0x1p119f;
  return bits == 0x7f ? __builtin_bit_cast(float, nan) : half;
}

template <class T>
static void pack(const aq_view* in, const aq_view* out, int32_t format) {
  const int64_t outputs = rowCount(in[0]), inputs = lastDim(in[0]);
  const int64_t tiles = ceilDiv(inputs, kColumns), groups = inputs / groupOf(format);
  const T* const scale = ptr<T>(in[1]);
  parallelFor(ceilDiv(outputs, kRows), [&](int64_t tileRow) {
    int4::packTileRow(ptr<uint8_t>(in[0]), outputs, inputs, tileRow,
                      mut<uint8_t>(out[0]) + tileRow * tiles * kBytes);
    uint8_t* const to = mut<uint8_t>(out[1]) + tileRow * groups * kRows;
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t r = 0; r < kRows; r++) {
        const int64_t row = tileRow * kRows + r;
        to[g * kRows + gridSlot(r)] =
            row < outputs ? scaleByte(scale[row * groups + g], format) : uint8_t(0);
      }
    }
  });
}

// The packed matrix.
struct Packed {
  const uint8_t *codes, *scales;
  int64_t tiles, groups;  // of a row
  int32_t format;

  // Row r in the order of the columns; `bytes` has room for a byte of each.
  template <class T>
  void row(int64_t r, uint8_t* bytes, T* y) const {
    typedef uint8_t Run __attribute__((vector_size(16)));
    typedef uint16_t Pairs __attribute__((vector_size(16)));
    const int64_t inTile = r % kRows, tileRow = r / kRows, group = groupOf(format);
    const int shift = int(inTile / 8 * 4);
    const int64_t columns = groups * group;
    int4::sortBytes(codes + tileRow * tiles * kBytes + inTile % 8 * 64, 2 * tiles, bytes);
    for (int64_t column = 0; column < columns; column += 16) {
      const Run codes = (Run)(packed::loadVector<Pairs>(bytes + column) >> shift & 0x0f0f);
      const Run sorted = __builtin_shufflevector(codes, codes, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5,
                                                 7, 9, 11, 13, 15);
      std::memcpy(bytes + column, &sorted, 16);
    }
    decode(bytes, y, columns);
    const uint8_t* const scale = scales + tileRow * groups * kRows + gridSlot(inTile);
    for (int64_t column = 0; column < columns; column += 16) {
      const T s = T(2) * T(halfScale(scale[column / group * kRows], format == kMxfp4));
      for (int64_t i = column; i < column + 16; i++) y[i] *= s;
    }
  }
};

}  // namespace fp4

static int32_t fp4_pack(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error*) {
  const int32_t format = static_cast<const aq_fp4_pack_params*>(params)->format;
  return visitFloat(in[1].dtype, [&](auto zero) {
    fp4::pack<decltype(zero)>(in, out, format);
    return int32_t(AQ_OK);
  });
}
