// int4_rows.h: the packed product for few rows of x, as decoding has them: every weight is read once,
// becomes a number in a register, and meets all rows there.
//
// A line is the 64 bytes of a half tile that hold the codes of two rows, g and g + 8. Read as 16
// words, place 2 i + n of a word (4 bits each) is byte i's code of the first (n = 0) or the second
// row. So x is sorted, once a call: the values for byte i of all words lie together, and weights
// need only a shift. (code - zero) scale has at most 15 bits and is exact whichever way it is made.
// Each sum is one chain over the columns in each lane, then a fixed tree over the lanes, and does
// not depend on how many rows there are: a sequence gets the same numbers alone and among others.

namespace int4 {

// Groups of 32 columns: words 4 t + 0, 1 of a line belong to one, words 4 t + 2, 3 to the next.
#if defined(AQ_LEVEL_AVX512)
inline constexpr __mmask16 kSecond = 0xcccc;
inline __m512 alternate(__m512 a, __m512 b) { return _mm512_mask_blend_ps(kSecond, a, b); }
inline IntVector alternate(IntVector a, IntVector b) {
  return (IntVector)_mm512_mask_blend_epi32(kSecond, (__m512i)a, (__m512i)b);
}
#else
template <class V, int... I>
inline V alternate(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I & 2 ? kWidth + I : I)...);
}
template <class V>
inline V alternate(V a, V b) {
  return alternate(a, b, std::make_integer_sequence<int, kWidth>{});
}
#endif

// The numbers of one row's codes: exact, since a scale has 11 bits and a code 4.
struct Affine {
  static constexpr bool kShort = true;  // for groups of 32 columns
  Floats::Type scale, shift;

  void set(const GroupWalk& at, int slot) {
    const float *const a = at.tile.scale + slot, *const b = at.tile.shift + slot;
    scale = alternate(Floats::splat(a[at.first()]), Floats::splat(a[at.second()]));
    shift = alternate(Floats::splat(b[at.first()]), Floats::splat(b[at.second()]));
  }
  Floats::Type of(WordVector words, int place) const {
    return Floats::fma(codesAt(words, place), scale, shift);
  }

#if defined(AQ_LEVEL_AVX512)
  // A permutation looks at the low 4 bits of a word.
  static Floats::Type iota() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static Floats::Type codesAt(WordVector words, int place) {
    return _mm512_permutexvar_ps((__m512i)(words >> (4 * place)), iota());
  }
#else
  static Floats::Type codesAt(WordVector words, int place) {
    return numbersOf((IntVector)(words >> (4 * place) & 15u));
  }
#endif
};

// The same for longer groups, where a line has one scale.
struct LongAffine : Affine {
  static constexpr bool kShort = false;
  void set(const GroupWalk& at, int slot) {
    scale = Floats::splat(at.tile.scale[at.first() + slot]);
    shift = Floats::splat(at.tile.shift[at.first() + slot]);
  }
};

#if defined(AQ_LEVEL_AVX512)
// There all 16 numbers fit into a register, in which the permutation finds them.
struct Table {
  static constexpr bool kShort = false;
  Floats::Type numbers;
  void set(const GroupWalk& at, int slot) {
    LongAffine row;
    row.set(at, slot);
    numbers = Floats::fma(Affine::iota(), row.scale, row.shift);
  }
  Floats::Type of(WordVector words, int place) const {
    return _mm512_permutexvar_ps((__m512i)(words >> (4 * place)), numbers);
  }
};
using LongGrid = Table;
#else
using LongGrid = LongAffine;
#endif

// sums[m * 16 + slot] for the slots of Lines lines from `line` on, and Rows rows of sorted x.
template <class Grid, int Lines, int Rows>
static void numberLines(const TileRow& tile, int line, const float* x, int64_t step, float* sums) {
  Floats::Type sum[2 * Lines][Rows];
  Grid grid[2 * Lines];
  AQ_UNROLL
  for (int r = 0; r < 2 * Lines; r++) {
    AQ_UNROLL
    for (int m = 0; m < Rows; m++) sum[r][m] = Floats::zero();
  }
  const uint8_t* codes = tile.codes + line * 64;
  GroupWalk at{tile};
  for (int64_t half = 0; half < tile.halves; at.advance<Grid::kShort>(half)) {
    AQ_UNROLL
    for (int r = 0; r < 2 * Lines; r++) grid[r].set(at, 2 * line + r);
    const int64_t end = at.endFrom<Grid::kShort>(half);
    for (; half < end; half++, codes += kHalfBytes) {
      fetchAhead<Lines>(tile, line, half);
      const float* values = x + half * step;
      AQ_UNROLL
      for (int p = 0; p < kParts; p++) {
        WordVector words[Lines];
        AQ_UNROLL
        for (int l = 0; l < Lines; l++)
          words[l] = loadVector<WordVector>(codes + l * 64 + p * 4 * kWidth);
        AQ_UNROLL
        for (int i = 0; i < 4; i++) {
          Floats::Type value[Rows];
          AQ_UNROLL
          for (int m = 0; m < Rows; m++)
            value[m] = Floats::load(values + m * kHalfColumns + i * 16 + p * kWidth);
          AQ_UNROLL
          for (int r = 0; r < 2 * Lines; r++) {
            const Floats::Type weight = grid[r].of(words[r / 2], 2 * i + r % 2);
            AQ_UNROLL
            for (int m = 0; m < Rows; m++) sum[r][m] = Floats::fma(weight, value[m], sum[r][m]);
          }
        }
      }
    }
  }
  for (int r = 0; r < 2 * Lines; r++) {
    for (int m = 0; m < Rows; m++) {
      LaneArray<float> all = LaneArray<float>::splat(0);
      all.part[0] = sum[r][m];
      sums[m * kRows + 2 * line + r] = all.fold(Sum{});
    }
  }
}

// How many lines and rows of x meet in registers.
#if defined(AQ_LEVEL_AVX512) || defined(AQ_LEVEL_NEON)
inline constexpr int kMostRows = 4, kLinesOfOne = 4, kLinesOfMany = 2;
#else
inline constexpr int kMostRows = 4, kLinesOfOne = 2, kLinesOfMany = 1;
#endif

template <class Grid, int Lines, int Rows>
static void numberTile(const TileRow& tile, const float* x, int64_t step, float* sums) {
  for (int line = 0; line < 8; line += Lines)
    numberLines<Grid, Lines, Rows>(tile, line, x, step, sums);
}

template <class Grid>
static void numberRows(const TileRow& tile, const float* x, int64_t step, int64_t rows,
                       float* sums) {
  constexpr auto one = numberTile < Grid, Grid::kShort ? kLinesOfMany : kLinesOfOne, 1 > ;
  constexpr decltype(one) kernels[kMostRows] = {one, numberTile<Grid, kLinesOfMany, 2>,
                                                numberTile<Grid, kLinesOfMany, 3>,
                                                numberTile<Grid, kLinesOfMany, 4>};
  for (int64_t m = 0; m < rows;) {
    const int64_t count = ceilDiv(rows - m, ceilDiv(rows - m, kMostRows));
    kernels[count - 1](tile, x + m * kHalfColumns, step, sums + m * kRows);
    m += count;
  }
}

// sums[m * 16 + slot] of all 16 rows of a tile row.
static void multiplyNumbers(const TileRow& tile, const float* x, int64_t step, int64_t rows,
                            float* sums) {
  if (tile.perGroup)
    numberRows<LongGrid>(tile, x, step, rows, sums);
  else
    numberRows<Affine>(tile, x, step, rows, sums);
}

}  // namespace int4
