// int8_rows.h: the inner loops of the product of few rows of x with codes of at most 8 bits, as numbers
// and as whole numbers.
//
// As int4_rows.h has it, every weight is read once and meets all rows, each sum is one chain over the
// columns in each lane and then a fixed tree over the lanes, and (code - zero) scale is exact (20 bits).
//
// Whole numbers: of  sum of (q - zq) (c - zc)  what a lane of four neighbours holds is
//   sum q' c'  -  zq' sum c'  -  zc' sum (q - zq)
// where ' takes 128 from what the processor's products want signed: x always, the codes on Arm. The
// sums over q are made once a call (sumCodes). Lanes of 32 bits are exact; a group's are then scaled
// and added in f32 without fused operations, and those of a whole row are added up as they are: every
// level gives the same bits.

namespace int8 {

// Numbers of 16 columns, from lane `lane` on: a vector of them.
inline Floats::Type numbersAt(const uint8_t* codes) {
#if defined(AQ_LEVEL_AVX512)
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(loadVector<__m128i>(codes)));
#elif defined(AQ_LEVEL_AVX2)
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kWidth)));
  return numbersOf(__builtin_convertvector(loadVector<Bytes>(codes), IntVector));
#endif
}

// sums[m * 16 + row] for Lines rows of the tile from `line` on, and Rows rows of x. kShort: groups of
// 32 columns, two to a line.
template <bool kShort, int Lines, int Rows>
static void numberLines(const TileRow& tile, int line, const float* x, int64_t step, float* sums) {
  Floats::Type sum[Lines][Rows];
  AQ_UNROLL
  for (int l = 0; l < Lines; l++) {
    AQ_UNROLL
    for (int m = 0; m < Rows; m++) sum[l][m] = Floats::zero();
  }
  const uint8_t* codes = tile.codes + line * kStepColumns;
  GroupWalk at{tile};
  for (int64_t half = 0; half < tile.halves; at.advance<kShort>(half)) {
    Floats::Type scale[1 + kShort][Lines], shift[1 + kShort][Lines];
    AQ_UNROLL
    for (int l = 0; l < Lines; l++) {
      scale[0][l] = Floats::splat(tile.scale[at.first() + line + l]);
      shift[0][l] = Floats::splat(tile.shift[at.first() + line + l]);
      if constexpr (kShort) {
        scale[1][l] = Floats::splat(tile.scale[at.second() + line + l]);
        shift[1][l] = Floats::splat(tile.shift[at.second() + line + l]);
      }
    }
    const int64_t end = at.endFrom<kShort>(half);
    for (; half < end; half++, codes += kBytes) {
      fetchAhead<Lines>(tile, line, half);
      const float* values = x + half * step;
      for (int i = 0; i < kStepColumns; i += kWidth) {
        const int second = kShort ? i / 32 : 0;
        Floats::Type value[Rows];
        AQ_UNROLL
        for (int m = 0; m < Rows; m++) value[m] = Floats::load(values + m * kStepColumns + i);
        AQ_UNROLL
        for (int l = 0; l < Lines; l++) {
          const Floats::Type weight = Floats::fma(numbersAt(codes + l * kStepColumns + i),
                                                  scale[second][l], shift[second][l]);
          AQ_UNROLL
          for (int m = 0; m < Rows; m++) sum[l][m] = Floats::fma(weight, value[m], sum[l][m]);
        }
      }
    }
  }
  for (int l = 0; l < Lines; l++) {
    for (int m = 0; m < Rows; m++) {
      LaneArray<float> all = LaneArray<float>::splat(0);
      all.part[0] = sum[l][m];
      sums[m * kRows + line + l] = all.fold(Sum{});
    }
  }
}

// sum + the products of four neighbours, in 32 bits.
struct PlainDot {
  static constexpr int32_t kOffset = 0;  // what is taken from codes
#if defined(AQ_LEVEL_AVX512)
  static IntVector add(IntVector sum, IntVector c, IntVector x) {
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512((__m512i)c, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8));
    const __m512i odd =
        _mm512_madd_epi16(_mm512_srli_epi16((__m512i)c, 8), _mm512_srai_epi16((__m512i)x, 8));
    return sum + (IntVector)even + (IntVector)odd;
  }
#elif defined(AQ_LEVEL_AVX2)
  static IntVector add(IntVector sum, IntVector c, IntVector x) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)c, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8));
    const __m256i odd =
        _mm256_madd_epi16(_mm256_srli_epi16((__m256i)c, 8), _mm256_srai_epi16((__m256i)x, 8));
    return sum + (IntVector)even + (IntVector)odd;
  }
#else
  static IntVector add(IntVector sum, IntVector c, IntVector x) {
    AQ_UNROLL
    for (int i = 0; i < 4; i++) sum += (c >> (8 * i) & 255) * ((x << (24 - 8 * i)) >> 24);
    return sum;
  }
#endif
};

#if defined(AQ_LEVEL_AVX512)
// By one instruction of VNNI, which not every processor of this level has (see int4::VnniDot).
struct FastDot {
  static constexpr int32_t kOffset = 0;
  static bool exists() { return readFeatures().vnni; }
  static IntVector add(IntVector sum, IntVector c, IntVector x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(c), "v"(x));
    return sum;
  }
};
#elif defined(AQ_LEVEL_NEON)
// All of Arm's 64-bit processors multiply signed bytes.
struct FastDot {
  static constexpr int32_t kOffset = 128;
  static bool exists() { return true; }
  static IntVector add(IntVector sum, IntVector c, IntVector x) {
    const int8x16_t a = (int8x16_t)(c ^ (IntVector{} + int32_t(0x80808080))), b = (int8x16_t)x;
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
    return sum + (IntVector)vpaddq_s32(low, high);
  }
};
#else
struct FastDot : PlainDot {
  static bool exists() { return false; }
};
#endif

enum class Groups { kShort, kLong, kOne };  // of 32 columns, more, or all of a row

// For every unit (a group, or of short ones a line) and row of x: the sums of q - zq in 16 lanes.
static void sumCodes(const CodedRows& x, int64_t rows, int64_t steps, int64_t perGroup,
                     int32_t* sums) {
  const int64_t unit = perGroup ? perGroup : 1;
  for (int64_t first = 0; first < steps; first += unit) {
    for (int64_t m = 0; m < rows; m++, sums += 16) {
      const int32_t z = 4 * (int32_t(x.zero[m]) - 128);
      for (int lane = 0; lane < 16; lane++) sums[lane] = 0;
      for (int64_t half = first; half < std::min(first + unit, steps); half++) {
        const auto* const q =
            reinterpret_cast<const int8_t*>(x.codes + half * x.step + m * kStepColumns);
        for (int lane = 0; lane < 16; lane++)
          sums[lane] += q[4 * lane] + q[4 * lane + 1] + q[4 * lane + 2] + q[4 * lane + 3] - z;
      }
    }
  }
}

// Of a part of a line: its first 32 columns from a, the others from b.
template <class V>
inline V halvesOf(V a, V b, int part) {
  if constexpr (kParts == 1) {
#if defined(AQ_LEVEL_AVX512)
    return (V)_mm512_mask_blend_epi32(0xff00, (__m512i)a, (__m512i)b);
#endif
  }
  return part < kParts / 2 ? a : b;
}

// sums[m * 16 + row] for Lines rows of the tile from `line` on, and Rows rows of x; not scaled by the
// scales of x.
template <class Dot, Groups kGroups, int Lines, int Rows>
static void codeLines(const TileRow& tile, int line, const CodedRows& x, int64_t rows,
                      float* sums) {
  constexpr bool kShort = kGroups == Groups::kShort;
  LaneArray<float> all[Lines][Rows];
  int64_t whole[Lines][Rows] = {};
  for (int p = 0; p < kParts; p++) {
    Floats::Type total[Lines][Rows];
    AQ_UNROLL
    for (int l = 0; l < Lines; l++) {
      AQ_UNROLL
      for (int m = 0; m < Rows; m++) total[l][m] = Floats::zero();
    }
    const uint8_t* codes = tile.codes + line * kStepColumns + p * 4 * kWidth;
    const int32_t* tokens = x.sums + p * kWidth;
    GroupWalk at{tile};
    for (int64_t half = 0; half < tile.halves; at.advance<kShort>(half), tokens += 16 * rows) {
      IntVector plain[Lines], sum[Lines][Rows];
      AQ_UNROLL
      for (int l = 0; l < Lines; l++) {
        plain[l] = IntVector{};
        AQ_UNROLL
        for (int m = 0; m < Rows; m++) sum[l][m] = IntVector{};
      }
      const int64_t a = at.first() + line, b = at.second() + line;
      const int64_t end = at.endFrom<kShort>(half);
      for (; half < end; half++, codes += kBytes) {
        fetchAhead<Lines>(tile, line, half);
        const uint8_t* values = x.codes + half * x.step + p * 4 * kWidth;
        IntVector value[Rows];
        AQ_UNROLL
        for (int m = 0; m < Rows; m++) value[m] = loadVector<IntVector>(values + m * kStepColumns);
        AQ_UNROLL
        for (int l = 0; l < Lines; l++) {
          const auto words = loadVector<IntVector>(codes + l * kStepColumns);
          plain[l] = Dot::add(plain[l], words, IntVector{} + 0x01010101);
          AQ_UNROLL
          for (int m = 0; m < Rows; m++) sum[l][m] = Dot::add(sum[l][m], words, value[m]);
        }
      }
      AQ_UNROLL
      for (int l = 0; l < Lines; l++) {
        IntVector zero = IntVector{} + (tile.zero[a + l] - Dot::kOffset);
        if (kShort) zero = halvesOf(zero, IntVector{} + (tile.zero[b + l] - Dot::kOffset), p);
        Floats::Type scale = Floats::splat(tile.scale[a + l]);
        if (kShort) scale = halvesOf(scale, Floats::splat(tile.scale[b + l]), p);
        AQ_UNROLL
        for (int m = 0; m < Rows; m++) {
          const IntVector lanes = sum[l][m] - (int32_t(x.zero[m]) - 128) * plain[l] -
                                  zero * loadVector<IntVector>(tokens + m * 16);
          if constexpr (kGroups == Groups::kOne)
            for (int lane = 0; lane < kWidth; lane++) whole[l][m] += lanes[lane];
          else
            total[l][m] += scale * numbersOf(lanes);
        }
      }
    }
    for (int l = 0; l < Lines; l++)
      for (int m = 0; m < Rows; m++) all[l][m].part[p] = total[l][m];
  }
  for (int l = 0; l < Lines; l++) {
    for (int m = 0; m < Rows; m++) {
      sums[m * kRows + line + l] = kGroups == Groups::kOne
                                       ? float(double(whole[l][m]) * tile.scale[line + l])
                                       : all[l][m].fold(Sum{});
    }
  }
}

}  // namespace int8
