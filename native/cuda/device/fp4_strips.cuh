// fp4_strips.cuh: how the kernels of 4-bit floats deal a matrix out to threads.
//
// A thread has runs of 8 neighbouring numbers. A group of 16 or 32 columns so belongs to 2 or 4
// neighbours of a warp, and these have the same columns of 2 or 4 rows at once: each of them answers
// for the group of one of the rows, and does for it what is done once for a group.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

inline constexpr int kRun = 8;             // columns of a thread
inline constexpr int kStripThreads = 128;  // of a block
inline constexpr unsigned kAllLanes = ~0u;

// Threads that share a group; as many rows they have at once.
template <int kFormat>
inline constexpr int kGroupLanes = kFp4Group<kFormat> / kRun;

template <class T>
using Run = Vec<T, kRun>;

// Rows are cut into strips of at most a block's width, which is whole warps, or all of a shorter row.
struct Strips {
  unsigned rows, columns;
  unsigned runs;        // of a row
  unsigned lanes;       // threads of a row in a block
  unsigned count;       // of strips
  unsigned rowsAtOnce;  // of a block
  unsigned pieces;      // of a strip: as many rows as a block takes in turn

  // rowsEach: of a thread at once.
  static Strips of(int64_t numel, int64_t columns, unsigned rowsEach) {
    Strips s = {};
    s.columns = unsigned(columns);
    s.rows = columns > 0 ? unsigned(numel / columns) : 0;
    s.runs = (s.columns + kRun - 1) / kRun;
    s.count = std::max((s.runs + kStripThreads - 1) / kStripThreads, 1u);
    const unsigned share = (s.runs + s.count - 1) / s.count;
    s.lanes = share < kWarp ? std::max(share, 1u) : (share + kWarp - 1) / kWarp * kWarp;
    s.rowsAtOnce = kStripThreads / s.lanes;
    const unsigned each = s.rowsAtOnce * rowsEach;
    s.pieces = (s.rows + each - 1) / each;
    return s;
  }
  // Of at most `most` blocks a strip, one at least.
  dim3 grid(unsigned most) const { return dim3(std::max(std::min(pieces, most), 1u), count); }
};

// What the numbers above can hold.
inline int32_t checkStrips(const char* op, const aq_view& x, aq_error* err) {
  const int64_t columns = lastDim(x), rows = columns > 0 ? numel(x) / columns : 0;
  if (rows <= INT32_MAX / 2 && columns <= int64_t(kStripThreads) * kRun * 65535) return AQ_OK;
  return fail(err, AQ_SHAPE, "%s: a matrix of %lld x %lld has too many rows or columns.", op,
              static_cast<long long>(rows), static_cast<long long>(columns));
}

// A thread's place in its strip. Blocks of one x and all y are strips of the same rows; the blocks of a
// strip take its pieces in turn.
struct StripPlace {
  unsigned run;   // of the row
  unsigned slot;  // which of the rows at once
  bool live;

  __device__ explicit StripPlace(const Strips& s) {
    const unsigned thread = threadIdx.x;
    slot = s.rowsAtOnce > 1 ? thread / s.lanes : unsigned(thread >= s.lanes);
    run = blockIdx.y * s.lanes + (thread - slot * s.lanes);
    live = slot < s.rowsAtOnce && run < s.runs;
  }
};

// The rows of a piece that a thread has.
template <int kRows>
struct StripPiece {
  int64_t at[kRows];  // where the thread's runs begin; 0 outside of the matrix
  bool inside[kRows];

  __device__ StripPiece(const Strips& s, const StripPlace& place, unsigned piece) {
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      const unsigned row = rowOf(s, place, piece, j);
      inside[j] = place.live && row < s.rows;
      at[j] = inside[j] ? int64_t(uint64_t(row) * s.columns + place.run * kRun) : 0;
    }
  }
  static __device__ unsigned rowOf(const Strips& s, const StripPlace& place, unsigned piece,
                                   unsigned j) {
    return (piece * kRows + j) * s.rowsAtOnce + place.slot;
  }

  // The group that the thread answers for, in a matrix whose groups are kRows runs; -1: none.
  static __device__ int64_t ownGroup(const Strips& s, const StripPlace& place, unsigned piece) {
    const unsigned row = rowOf(s, place, piece, threadIdx.x % kRows);
    if (!place.live || row >= s.rows) return -1;
    return int64_t(uint64_t(row) * (s.runs / kRows) + place.run / kRows);
  }
};

// ---------------------------------------------------------------- launch

// Waits for the kernel before this one, and lets the next one start.
__device__ inline void awaitLastKernel() {
  waitForKernelBefore();
  letNextKernelStart();
}

template <class Call>
cudaError_t launchStrips(aq_queue* queue, void (*kernel)(Call), dim3 grid, const Call& call) {
  const EarlyLaunch launch(queue, grid, kStripThreads);
  return cudaLaunchKernelEx(&launch.config, kernel, call);
}

// ---------------------------------------------------------------- runs in memory

// A run as it lies in memory. kWide: it is aligned, and whole.
template <class S, bool kWide>
struct StoredRun {
  static constexpr bool kInWords = kWide && kIsShort<S>;
  std::conditional_t<kInWords, uint4, Run<S>> data;

  // The first `count` numbers, zeros behind; all of them where kWide.
  __device__ void load(const S* from, int count) {
    if constexpr (kInWords) {
      data = __ldcs(reinterpret_cast<const uint4*>(from));  // read once
    } else if constexpr (kWide) {
      data = loadRun<S, kRun>(from, 0);
    } else {
#pragma unroll
      for (int e = 0; e < kRun; e++) data.lane[e] = e < count ? from[e] : S(0.0f);
    }
  }
  __device__ void keepIf(bool isKept) {
    if constexpr (kInWords) {
      data.x = isKept ? data.x : 0;
      data.y = isKept ? data.y : 0;
      data.z = isKept ? data.z : 0;
      data.w = isKept ? data.w : 0;
    } else {
#pragma unroll
      for (int e = 0; e < kRun; e++) data.lane[e] = isKept ? data.lane[e] : S(0.0f);
    }
  }
  __device__ void get(Wide<S> (&x)[kRun]) const {
    if constexpr (kInWords) {
      const uint32_t words[] = {data.x, data.y, data.z, data.w};
#pragma unroll
      for (int w = 0; w < kRun / 2; w++) {
        if constexpr (std::is_same_v<S, __half>) {
          __half2 pair;
          memcpy(&pair, &words[w], sizeof pair);
          const float2 both = __half22float2(pair);
          x[2 * w] = both.x;
          x[2 * w + 1] = both.y;
        } else {
          x[2 * w] = __uint_as_float(words[w] << 16);
          x[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
        }
      }
    } else {
#pragma unroll
      for (int e = 0; e < kRun; e++) x[e] = Wide<S>(data.lane[e]);
    }
  }
};

// Stores a run of numbers of E, rounded from those of T.
template <bool kWide, class E, class T>
__device__ inline void storeRun(E* data, const Run<T>& x) {
  constexpr int kStep = kRun < kVecWidth<E> ? kRun : kVecWidth<E>;
  Run<E> y;
  if constexpr (std::is_same_v<E, T>) {
    y = x;
  } else if constexpr (kIsShort<E> && std::is_same_v<T, float>) {
    y = narrow<E>(x);
  } else {
#pragma unroll
    for (int e = 0; e < kRun; e++) y.lane[e] = static_cast<E>(x.lane[e]);
  }
  if constexpr (kWide) {
#pragma unroll
    for (int part = 0; part < kRun / kStep; part++) {
      Vec<E, kStep> piece;
#pragma unroll
      for (int e = 0; e < kStep; e++) piece.lane[e] = y.lane[part * kStep + e];
      storeVec(data, part, piece);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kRun; e++) data[e] = y.lane[e];
  }
}

// Runs of a thread's rows. Outside of the matrix they are some of its numbers where kWide, else zeros.
template <class S, int kRows, bool kWide>
struct StripRuns {
  StoredRun<S, kWide> row[kRows];

  __device__ void load(const S* data, const Strips& s, const StripPlace& place,
                       const StripPiece<kRows>& piece) {
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      const int64_t left = piece.inside[j] ? s.columns - int64_t(place.run) * kRun : 0;
      row[j].load(data + piece.at[j], left < kRun ? int(left) : kRun);
    }
  }
  __device__ void clearOutside(const StripPiece<kRows>& piece) {
#pragma unroll
    for (int j = 0; j < kRows; j++) row[j].keepIf(piece.inside[j]);
  }
};

// ---------------------------------------------------------------- factors

// Of the rows and columns, which may be absent.
template <class T>
struct Factors {
  const T* rows;
  const T* columns;

  __host__ __device__ bool any() const { return rows || columns; }

  template <int kRows>
  __device__ void load(const Strips& s, const StripPlace& place, unsigned piece,
                       T (&r)[kRows]) const {
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      r[j] = T(1);
      const unsigned row = StripPiece<kRows>::rowOf(s, place, piece, j);
      if (rows && row < s.rows) r[j] = rows[row];
    }
  }
  template <bool kWide>
  __device__ Run<T> run(const Strips& s, const StripPlace& place) const {
    Run<T> c;
#pragma unroll
    for (int e = 0; e < kRun; e++) c.lane[e] = T(1);
    if (!columns || !place.live) return c;
    const int64_t first = int64_t(place.run) * kRun;
    if constexpr (kWide) {
      return loadRun<T, kRun>(columns + first, 0);
    } else {
#pragma unroll
      for (int e = 0; e < kRun; e++) {
        if (first + e < s.columns) c.lane[e] = columns[first + e];
      }
      return c;
    }
  }
};

// The matrix times its factors where kScaled, and the largest magnitude of each run; NaN where it has
// one.
template <bool kScaled, class S, int kRows, bool kWide>
__device__ inline void scaleRuns(const StripRuns<S, kRows, kWide>& x, const Wide<S> (&r)[kRows],
                                 const Run<Wide<S>>& c, Wide<S> (&y)[kRows][kRun],
                                 Wide<S> (&largest)[kRows]) {
#pragma unroll
  for (int j = 0; j < kRows; j++) {
    x.row[j].get(y[j]);
    largest[j] = 0;
#pragma unroll
    for (int e = 0; e < kRun; e++) {
      if constexpr (kScaled) y[j][e] = mulRn(mulRn(r[j], y[j][e]), c.lane[e]);
      largest[j] = maxOrNaN(largest[j], fabs(y[j][e]));
    }
  }
}

// ---------------------------------------------------------------- neighbours

// Of values[j] of kLanes neighbours what `join` makes of them, to the neighbour whose number is j.
template <int kLanes, class T, class Join>
__device__ inline T joinNeighbours(const T (&values)[kLanes], Join&& join) {
  constexpr int kHalf = kLanes / 2;
  const bool isUpper = threadIdx.x & kHalf;
  T half[kHalf];
#pragma unroll
  for (int i = 0; i < kHalf; i++) {
    const T kept = isUpper ? values[kHalf + i] : values[i];
    const T given = isUpper ? values[i] : values[kHalf + i];
    half[i] = join(kept, __shfl_xor_sync(kAllLanes, given, kHalf));
  }
  if constexpr (kHalf == 1)
    return half[0];
  else
    return joinNeighbours<kHalf>(half, join);
}

// That of the group that neighbour j answers for.
template <int kLanes, class T>
__device__ inline T ofNeighbour(T own, int j) {
  return __shfl_sync(kAllLanes, own, j, kLanes);
}

}  // namespace aq::cuda
