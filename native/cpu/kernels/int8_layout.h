// int8_layout.h: the packed form of codes of at most 8 bits: making it (int8_pack) and reading it back
// as numbers. See params.h: a tile's 16 lines are its rows, in the order of the columns.

namespace int8 {

using namespace packed;
inline constexpr int64_t kColumns = 64;  // of a tile: a step
inline constexpr int64_t kTop = 255;

template <class T>
static void pack(const aq_view* in, const aq_view* out, int32_t groupParam) {
  const int64_t outputs = rowCount(in[0]), inputs = lastDim(in[0]);
  const int64_t tiles = ceilDiv(inputs, kColumns);
  const int64_t groups = groupParam ? ceilDiv(inputs, groupParam) : 1;
  const uint8_t* const codes = ptr<uint8_t>(in[0]);
  const T *const scale = ptr<T>(in[1]), *const zero = ptr<T>(in[2]);
  parallelFor(ceilDiv(outputs, kRows), [&](int64_t tileRow) {
    uint8_t* const to = mut<uint8_t>(out[0]) + tileRow * tiles * kBytes;
    std::memset(to, 0, size_t(tiles * kBytes));
    for (int64_t r = 0; r < kRows; r++) {
      const int64_t row = tileRow * kRows + r;
      const bool isRow = row < outputs;
      for (int64_t t = 0; t < tiles && isRow; t++) {
        const int64_t column = t * kColumns;
        std::memcpy(to + t * kBytes + r * kColumns, codes + row * inputs + column,
                    size_t(std::min(kColumns, inputs - column)));
      }
      for (int64_t g = 0; g < groups; g++) {
        const int64_t slot = (tileRow * groups + g) * kRows + r;
        const T z = isRow ? roundEven(zero[row * groups + g]) : T(0);
        mut<Half>(out[1])[slot] = toHalf(isRow ? float(scale[row * groups + g]) : 0.0f);
        mut<uint8_t>(out[2])[slot] = uint8_t(z > T(0) ? (z < T(kTop) ? z : T(kTop)) : T(0));
      }
    }
  });
}

// Row r of the packed matrix in the order of the columns; numbers behind the last of these have no
// meaning.
template <class T>
static void readRow(const Codes& w, int64_t r, T* __restrict y) {
  const int64_t tileRow = r / kRows, inTile = r % kRows;
  const uint8_t* const from = w.codes + tileRow * w.tiles * kBytes + inTile * kColumns;
  for (int64_t g = 0, column = 0; g < w.groups; g++) {
    const int64_t slot = (tileRow * w.groups + g) * kRows + inTile;
    const T s = T(toFloat(w.scale[slot])), z = T(w.zero[slot]);
    const int64_t end = g + 1 < w.groups ? (g + 1) * w.group : w.tiles * kColumns;
    for (; column < end; column += 32) {
      const uint8_t* const codes = from + column / kColumns * kBytes + column % kColumns;
      for (int64_t i = 0; i < 32; i++) y[column + i] = (T(int32_t(codes[i])) - z) * s;
    }
  }
}

}  // namespace int8

static int32_t int8_pack(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error*) {
  const auto& p = *static_cast<const aq_int8_pack_params*>(params);
  if (in[1].dtype == AQ_F64)
    int8::pack<double>(in, out, p.group);
  else
    int8::pack<float>(in, out, p.group);
  return AQ_OK;
}
