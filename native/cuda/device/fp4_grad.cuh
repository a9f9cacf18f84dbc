// fp4_grad.cuh: a call of fp4_grad, and the sums over rows, columns and everything that blocks leave.
#pragma once
#include <cstdint>

#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/fp4_strips.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/stored.cuh"

namespace aq::cuda {

// What is wanted besides gradients of logits and offsets: nothing, or those of the matrix and of its
// factors.
enum class Fp4Wants { kLearned, kMatrix };

template <class S>
struct Fp4Grad {
  using T = Wide<S>;
  using G = GradientOf<S>;
  const S* x;
  const T* scale;
  const T* g;  // null: 1
  const G* grad;
  const T* clip;  // null: none
  const T* v;     // null: none
  Factors<T> factors;
  Strips strips;
  bool isSpent;      // nothing looks at grad afterwards
  bool isBeside;     // the pass in front (passes.h)
  G* gx;             // or null
  G* gv;             // with v
  T* groupClipGrad;  // [M, G], or null
  double* parts;     // [blocks], for one logit, or null
  T* oneClipGrad;    // with parts
  uint32_t* ticket;
  T* rowParts;  // [M, partsOfRow], or null
  int partsOfRow;
  T* columnParts;  // [blocks of a strip, K], or null

  // Else a part of a row's sum is one group's.
  __host__ __device__ bool hasWarpParts() const { return strips.lanes % kWarp == 0; }
};

// What a thread knows of the group that it answers for, and of its rows.
template <class S, int kRows, bool kScaled>
struct GradGroup {
  using T = Wide<S>;
  int64_t index;  // -1: there is none
  T scale, logit, r[kRows];

  __device__ void load(const Fp4Grad<S>& a, const StripPlace& place, unsigned piece) {
    index = StripPiece<kRows>::ownGroup(a.strips, place, piece);
    scale = index >= 0 ? a.scale[index] : T(1);
    logit = a.clip && index >= 0 ? a.clip[a.parts ? 0 : index] : T(0);
    if constexpr (kScaled) a.factors.load(a.strips, place, piece, r);
  }
};

// Runs of x and grad, short ones, of a block's next pieces on their way to shared memory. A thread reads
// only what it copied itself, so no barrier is needed.
template <class S, int kRows>
class RunsAhead {
 public:
  using G = GradientOf<S>;
  static constexpr int kStages = 8 / kRows;
  static constexpr int kWords = kStages * kRows * 2 * kStripThreads;

  __device__ RunsAhead(const Fp4Grad<S>& a, const StripPlace& place, uint4* memory)
      : a_(a), place_(place), own_(memory + threadIdx.x), next_(blockIdx.x) {
#pragma unroll
    for (int i = 0; i + 1 < kStages; i++) start();
  }

  // Those of the next piece.
  __device__ void take(StripRuns<S, kRows, true>& x, StripRuns<G, kRows, true>& grad) {
    const unsigned stage = (stage_ + 1) % kStages;
    start();
    waitCopies<kStages - 1>();
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      x.row[j].data = *at(stage, j, 0);
      grad.row[j].data = *at(stage, j, 1);
    }
  }

 private:
  __device__ uint4* at(unsigned stage, int j, int which) const {
    return own_ + ((stage * kRows + unsigned(j)) * 2 + unsigned(which)) * kStripThreads;
  }
  __device__ void start() {
    const StripPiece<kRows> piece(a_.strips, place_, next_);
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      if (!piece.inside[j]) continue;
      copyAsync16(sharedAddress(at(stage_, j, 0)), a_.x + piece.at[j]);
      copyAsync16(sharedAddress(at(stage_, j, 1)), a_.grad + piece.at[j]);
    }
    commitCopies();
    next_ += gridDim.x;
    stage_ = (stage_ + 1) % kStages;
  }

  const Fp4Grad<S>& a_;
  const StripPlace& place_;
  uint4* own_;
  unsigned next_;       // piece that is copied next
  unsigned stage_ = 0;  // where it goes
};

// Leaves the sums of a block's columns.
template <class S>
__device__ inline void storeColumns(const Fp4Grad<S>& a, const StripPlace& place,
                                    Run<Wide<S>> sums) {
  using T = Wide<S>;
  if (a.strips.rowsAtOnce > 1) {
    __shared__ T all[kRun][kStripThreads];
#pragma unroll
    for (int e = 0; e < kRun; e++) all[e][threadIdx.x] = sums.lane[e];
    __syncthreads();
    if (place.slot > 0) return;
    for (unsigned slot = 1; slot < a.strips.rowsAtOnce; slot++) {
#pragma unroll
      for (int e = 0; e < kRun; e++) sums.lane[e] += all[e][slot * a.strips.lanes + threadIdx.x];
    }
  }
  if (!place.live) return;
  T* const to = a.columnParts + int64_t(blockIdx.x) * a.strips.columns;
  storeRun<true>(to + int64_t(place.run) * kRun, sums);
}

// Of one logit: what the blocks found, added up by the last one.
template <class S>
__device__ inline void addLogitParts(const Fp4Grad<S>& a, double sum) {
  sum = rowSum<kStripThreads>(sum);
  if (!isLastBlock(a.ticket, a.parts, sum)) return;
  sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x * gridDim.y; i += kStripThreads) sum += a.parts[i];
  sum = rowSum<kStripThreads>(sum);
  const double f = clipFactor(a.clip[0]);
  if (threadIdx.x == 0) *a.oneClipGrad = static_cast<Wide<S>>(sum * (f * (1 - f)));
}

// Leaves a row's part of the gradient of its factor. `sum` is of the group that the thread answers
// for.
template <class S, int kRows>
__device__ inline void storeRowPart(const Fp4Grad<S>& a, const StripPlace& place, unsigned piece,
                                    int64_t group, Wide<S> sum) {
  if (!a.hasWarpParts()) {
    if (group >= 0) a.rowParts[group] = sum;
    return;
  }
#pragma unroll
  for (int away = kRows; away < kWarp; away *= 2) sum += __shfl_xor_sync(kAllLanes, sum, away);
  const unsigned own = threadIdx.x % kWarp;
  const unsigned row = StripPiece<kRows>::rowOf(a.strips, place, piece, own);
  if (own < kRows && place.slot < a.strips.rowsAtOnce && row < a.strips.rows)
    a.rowParts[int64_t(row) * a.partsOfRow + place.run / kWarp] = sum;
}

// A warp adds the parts of a row up.
template <class T>
__global__ __launch_bounds__(kStripThreads) void addRowParts(const T* parts, int count,
                                                             int64_t rows, T* sums) {
  const int64_t row = int64_t(blockIdx.x) * (kStripThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  T sum = 0;
  for (int p = int(threadIdx.x) % kWarp; p < count; p += kWarp) sum += parts[row * count + p];
  sum = warpSum(sum);
  if (threadIdx.x % kWarp == 0) sums[row] = sum;
}

}  // namespace aq::cuda
