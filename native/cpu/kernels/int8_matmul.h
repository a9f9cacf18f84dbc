// int8_matmul.h: the product of activations with a packed matrix of codes of at most 8 bits: which
// inner loop runs for so many rows of x, and what packed_product.h asks for.

namespace int8 {

// How many lines and rows of x meet in registers.
#if defined(AQ_LEVEL_AVX512) || defined(AQ_LEVEL_NEON)
inline constexpr int kMostRows = 4, kLines = 4;
#else
inline constexpr int kMostRows = 4, kLines = 2;
#endif

// Calls kernel(integral constant of how many, first) for runs of at most kMostRows rows.
template <class Kernel>
static void inRuns(int64_t rows, const Kernel& kernel) {
  for (int64_t m = 0; m < rows;) {
    const int64_t count = ceilDiv(rows - m, ceilDiv(rows - m, kMostRows));
    if (count == 1) kernel(std::integral_constant<int, 1>{}, m);
    if (count == 2) kernel(std::integral_constant<int, 2>{}, m);
    if (count == 3) kernel(std::integral_constant<int, 3>{}, m);
    if (count == 4) kernel(std::integral_constant<int, 4>{}, m);
    m += count;
  }
}

template <bool kShort>
static void numberRows(const TileRow& tile, const float* x, int64_t step, int64_t rows,
                       float* sums) {
  inRuns(rows, [&](auto count, int64_t m) {
    for (int line = 0; line < kRows; line += kLines)
      numberLines<kShort, kLines, count()>(tile, line, x + m * kStepColumns, step,
                                           sums + m * kRows);
  });
}

template <class Dot, Groups kGroups>
static void codeRows(const TileRow& tile, const CodedRows& x, int64_t rows, float* sums) {
  inRuns(rows, [&](auto count, int64_t m) {
    const CodedRows part = {x.codes + m * kStepColumns, x.step, x.zero + m, x.sums + m * 16};
    for (int line = 0; line < kRows; line += kLines)
      codeLines<Dot, kGroups, kLines, count()>(tile, line, part, rows, sums + m * kRows);
  });
}

template <class Dot>
static void codeGroups(const TileRow& tile, const CodedRows& x, int64_t rows, float* sums) {
  if (tile.groups == 1) return codeRows<Dot, Groups::kOne>(tile, x, rows, sums);
  if (tile.perGroup) return codeRows<Dot, Groups::kLong>(tile, x, rows, sums);
  codeRows<Dot, Groups::kShort>(tile, x, rows, sums);
}

// The order for packed_few.h and packed_product.h.
struct Form {
  static constexpr int64_t kColumns = int8::kColumns;
  static int64_t columnAt(int64_t b) { return b; }
  static int64_t gridSlot(int64_t r) { return r; }
  static uint8_t byteOf(int32_t code) { return uint8_t(code - 128); }
  static void sortNumbers(const float* x, float* to) {
    std::memcpy(to, x, kStepColumns * sizeof(float));
  }
  static void sumCodes(const CodedRows& x, int64_t rows, int64_t steps, int64_t perGroup,
                       int32_t* sums) {
    int8::sumCodes(x, rows, steps, perGroup, sums);
  }
  static void multiplyNumbers(const TileRow& tile, const float* x, int64_t step, int64_t rows,
                              float* sums) {
    if (tile.perGroup)
      numberRows<false>(tile, x, step, rows, sums);
    else
      numberRows<true>(tile, x, step, rows, sums);
  }
  static void multiplyCodes(const TileRow& tile, const CodedRows& x, int64_t rows, float* sums) {
    static const bool isFast = FastDot::exists();
    if (isFast)
      codeGroups<FastDot>(tile, x, rows, sums);
    else
      codeGroups<PlainDot>(tile, x, rows, sums);
  }
  template <class T>
  static void readRow(const Codes& w, int64_t r, uint8_t*, T* y) {
    int8::readRow(w, r, y);
  }
};

}  // namespace int8

static int32_t int8_matmul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_int8_matmul_params*>(params);
  return packed::multiply<int8::Form>("int8_matmul", in, out[0], p, err);
}
