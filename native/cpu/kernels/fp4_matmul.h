// fp4_matmul.h: the product of activations with a packed matrix of 4-bit floats.
//
// For few rows of x, as decoding has them, the numbers are multiplied where they lie (fp4_rows.h). For
// many, the gemm of dense weights multiplies slabs of the matrix as numbers, in the order of the columns.
// Tokens that are quantized enter as q s, which is exact, and their 1 / g is part of the factor.

namespace fp4 {

using packed::kFewRows, packed::kSlabBytes;
using packed::kSlotRow, packed::kSlotWeights, packed::kSlotX;
using packed::kTaskBytes, packed::kTasksPerThread, packed::kTaskTileRows;

// A product: x [rows, inputs] times the matrix, in the arithmetic of T.
template <class T, class X, class Read, class Write>
struct Product {
  const aq_view* in;
  const aq_view& out;
  Packed weights;
  int64_t rows, inputs, outputs;
  T xGlobal, factor;
  bool tokens;
  Read read;    // X -> T
  Write write;  // T -> X

  // Row m of x as numbers of T.
  void readRow(int64_t m, T* y) const {
    const X* const x = ptr<X>(in[0]) + m * inputs;
    for (int64_t i = 0; i < inputs; i++) y[i] = read(x[i]);
    if (!tokens) return;
    T s[kMostGroups];
    for (int64_t i = 0; i < inputs; i += kPiece) {
      const int64_t n = std::min(kPiece, inputs - i);
      quantizePiece<T>(y + i, nullptr, nullptr, xGlobal, weights.format, true, s, y + i, n);
    }
  }

  void finish(T sum, int64_t m, int64_t o) const {
    const X* const bias = ptr<X>(in[4]);
    mut<X>(out)[m * outputs + o] = write(bias ? sum * factor + read(bias[o]) : sum * factor);
  }

  // The codes where they lie; x by half tiles, as packed_few.h has it.
  void few() const {
    const int64_t halves = ceilDiv(inputs, kHalfColumns), step = rows * kHalfColumns;
    T* const x = static_cast<T*>(
        threadScratch(kSlotX, uint64_t((rows + 1) * halves * kHalfColumns) * sizeof(T) + 1));
    T* const row = x + halves * step;
    for (int64_t m = 0; m < rows; m++) {
      readRow(m, row);
      for (int64_t i = inputs; i < halves * kHalfColumns; i++) row[i] = 0;
      for (int64_t half = 0; half < halves; half++) {
        int4::Form::sortNumbers(row + half * kHalfColumns, x + half * step + m * kHalfColumns);
      }
    }
    const int64_t tileRows = ceilDiv(outputs, kRows), tileRowBytes = weights.tiles * kBytes;
    // Several tile rows to a task, for each fetches the next.
    const int64_t perTask =
        std::max(ceilDiv(kTaskBytes, tileRowBytes * rows + 1),
                 std::min(kTaskTileRows, tileRows / (kTasksPerThread * threadCount())));
    parallelFor(ceilDiv(tileRows, perTask), [&](int64_t task) {
      T* const scales = static_cast<T*>(
          threadScratch(kSlotRow, uint64_t((4 * halves + rows) * kRows) * sizeof(T) + 1));
      T* const sums = scales + 4 * halves * kRows;
      const int64_t last = std::min(tileRows, (task + 1) * perTask);
      for (int64_t tileRow = task * perTask; tileRow < last; tileRow++) {
        const uint8_t* const codes = weights.codes + tileRow * tileRowBytes;
        readScales(weights.scales + tileRow * weights.groups * kRows, weights.groups,
                   weights.format, halves, scales);
        multiplyNumbers({codes, codes + tileRowBytes, scales, halves}, x, step, rows, sums);
        const int64_t count = std::min(kRows, outputs - tileRow * kRows);
        for (int64_t m = 0; m < rows; m++)
          for (int64_t r = 0; r < count; r++)
            finish(sums[m * kRows + gridSlot(r)], m, tileRow * kRows + r);
      }
    });
  }

  // Slabs of the matrix as numbers, for gemm.
  void many() const {
    // gemm reads x where it lies, and writes there, if no copy is needed.
    const bool isOwn = std::is_same_v<T, X>, copies = !isOwn || tokens;
    const int64_t padded = weights.tiles * kColumns;
    const int64_t rowBytes = padded * int64_t(sizeof(T)) + 1;
    const int64_t slab = std::min(outputs, std::max<int64_t>(kRows, kSlabBytes / rowBytes));
    const int64_t copied = (copies ? rows * inputs : 0) + (isOwn ? 0 : rows * slab);
    T* const memory = static_cast<T*>(
        threadScratch(kSlotWeights, uint64_t(slab * padded + copied) * sizeof(T) + 1));
    T *const own = memory + slab * padded, *const sums = own + rows * inputs;
    if (copies) parallelFor(rows, [&](int64_t m) { readRow(m, own + m * inputs); });
    const T* const x = copies ? own : ptr<T>(in[0]);
    for (int64_t first = 0; first < outputs; first += slab) {
      const int64_t count = std::min(slab, outputs - first);
      parallelFor(count, [&](int64_t i) {
        auto* const bytes = static_cast<uint8_t*>(threadScratch(kSlotRow, uint64_t(padded) + 1));
        weights.row(first + i, bytes, memory + i * padded);
      });
      T* const to = isOwn ? mut<T>(out) + first : sums;
      const int64_t ld = isOwn ? outputs : count;
      gemm<T>(rows, count, inputs, Operand<T>(x, inputs, false), Operand<T>(memory, padded, false),
              to, ld);
      parallelFor(rows, [&](int64_t m) {
        for (int64_t i = 0; i < count; i++) finish(to[m * ld + i], m, first + i);
      });
    }
  }
};

template <class T, class X, class Read, class Write>
static void multiply(const aq_view* in, const aq_view& out, const aq_fp4_matmul_params& p,
                     const Read& read, const Write& write) {
  const int64_t rows = rowCount(in[0]), inputs = lastDim(in[0]), outputs = p.outputs;
  if (rows == 0 || outputs == 0) return;
  const Packed weights{ptr<uint8_t>(in[1]), ptr<uint8_t>(in[2]), ceilDiv(inputs, kColumns),
                       inputs / groupOf(p.format), p.format};
  const bool tokens = p.tokens != 0;
  const T xGlobal = globalOf<T>(in[5]);
  const T given = present(in[3]) ? *ptr<T>(in[3]) : T(1);
  const T factor = tokens ? given * (T(1) / xGlobal) : given;
  const Product<T, X, Read, Write> product{in,      out,    weights, rows, inputs, outputs,
                                           xGlobal, factor, tokens,  read, write};
  if constexpr (std::is_same_v<T, float>) {
    if (rows <= kFewRows) return product.few();
  }
  product.many();
}

}  // namespace fp4

static int32_t fp4_matmul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_fp4_matmul_params*>(params);
  return withScratch("fp4_matmul", err, [&]() -> int32_t {
    const auto same = [](auto value) { return value; };
    const auto widen = [](auto value) { return toFloat(value); };
    switch (in[0].dtype) {
      case AQ_F64:
        fp4::multiply<double, double>(in, out[0], p, same, same);
        break;
      case AQ_F32:
        fp4::multiply<float, float>(in, out[0], p, same, same);
        break;
      case AQ_BF16:
        fp4::multiply<float, Bfloat>(in, out[0], p, widen, [](float v) { return toBfloat(v); });
        break;
      default:
        fp4::multiply<float, Half>(in, out[0], p, widen, [](float v) { return toHalf(v); });
    }
    return AQ_OK;
  });
}
