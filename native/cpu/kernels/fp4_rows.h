// fp4_rows.h: the packed product of 4-bit floats for few rows of x, as decoding has them: every weight is
// read once, becomes a number in a register, and meets all rows there.
//
// Lines, words and the order of x are int4_rows.h's. Word 4 t + k of a line has columns of the k-th 16 of
// its half tile, so that the scales of a line are four numbers, again and again. In each lane the four
// products of a word are added first and then scaled; then the lanes are folded. So a sum does not
// depend on how many rows there are: a sequence gets the same numbers alone and among others.

namespace fp4 {

using int4::kMostRows, int4::kLinesOfOne, int4::kLinesOfMany;
using packed::ByteVector, packed::IntVector, packed::WordVector, packed::Floats;
using packed::kWidth, packed::kParts, packed::loadVector;

// Twice the numbers of a vector of words: of place 2 i + n, byte i's code of the first (n = 0) or the
// second row.
#if defined(AQ_LEVEL_AVX512)
// A permutation looks at the low 4 bits of a word.
struct Decoded {
  WordVector words;
  Decoded(WordVector all, int n) : words(all >> (4 * n)) {}
  Floats::Type of(int i) const {
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    return _mm512_permutexvar_ps((__m512i)(words >> (8 * i)), numbers);
  }
};
#else
struct Decoded {
  ByteVector numbers;
  Decoded(WordVector all, int n) : numbers(look((ByteVector)(all >> (4 * n) & 0x0f0f0f0fu))) {}
  Floats::Type of(int i) const {
    return packed::numbersOf((IntVector)((WordVector)numbers << (24 - 8 * i)) >> 24);
  }

  static ByteVector look(ByteVector code) {
#if defined(AQ_LEVEL_AVX2)
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    return (ByteVector)_mm256_shuffle_epi8(table, (__m256i)code);
#elif defined(AQ_LEVEL_NEON)
    const int8x16_t table = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return (ByteVector)vqtbl1q_s8(table, (uint8x16_t)code);
#else
    const ByteVector size = code & 7;  // where a comparison holds, its result is -1
    const ByteVector twice = size - (size > 4) - (size > 5) + ((size > 6) & 3);
    const ByteVector sign = code > 7;
    return (twice ^ sign) - sign;
#endif
  }
};
#endif

// Four scales for all words.
inline Floats::Type repeated(const float* scales) {
#if defined(AQ_LEVEL_AVX512)
  return _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
#elif defined(AQ_LEVEL_AVX2)
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(scales));
#else
  return Floats::load(scales);
#endif
}

// Where the scales of a slot lie among those of its half tile.
inline constexpr int64_t placeOf(int64_t slot) { return slot % 4 * kRows + slot / 4 * 4; }

// 16 rows of the matrix.
struct TileRow {
  const uint8_t *codes, *next;  // next: those of the tile row after it
  const float* scales;  // halves of them: of half tile h and slot r, four at 64 h + placeOf(r)
  int64_t halves;
};

// sums[m * 16 + slot] for the slots of Lines lines from `line` on, and Rows rows of sorted x.
template <int Lines, int Rows>
static void numberLines(const TileRow& tile, int line, const float* x, int64_t step, float* sums) {
  Floats::Type sum[2 * Lines][Rows];
  AQ_UNROLL
  for (int r = 0; r < 2 * Lines; r++) {
    AQ_UNROLL
    for (int m = 0; m < Rows; m++) sum[r][m] = Floats::zero();
  }
  const uint8_t* codes = tile.codes + line * 64;
  const uint8_t* ahead = tile.next + line / Lines * tile.halves * (Lines * 64);
  const float* scales = tile.scales + placeOf(2 * line);
  for (int64_t half = 0; half < tile.halves; half++) {
    AQ_UNROLL
    for (int l = 0; l < Lines; l++) __builtin_prefetch(ahead + l * 64, 0, 2);
    AQ_UNROLL
    for (int p = 0; p < kParts; p++) {
      Floats::Type value[4][Rows];
      AQ_UNROLL
      for (int i = 0; i < 4; i++) {
        AQ_UNROLL
        for (int m = 0; m < Rows; m++)
          value[i][m] = Floats::load(x + m * kHalfColumns + i * 16 + p * kWidth);
      }
      AQ_UNROLL
      for (int r = 0; r < 2 * Lines; r++) {
        const Decoded code(loadVector<WordVector>(codes + r / 2 * 64 + p * 4 * kWidth), r % 2);
        const Floats::Type scale = repeated(scales + placeOf(r));
        Floats::Type part[Rows];
        AQ_UNROLL
        for (int i = 0; i < 4; i++) {
          const Floats::Type number = code.of(i);
          AQ_UNROLL
          for (int m = 0; m < Rows; m++)
            part[m] = i ? Floats::fma(number, value[i][m], part[m]) : number * value[i][m];
        }
        AQ_UNROLL
        for (int m = 0; m < Rows; m++) sum[r][m] = Floats::fma(part[m], scale, sum[r][m]);
      }
    }
    codes += kHalfBytes;
    ahead += Lines * 64;
    scales += 4 * kRows;
    x += step;
  }
  for (int r = 0; r < 2 * Lines; r++) {
    for (int m = 0; m < Rows; m++) {
      LaneArray<float> all = LaneArray<float>::splat(0);
      all.part[0] = sum[r][m];
      sums[m * kRows + 2 * line + r] = all.fold(Sum{});
    }
  }
}

template <int Lines, int Rows>
static void numberTile(const TileRow& tile, const float* x, int64_t step, float* sums) {
  for (int line = 0; line < 8; line += Lines) numberLines<Lines, Rows>(tile, line, x, step, sums);
}

// sums[m * 16 + slot] of all 16 rows of a tile row.
static void multiplyNumbers(const TileRow& tile, const float* x, int64_t step, int64_t rows,
                            float* sums) {
  constexpr auto one = numberTile<kLinesOfOne, 1>;
  constexpr decltype(one) kernels[kMostRows] = {
      one, numberTile<kLinesOfMany, 2>, numberTile<kLinesOfMany, 3>, numberTile<kLinesOfMany, 4>};
  for (int64_t m = 0; m < rows;) {
    const int64_t count = ceilDiv(rows - m, ceilDiv(rows - m, kMostRows));
    kernels[count - 1](tile, x + m * kHalfColumns, step, sums + m * kRows);
    m += count;
  }
}

// A vector of bytes as words.
inline IntVector wordsOf(const uint8_t* bytes) {
#if defined(AQ_LEVEL_AVX512)
  return (IntVector)_mm512_cvtepu8_epi32(loadVector<__m128i>(bytes));
#elif defined(AQ_LEVEL_AVX2)
  return (IntVector)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(loadVector<int64_t>(bytes)));
#else
  return IntVector{bytes[0], bytes[1], bytes[2], bytes[3]};
#endif
}

// Half the numbers of a vector of scales' bytes, as halfScale has them.
inline Floats::Type halfScales(const uint8_t* bytes, bool isPower) {
  const IntVector bits = wordsOf(bytes);
  const IntVector nan = IntVector{} + 0x7fc00000;
  if (isPower) {
    const IntVector half = bits > 1 ? (bits - 1) << 23 : (bits + 1) << 21;
    return (Floats::Type)(bits == 255 ? nan : half);
  }
  const IntVector half = (IntVector)((Floats::Type)(bits << 20) * 0x1p119f);
  return (Floats::Type)(bits == 0x7f ? nan : half);
}

// A tile row's scales as TileRow has them: the vectors of four groups, turned in blocks of 4 x 4.
static void readScales(const uint8_t* from, int64_t groups, int32_t format, int64_t halves,
                       float* __restrict scales) {
  using Swap = Turn<float>::Count<kWidth>;
  const bool isPower = format == kMxfp4;
  for (int64_t half = 0; half < halves; half++, scales += 4 * kRows) {
    AQ_UNROLL
    for (int64_t slot = 0; slot < kRows; slot += kWidth) {
      Turn<float>::V r[4];
      AQ_UNROLL
      for (int i = 0; i < 4; i++) {
        const int64_t g = isPower ? 2 * half + i / 2 : 4 * half + i;
        r[i] = g < groups ? halfScales(from + g * kRows + slot, isPower) : Floats::zero();
      }
      Swap::exchange<1>(r[0], r[1]);
      Swap::exchange<1>(r[2], r[3]);
      Swap::exchange<2>(r[0], r[2]);
      Swap::exchange<2>(r[1], r[3]);
      AQ_UNROLL
      for (int i = 0; i < 4; i++) Floats::store(scales + i * kRows + slot, r[i]);
    }
  }
}

}  // namespace fp4
