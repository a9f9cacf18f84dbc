// quant_rows.cuh: how the passes of quant_pack read a matrix: rows in rounds of kInFlight vectors a
// thread, the next round's loads under way while this one is worked on.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native/cuda/check.h"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/quant_pack.h"

namespace aq::cuda {

// What there may be of a matrix besides its numbers and its grid: factors of its rows and columns,
// or these and offsets.
enum class Extras { kNone, kFactors, kAll };

inline Extras extrasOf(const QuantOperand& x) {
  return x.offset ? Extras::kAll : x.hasFactors() ? Extras::kFactors : Extras::kNone;
}

// A stored matrix of S; its grid, offsets and factors are of T.
template <class S, class T>
struct QuantMatrix {
  const S* data;
  const T* scale;
  const T* zero;
  const T* offset;
  const T* rowFactor;
  const T* colFactor;
  int64_t rows, cols, group, gridLd;
  T top;
};

template <class S, class T>
QuantMatrix<S, T> quantMatrix(const QuantOperand& x) {
  const int64_t group = x.group > 0 ? x.group : 1;
  return {static_cast<const S*>(x.data),
          static_cast<const T*>(x.scale),
          static_cast<const T*>(x.zero),
          static_cast<const T*>(x.offset),
          static_cast<const T*>(x.rowFactor),
          static_cast<const T*>(x.colFactor),
          x.rows,
          x.cols,
          group,
          (x.cols + group - 1) / group,
          T((1 << x.bits) - 1)};
}

inline constexpr int kInFlight = 4;
inline constexpr int kRowThreads = 128;         // of a block
inline constexpr int64_t kWarpRowLength = 512;  // a shorter row leaves most of a block idle
inline constexpr int kRowVec = 4;               // elements of a vector, where vectors can be used

// What one thread of a row's kLanes reads in one round, kVec elements a vector. What lies outside
// the row is zero. With kVec > 1 a vector lies inside or outside.
template <class S, class T, int kVec, int kLanes, Extras kExtras>
struct QuantRound {
  static constexpr bool kOffset = kExtras == Extras::kAll;
  static constexpr int kSpan = kInFlight * kLanes * kVec;  // columns of a round of all lanes

  Vec<S, kVec> value[kInFlight];
  Vec<T, kVec> offset[kOffset ? kInFlight : 1];

  __device__ void load(const QuantMatrix<S, T>& x, int64_t row, int64_t first) {
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t col = first + u * kLanes * kVec, at = row * x.cols + col;
      const bool inside = col < x.cols;
      value[u] = inside ? once<S>(x.data + at) : Vec<S, kVec>{};
      if constexpr (kOffset)
        offset[u] = inside && x.offset ? once<T>(x.offset + at) : Vec<T, kVec>{};
    }
  }

  // The numbers of vector u, which starts at column `col`, times their factors, and their offsets.
  __device__ void get(const QuantMatrix<S, T>& matrix, T rowFactor, int u, int64_t col,
                      T (&x)[kVec], T (&v)[kVec]) const {
    Vec<T, kVec> factor;
    const bool inColumns = kExtras != Extras::kNone && matrix.colFactor;
    if (inColumns) factor = loadVec<T, kVec>(matrix.colFactor + col, 0);
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      x[e] = T(value[u].lane[e]);
      // In this order, each product rounded, as the scaled matrix would hold it.
      if constexpr (kExtras != Extras::kNone) x[e] = mulRn(rowFactor, x[e]);
      if (inColumns) x[e] = mulRn(x[e], factor.lane[e]);
      if constexpr (kOffset) {
        v[e] = offset[u].lane[e];
      } else {
        v[e] = T(0);
      }
    }
  }

 private:
  // Operands are read once and should not push what the product reads out of L2.
  template <class E>
  static __device__ Vec<E, kVec> once(const E* data) {
    constexpr int kBytes = int(sizeof(Vec<E, kVec>));
    if constexpr (kBytes == 16 || kBytes == 8) {
      using Raw = std::conditional_t<kBytes == 16, float4, float2>;
      const Raw raw = __ldcs(reinterpret_cast<const Raw*>(data));
      Vec<E, kVec> vec;
      memcpy(&vec, &raw, sizeof vec);
      return vec;
    } else {
      return loadVec<E, kVec>(data, 0);
    }
  }
};

// ---------------------------------------------------------------- launch

inline int32_t checkOperand(const QuantOperand& x, aq_error* err) {
  const bool isKnown = x.dtype == AQ_F64 || x.dtype == AQ_F32 || x.dtype == AQ_BF16 ||
                       x.dtype == AQ_F16 || x.isWhole();
  if (!isKnown || (x.isWhole() && x.hasGrid())) {
    return fail(err, AQ_DTYPE,
                "fake_quant_gemm: quantizes f64, f32, bf16 or f16 and takes i8 without a zero, not "
                "dtype %d.",
                x.dtype);
  }
  if (x.rows <= INT32_MAX && x.cols <= INT32_MAX) return AQ_OK;
  return fail(err, AQ_SHAPE,
              "fake_quant_gemm: a matrix of %lld x %lld exceeds 2^31 - 1 rows or columns.",
              static_cast<long long>(x.rows), static_cast<long long>(x.cols));
}

// Calls f with the threads of a row and the number of blocks.
template <class F>
void visitRowLanes(int64_t rows, int64_t cols, F&& f) {
  if (cols <= kWarpRowLength) {
    constexpr int kRowsPerBlock = kRowThreads / kWarp;
    f.template operator()<kWarp>(unsigned((rows + kRowsPerBlock - 1) / kRowsPerBlock));
  } else {
    f.template operator()<kRowThreads>(unsigned(rows));
  }
}

inline bool hasVectors(const QuantOperand& x) {
  const bool inGroups = !x.hasGrid() || x.hasRowGrid() || x.group % kRowVec == 0;
  return inGroups && x.cols % kRowVec == 0 && isAligned16(x.data) && isAligned16(x.offset) &&
         isAligned16(x.colFactor);
}

}  // namespace aq::cuda
