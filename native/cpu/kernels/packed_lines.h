// packed_lines.h: what the inner loops of packed products share, whatever the bits of the codes: vectors
// of bytes and words, a row of tiles, and the walk along it.
//
// A tile has 16 rows of the matrix in 1024 bytes, and is read a line (64 bytes) at a time, all of whose
// codes belong to the same 64 columns: a step.

namespace packed {

inline constexpr int64_t kRows = 16, kBytes = 1024;  // of a tile
inline constexpr int64_t kStepColumns = 64;
inline constexpr int kSlotX = 2, kSlotWeights = 3, kSlotRow = 4;  // threadScratch; gemm has 0 and 1

using Floats = Vec<float>;
inline constexpr int kWidth = Floats::kWidth, kParts = 16 / kWidth;  // kParts vectors make a line
typedef int32_t IntVector __attribute__((vector_size(4 * kWidth)));
typedef uint32_t WordVector __attribute__((vector_size(4 * kWidth)));
typedef float FloatVector __attribute__((vector_size(4 * kWidth)));
typedef int8_t ByteVector __attribute__((vector_size(4 * kWidth)));
typedef int16_t ShortVector __attribute__((vector_size(4 * kWidth)));
typedef uint16_t UnsignedShortVector __attribute__((vector_size(4 * kWidth)));

template <class V>
inline V loadVector(const void* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats::Type numbersOf(IntVector x) {
  return (Floats::Type) __builtin_convertvector(x, FloatVector);
}

// The packed matrix as the ops are given it.
struct Codes {
  const uint8_t* codes;
  const Half* scale;
  const uint8_t* zero;
  int64_t tiles, groups, group;  // tiles and groups of a row; columns of a group
};

// 16 rows of the matrix; their scales and zeros as numbers, 16 of a group together.
struct TileRow {
  const uint8_t *codes, *next;  // next: those of the tile row after it
  const float *scale, *shift;   // shift = -zero scale
  const uint8_t* zero;
  int64_t halves, perGroup;  // steps of a row, and of a group; perGroup 0: groups of 32
  int64_t groups;
};

// The steps of a row, those together that share their scales.
struct GroupWalk {
  const TileRow& tile;
  int64_t group = 0, groupEnd = tile.perGroup;

  // Where the scales of the first and the second 32 columns lie; the latter for groups of 32 alone.
  int64_t first() const { return group * kRows; }
  int64_t second() const { return std::min(group + 1, tile.groups - 1) * kRows; }
  template <bool kShort>
  int64_t endFrom(int64_t half) const {
    return kShort ? half + 1 : std::min(groupEnd, tile.halves);
  }
  // Having come to `half`.
  template <bool kShort>
  void advance(int64_t half) {
    if (kShort) {
      group += 2;
    } else if (half == groupEnd) {
      group++;
      groupEnd += tile.perGroup;
    }
  }
};

// A tile row's codes are read in passes of Lines lines. Each fetches its share of the next tile row,
// so that memory is as busy in the last pass as in the first.
template <int Lines>
inline void fetchAhead(const TileRow& tile, int line, int64_t half) {
  const uint8_t* const share = tile.next + (line / Lines * tile.halves + half) * (Lines * 64);
  AQ_UNROLL
  for (int l = 0; l < Lines; l++) __builtin_prefetch(share + l * 64, 0, 2);
}

// x as codes: rows of bytes in the order of a line's, zeros of its grid up to whole steps.
struct CodedRows {
  const uint8_t* codes;
  int64_t step;         // bytes from a step to the next
  const float* zero;    // of every row
  const int32_t* sums;  // of the codes, where the form wants them
};

}  // namespace packed
