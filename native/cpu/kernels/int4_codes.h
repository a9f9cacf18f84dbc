// int4_codes.h: the packed product for few rows of x that have grids: codes times codes, in whole
// numbers.
//
//   y = sx sum over groups of s sum over columns of (q - z) (c - zx)
//
// A byte of a line against a byte of x, four neighbours into a lane of 32 bits, and beside it the sum
// of q - z alone, by which zx comes off. These sums stay below 2^24 (a group that is too long is
// taken in pieces), so f32 holds them exactly. Only then are they scaled and added, in 16 lanes and
// without fused operations: every level gives the same bits.

namespace int4 {

inline constexpr int64_t kPieceHalves = 16;  // half tiles summed as whole numbers

// sum + the products of four neighbours: bytes 0 .. 255 of x, -15 .. 15 of w.
struct PlainDot {
  static IntVector add(IntVector sum, IntVector x, IntVector w) {
#if defined(AQ_LEVEL_AVX512)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)x, (__m512i)w);
    return sum + (IntVector)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(AQ_LEVEL_AVX2)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)x, (__m256i)w);
    return sum + (IntVector)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    const ShortVector even = (ShortVector)x & 255, odd = (ShortVector)((UnsignedShortVector)x >> 8);
    const ShortVector pairs =
        even * ((ShortVector)((UnsignedShortVector)w << 8) >> 8) + odd * ((ShortVector)w >> 8);
    const IntVector all = (IntVector)pairs;
    return sum + ((IntVector)((WordVector)all << 16) >> 16) + (all >> 16);
#endif
  }
};

#if defined(AQ_LEVEL_AVX512)
// The same by one instruction of VNNI, which not every processor of this level has: as assembly, so
// that the rest of the kernel stays code of the level.
struct VnniDot {
  static IntVector add(IntVector sum, IntVector x, IntVector w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
  }
};
#endif

// sums[m * 16 + slot] for the slots of Lines lines from `line` on, and Rows rows; not scaled by sx.
template <class Dot, bool kShort, int Lines, int Rows>
static void codeLines(const TileRow& tile, int line, const CodedRows& x, float* sums) {
  LaneArray<float> all[2 * Lines][Rows];
  for (int p = 0; p < kParts; p++) {
    Floats::Type total[2 * Lines][Rows];
    AQ_UNROLL
    for (int r = 0; r < 2 * Lines; r++) {
      AQ_UNROLL
      for (int m = 0; m < Rows; m++) total[r][m] = Floats::zero();
    }
    const uint8_t* codes = tile.codes + line * 64 + p * 4 * kWidth;
    GroupWalk at{tile};
    for (int64_t half = 0; half < tile.halves; at.advance<kShort>(half)) {
      const int64_t a = at.first() + 2 * line, b = at.second() + 2 * line;
      const int64_t end = std::min(at.endFrom<kShort>(half), half + kPieceHalves);
      IntVector zero[2 * Lines], plain[2 * Lines], sum[2 * Lines][Rows];
      AQ_UNROLL
      for (int r = 0; r < 2 * Lines; r++) {
        zero[r] = IntVector{} + tile.zero[a + r] * 0x01010101;
        if constexpr (kShort)
          zero[r] = alternate(zero[r], IntVector{} + tile.zero[b + r] * 0x01010101);
        plain[r] = IntVector{};
        AQ_UNROLL
        for (int m = 0; m < Rows; m++) sum[r][m] = IntVector{};
      }
      for (; half < end; half++, codes += kHalfBytes) {
        fetchAhead<Lines>(tile, line, half);
        const uint8_t* values = x.codes + half * x.step + p * 4 * kWidth;
        AQ_UNROLL
        for (int l = 0; l < Lines; l++) {
          const WordVector words = loadVector<WordVector>(codes + l * 64);
          AQ_UNROLL
          for (int n = 0; n < 2; n++) {
            const int r = 2 * l + n;
            const ByteVector code = (ByteVector)(words >> (4 * n) & 0x0f0f0f0fu);
            const IntVector weight = (IntVector)(code - (ByteVector)zero[r]);
            plain[r] = Dot::add(plain[r], IntVector{} + 0x01010101, weight);
            AQ_UNROLL
            for (int m = 0; m < Rows; m++)
              sum[r][m] =
                  Dot::add(sum[r][m], loadVector<IntVector>(values + m * kHalfColumns), weight);
          }
        }
      }
      AQ_UNROLL
      for (int r = 0; r < 2 * Lines; r++) {
        Floats::Type scale = Floats::splat(tile.scale[a + r]);
        if constexpr (kShort) scale = alternate(scale, Floats::splat(tile.scale[b + r]));
        const Floats::Type weights = numbersOf(plain[r]);
        AQ_UNROLL
        for (int m = 0; m < Rows; m++)
          total[r][m] +=
              scale * Floats::fma(weights, Floats::splat(-x.zero[m]), numbersOf(sum[r][m]));
      }
    }
    for (int r = 0; r < 2 * Lines; r++)
      for (int m = 0; m < Rows; m++) all[r][m].part[p] = total[r][m];
  }
  for (int r = 0; r < 2 * Lines; r++)
    for (int m = 0; m < Rows; m++) sums[m * kRows + 2 * line + r] = all[r][m].fold(Sum{});
}

template <class Dot, bool kShort, int Lines, int Rows>
static void codeTile(const TileRow& tile, const CodedRows& x, float* sums) {
  for (int line = 0; line < 8; line += Lines)
    codeLines<Dot, kShort, Lines, Rows>(tile, line, x, sums);
}

template <class Dot, bool kShort>
static void codeRows(const TileRow& tile, const CodedRows& x, int64_t rows, float* sums) {
  constexpr auto one = codeTile<Dot, kShort, 2, 1>;
  constexpr decltype(one) kernels[4] = {one, codeTile<Dot, kShort, 2, 2>,
                                        codeTile<Dot, kShort, 2, 3>, codeTile<Dot, kShort, 2, 4>};
  for (int64_t m = 0; m < rows;) {
    const int64_t count = ceilDiv(rows - m, ceilDiv(rows - m, 4));
    const CodedRows part = {x.codes + m * kHalfColumns, x.step, x.zero + m, nullptr};
    kernels[count - 1](tile, part, sums + m * kRows);
    m += count;
  }
}

template <class Dot>
static void codeGroups(const TileRow& tile, const CodedRows& x, int64_t rows, float* sums) {
  if (tile.perGroup)
    codeRows<Dot, false>(tile, x, rows, sums);
  else
    codeRows<Dot, true>(tile, x, rows, sums);
}

// sums[m * 16 + slot] of all 16 rows of a tile row.
static void multiplyCodes(const TileRow& tile, const CodedRows& x, int64_t rows, float* sums) {
#if defined(AQ_LEVEL_AVX512)
  static const bool hasVnni = readFeatures().vnni;
  if (hasVnni) return codeGroups<VnniDot>(tile, x, rows, sums);
#endif
  codeGroups<PlainDot>(tile, x, rows, sums);
}

}  // namespace int4
