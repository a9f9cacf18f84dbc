// packed_product.h: the product of activations with a packed matrix, in the Form that it has.
//
// For few rows of x, as decoding has them, the codes are multiplied where they lie (packed_few.h). For
// many the product multiplies numbers in the order of the columns by the gemm of dense weights, so
// that a packed model computes what its dequantized weights give, bit for bit: with quantized
// activations anything else drifts apart, since a rounding that falls the other way is a whole step
// in the next block.

namespace packed {

inline constexpr int64_t kFewRows = 16;          // up to here gemm's preparations cost more
inline constexpr int64_t kMostInputs = 1 << 19;  // of few rows: their sums of codes fit 32 bits
inline constexpr int64_t kSlabBytes = 16 << 20;  // of weights as numbers, at a time

// A product: x [rows, inputs] through the grids of its rows, if it has any, times the matrix.
template <class Form, class T, class X, class Read, class Write>
struct Product {
  const aq_view* in;
  const aq_view& out;
  int32_t xBits;
  int64_t rows, inputs, outputs, padded;  // padded: inputs, up to whole tiles
  Codes weights;
  Read read;    // X -> T
  Write write;  // T -> X

  T topCode() const { return T((int64_t(1) << xBits) - 1); }

  // Row m of x as numbers of T.
  void readRow(int64_t m, T* y) const {
    const X* const x = ptr<X>(in[0]) + m * inputs;
    for (int64_t i = 0; i < inputs; i++) y[i] = read(x[i]);
    if (!present(in[5])) return;
    const T s = ptr<T>(in[5])[m], z = ptr<T>(in[6])[m], top = topCode();
    for (int64_t i = 0; i < inputs; i++) y[i] = (codeOf(y[i] / s, z, top) - z) * s;
  }

  void finish(T sum, int64_t m, int64_t o) const {
    const X* const bias = ptr<X>(in[4]);
    mut<X>(out)[m * outputs + o] = write(bias ? sum + read(bias[o]) : sum);
  }

  // The codes where they lie.
  void few() const {
    const T *const scale = ptr<T>(in[5]), *const zero = ptr<T>(in[6]);
    const FewRows<Form> job{weights, rows, inputs, outputs, scale, zero, topCode()};
    const X* const x = ptr<X>(in[0]);
    job.run(
        [&](int64_t m, T* y) {
          for (int64_t i = 0; i < inputs; i++) y[i] = read(x[m * inputs + i]);
        },
        [&](T sum, int64_t m, int64_t o) { finish(sum, m, o); });
  }

  // Slabs of the matrix as numbers, for gemm.
  void many() const {
    constexpr bool isOwn = std::is_same_v<T, X>;  // else gemm reads and writes copies of type T
    const int64_t rowBytes = padded * int64_t(sizeof(T)) + 1;
    const int64_t slab = std::min(outputs, std::max<int64_t>(kRows, kSlabBytes / rowBytes));
    const int64_t copied = isOwn ? 0 : rows * (inputs + slab);
    T* const memory = static_cast<T*>(
        threadScratch(kSlotWeights, uint64_t(slab * padded + copied) * sizeof(T) + 1));
    T *const x = memory + slab * padded, *const sums = x + rows * inputs;
    if (!isOwn) parallelFor(rows, [&](int64_t m) { readRow(m, x + m * inputs); });
    for (int64_t first = 0; first < outputs; first += slab) {
      const int64_t count = std::min(slab, outputs - first);
      parallelFor(count, [&](int64_t i) {
        auto* const bytes = static_cast<uint8_t*>(threadScratch(kSlotRow, uint64_t(padded) + 1));
        Form::readRow(weights, first + i, bytes, memory + i * padded);
      });
      const Operand<T> w(memory, padded, false);
      if constexpr (isOwn) {
        const Operand<T> given = gridOperand<T>(in[0], false, in[5], in[6], xBits, 0);
        const T* const bias = ptr<T>(in[4]);
        gemm<T>(rows, count, inputs, given, w, mut<T>(out) + first, outputs, false,
                bias ? bias + first : nullptr);
      } else {
        gemm<T>(rows, count, inputs, Operand<T>(x, inputs, false), w, sums, count);
        parallelFor(rows, [&](int64_t m) {
          for (int64_t i = 0; i < count; i++) finish(sums[m * count + i], m, first + i);
        });
      }
    }
  }
};

// P: aq_int4_matmul_params or its like.
template <class Form, class T, class X, class P, class Read, class Write>
static void multiplyAs(const aq_view* in, const aq_view& out, const P& p, const Read& read,
                       const Write& write) {
  const int64_t rows = rowCount(in[0]), inputs = lastDim(in[0]), outputs = p.outputs;
  if (rows == 0 || outputs == 0) return;
  const int64_t tiles = ceilDiv(inputs, Form::kColumns), padded = tiles * Form::kColumns;
  const int64_t group = p.group ? p.group : std::max<int64_t>(padded, 1);
  const int64_t groups = p.group ? ceilDiv(inputs, group) : 1;
  const Codes weights{
      ptr<uint8_t>(in[1]), ptr<Half>(in[2]), ptr<uint8_t>(in[3]), tiles, groups, group};
  const Product<Form, T, X, Read, Write> product{in,      out,    p.x_bits, rows, inputs,
                                                 outputs, padded, weights,  read, write};
  if constexpr (std::is_same_v<T, float>) {
    if (rows <= kFewRows && inputs <= kMostInputs) return product.few();
  }
  product.many();
}

// The op, with x in whatever type it is.
template <class Form, class P>
static int32_t multiply(const char* op, const aq_view* in, const aq_view& out, const P& p,
                        aq_error* err) {
  return withScratch(op, err, [&]() -> int32_t {
    const auto same = [](auto value) { return value; };
    const auto widen = [](auto value) { return toFloat(value); };
    switch (in[0].dtype) {
      case AQ_F64:
        multiplyAs<Form, double, double>(in, out, p, same, same);
        break;
      case AQ_F32:
        multiplyAs<Form, float, float>(in, out, p, same, same);
        break;
      case AQ_BF16:
        multiplyAs<Form, float, Bfloat>(in, out, p, widen, [](float v) { return toBfloat(v); });
        break;
      default:
        multiplyAs<Form, float, Half>(in, out, p, widen, [](float v) { return toHalf(v); });
    }
    return AQ_OK;
  });
}

}  // namespace packed
