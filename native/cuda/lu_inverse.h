// lu_inverse.h: what the files of the op share. lu_inverse.cu has the op and the matrices that one
// block inverts, lu_inverse_large.cu larger ones, lu_inverse_newton.cu a quicker way for those of
// them that are nearly diagonal or have a start, lu_inverse_pivot.cu what needs pivots.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Matrices up to this size are inverted by one block each.
inline constexpr int32_t kLuBlockSize = 128;

// Estimates of |I - A X|_F / sqrt(n) up to which a result is taken and the next way not tried. Far
// below the 1e-5 that is promised: an estimate from few probes may be several times too small.
inline constexpr float kLuBlockLimit = 1e-6f, kLuLargeLimit = 3e-6f;

// x = a^-1 for `count` matrices [size, size], one after the other.
template <class T>
struct LuBatch {
  const T* a;
  T* x;
  const T* start;  // x0, or null
  int64_t count;
  int32_t size;
  int64_t first = 0;  // number of the first of these matrices in the op's batch, for faults
};

// Larger than kLuBlockSize: by Newton's method or blocked where the result is good, else with
// pivots.
int32_t invertLarge(aq_queue* queue, const LuBatch<float>& batch, aq_error* err);

// Such matrices by Newton's method. `wanted` [count] becomes 0 where x is good, else another
// number: x is then to be computed anew.
int32_t refineInverse(aq_queue* queue, const LuBatch<float>& batch, int32_t* wanted, aq_error* err);
// The scratch that this takes for one matrix.
uint64_t newtonBytes(int32_t size);

// With partial pivoting: a block a matrix up to 256 rows, else the whole device, one after the
// other. Where `wanted` [count] is given, only those whose number there is not 0.
template <class T>
int32_t invertWithPivots(aq_queue* queue, const LuBatch<T>& batch, const int32_t* wanted,
                         aq_error* err);

}  // namespace aq::cuda
