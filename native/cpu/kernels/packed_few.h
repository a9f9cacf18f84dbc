// packed_few.h: the product of few rows of x in f32 with a packed matrix, around its inner loops: x in
// the order of the matrix, scales as numbers, tasks.
//
// A Form (int4_matmul.h, int8_matmul.h) is a packed order with its inner loops.

namespace packed {

inline constexpr int64_t kTaskBytes = 64 << 10;  // of codes times rows of x, at least, in a task
inline constexpr int64_t kTaskTileRows = 16, kTasksPerThread = 4;
inline constexpr float kMostCode = 255;  // of x; its zeros must be codes too

// Scales and -zero scale of `count` slots as numbers.
static void readGrids(const Half* half, const uint8_t* zero, int64_t count, float* __restrict scale,
                      float* __restrict shift) {
#if defined(AQ_LEVEL_AVX512)
  for (int64_t i = 0; i < count; i += kRows)
    _mm512_storeu_ps(scale + i, _mm512_cvtph_ps(loadVector<__m256i>(half + i)));
#elif defined(AQ_LEVEL_AVX2)
  for (int64_t i = 0; i < count; i += 8)
    _mm256_storeu_ps(scale + i, _mm256_cvtph_ps(loadVector<__m128i>(half + i)));
#elif defined(AQ_LEVEL_NEON)
  for (int64_t i = 0; i < count; i += 4)
    vst1q_f32(scale + i, vcvt_f32_f16(loadVector<float16x4_t>(half + i)));
#else
  for (int64_t i = 0; i < count; i++) scale[i] = toFloat(half[i]);
#endif
  for (int64_t i = 0; i < count; i++) shift[i] = -float(int32_t(zero[i])) * scale[i];
}

// The product of `rows` rows with the packed matrix.
template <class Form>
struct FewRows {
  const Codes& weights;
  int64_t rows, inputs, outputs;
  const float *scale, *zero;  // the grids of x, or null
  float top;

  int64_t steps() const { return ceilDiv(inputs, kStepColumns); }
  int64_t stride() const { return steps() * kStepColumns; }
  // x lies by steps, 64 columns of every row together: rows that are powers of two apart would fall
  // on the same few lines of the cache.
  int64_t step() const { return rows * kStepColumns; }
  // Steps that share their scales; 0: two groups to a step.
  int64_t perGroup() const {
    return weights.groups == 1 ? steps() : weights.group == 32 ? 0 : weights.group / kStepColumns;
  }

  // Whether all zeros of the grids are such that codes can be multiplied as whole numbers.
  bool hasWholeZeros() const {
    if (!scale) return false;
    for (int64_t m = 0; m < rows; m++)
      if (!(zero[m] >= 0 && zero[m] <= kMostCode) || zero[m] != roundEven(zero[m])) return false;
    return true;
  }

  // read(m, y) gives row m; finish(sum, m, o) takes a result.
  template <class Read, class Finish>
  void run(const Read& read, const Finish& finish) const {
    const int64_t most = stride();
    float* const x = static_cast<float*>(
        threadScratch(kSlotX, uint64_t(rows + 1) * uint64_t(most + 2 * kRows) * sizeof(float)));
    float* const row = x + rows * (most + 2 * kRows);
    if (hasWholeZeros()) {
      float* const factors = x;
      auto* const codes = reinterpret_cast<uint8_t*>(factors + rows);
      auto* const sums = reinterpret_cast<int32_t*>(codes + rows * most);
      for (int64_t m = 0; m < rows; m++) {
        read(m, row);
        factors[m] = encodeRow(row, m, codes + m * kStepColumns);
      }
      const CodedRows coded = {codes, step(), zero, sums};
      Form::sumCodes(coded, rows, steps(), perGroup(), sums);
      forTiles([&](const TileRow& tile, float* y) { Form::multiplyCodes(tile, coded, rows, y); },
               [&](float sum, int64_t m, int64_t o) { finish(sum * factors[m], m, o); });
      return;
    }
    for (int64_t m = 0; m < rows; m++) {
      read(m, row);
      if (scale)
        for (int64_t i = 0; i < inputs; i++)
          row[i] = (codeOf(row[i] / scale[m], zero[m], top) - zero[m]) * scale[m];
      sortRow(row, x + m * kStepColumns);
    }
    forTiles(
        [&](const TileRow& tile, float* y) { Form::multiplyNumbers(tile, x, step(), rows, y); },
        finish);
  }

 private:
  void sortRow(float* row, float* to) const {
    for (int64_t i = inputs; i < stride(); i++) row[i] = 0;
    for (int64_t first = 0; first < stride(); first += kStepColumns, to += step())
      Form::sortNumbers(row + first, to);
  }

  // Codes of a row in the order of a line's bytes. Returns its scale, NaN where a code would be it.
  float encodeRow(float* row, int64_t m, uint8_t* to) const {
    const float s = scale[m], z = zero[m];
    bool isNumber = true;
    for (int64_t i = 0; i < inputs; i++) {
      const float code = codeOf(row[i] / s, z, top);
      isNumber &= code == code;
      row[i] = code == code ? code : 0.0f;
    }
    for (int64_t i = inputs; i < stride(); i++) row[i] = z;
    for (int64_t first = 0; first < stride(); first += kStepColumns, to += step())
      for (int64_t b = 0; b < kStepColumns; b++)
        to[b] = Form::byteOf(int32_t(row[first + Form::columnAt(b)]));
    return isNumber ? s : std::numeric_limits<float>::quiet_NaN();
  }

  template <class Multiply, class Finish>
  void forTiles(const Multiply& multiply, const Finish& finish) const {
    const int64_t tileRows = ceilDiv(outputs, kRows), groups = weights.groups,
                  grids = groups * kRows;
    const int64_t tileRowBytes = weights.tiles * kBytes;
    // Several tile rows to a task, for each fetches the next.
    const int64_t perTask =
        std::max(ceilDiv(kTaskBytes, tileRowBytes * rows + 1),
                 std::min(kTaskTileRows, tileRows / (kTasksPerThread * threadCount())));
    parallelFor(ceilDiv(tileRows, perTask), [&](int64_t task) {
      float* const numbers = static_cast<float*>(
          threadScratch(kSlotRow, uint64_t(2 * grids + rows * kRows) * sizeof(float) + 1));
      float *const shifts = numbers + grids, *const sums = shifts + grids;
      const int64_t last = std::min(tileRows, (task + 1) * perTask);
      for (int64_t tileRow = task * perTask; tileRow < last; tileRow++) {
        const uint8_t* const zeros = weights.zero + tileRow * grids;
        readGrids(weights.scale + tileRow * grids, zeros, grids, numbers, shifts);
        const uint8_t* const codes = weights.codes + tileRow * tileRowBytes;
        multiply(TileRow{codes, codes + tileRowBytes, numbers, shifts, zeros, steps(), perGroup(),
                         groups},
                 sums);
        const int64_t count = std::min(kRows, outputs - tileRow * kRows);
        for (int64_t m = 0; m < rows; m++)
          for (int64_t r = 0; r < count; r++)
            finish(sums[m * kRows + Form::gridSlot(r)], m, tileRow * kRows + r);
      }
    });
  }
};

}  // namespace packed
