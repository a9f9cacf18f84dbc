// grad_batch.cuh: what a thread holds of a group while fake_quant_grad works on it.
#pragma once
#include <cstdint>

#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// The matrix and what is wanted of it.
template <class S>
struct QuantGrad {
  using T = Wide<S>;
  using G = GradientOf<S>;
  const S* x;
  const G* g;
  const T* v;
  const T* r;  // factors of rows and columns, or null
  const T* c;
  const T* scale;
  const T* zero;
  ClipLogits<T> clip;
  G* gx;  // or null
  T* gy;  // or null: the gradient of r x c
  G* gv;
  T* clipGrad;       // [2, M, G], or of one logit for all groups, or null
  double* partials;  // of the one logit's gradient, one a block; else null
  uint32_t* ticket;  // the queue's (last_block.cuh)
  Groups groups;
  GridRule<T> rule;
  bool isBeside;  // the pass in front (passes.h)

  __device__ bool hasValues() const { return gx || gy; }
};

// A group of the matrix: where it starts, how many vectors it has, its factors.
template <class S, int kVec>
struct GradGroup {
  using T = Wide<S>;
  int64_t begin, vectors;
  T r;
  const T* c;

  __device__ GradGroup(const QuantGrad<S>& a, int64_t group, bool isLive)
      : begin(a.groups.begin(group)),
        vectors(isLive ? a.groups.length(group) / kVec : 0),
        r(a.r ? a.r[a.groups.row(group)] : T(1)),
        c(a.c ? a.c + a.groups.column(group) : nullptr) {}

  // Vector k of it times its factors.
  __device__ Vec<T, kVec> scaled(const Vec<S, kVec>& x, int64_t k) const {
    Vec<T, kVec> y = widen(x);
#pragma unroll
    for (int e = 0; e < kVec; e++) y.lane[e] = mulRn(r, y.lane[e]);
    if (!c) return y;
    const Vec<T, kVec> factor = loadRun<T, kVec>(c, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) y.lane[e] = mulRn(y.lane[e], factor.lane[e]);
    return y;
  }

  __device__ T seed(const QuantGrad<S>& a) const {
    if (!a.rule.published) return T(0);
    const T first = mulRn(r, T(a.x[begin]));
    return c ? mulRn(first, c[0]) : first;
  }
};

// kSize vectors of a group: x, and g, of which what passes to r x c stays.
template <class S, int kVec, int kLanes, int kSize, bool kOffset>
struct Batch {
  using T = Wide<S>;
  using G = GradientOf<S>;
  using Group = GradGroup<S, kVec>;
  Vec<S, kVec> x[kSize];
  Vec<G, kVec> g[kSize];
  Vec<T, kVec> v[kOffset ? kSize : 1];

  // Vectors k, k + kLanes, ...
  __device__ void load(const QuantGrad<S>& a, const Group& group, int64_t k) {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      const int64_t at = k + i * kLanes;
      if (at >= group.vectors) break;
      x[i] = loadVec<S, kVec>(a.x + group.begin, at);
      g[i] = loadVec<G, kVec>(a.g + group.begin, at);
      if constexpr (kOffset) v[i] = a.v ? loadRun<T, kVec>(a.v + group.begin, at) : Vec<T, kVec>{};
    }
  }

  // Adds to the sums, writes gv and leaves in g what passes.
  __device__ void take(const QuantGrad<S>& a, const Group& group, int64_t k,
                       const GradGrid<T>& grid, GroupSums<T>& sums) {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      const int64_t at = k + i * kLanes;
      if (at >= group.vectors) break;
      const Vec<T, kVec> y = group.scaled(x[i], at);
      Vec<T, kVec> passing = widen(g[i]);
      // Adding up before it is sure is quicker where there are few numbers (2048 x 4096 in f32: 43
      // us against 46) and slower where many take the registers (2048 x 11008: 120 against 103).
      if constexpr (sizeof(T) == 8 || kOffset || kSize * kVec > 16) {
        grid.template take<kOffset>(y.lane, passing.lane, v[kOffset ? i : 0].lane, sums);
      } else {
        sums.reach(y.lane);
        grid.pass(y.lane, passing.lane, sums);
      }
      g[i] = narrow<G>(passing);  // g or 0: nothing is rounded
      if constexpr (kOffset) {
        if (!a.gv) continue;
#pragma unroll
        for (int e = 0; e < kVec; e++) passing.lane[e] *= grid.s;
        storeVec(a.gv + group.begin, at, narrow<G>(passing));
      }
    }
  }

  __device__ ExtremeCounts count(const Group& group, int64_t k, const GroupSums<T>& sums) const {
    ExtremeCounts counts;
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      const int64_t at = k + i * kLanes;
      if (at >= group.vectors) break;
      const Vec<T, kVec> y = group.scaled(x[i], at);
#pragma unroll
      for (int e = 0; e < kVec; e++) counts.take(y.lane[e], sums);
    }
    return counts;
  }

  // Writes what passes and, where the thread has extreme elements, what flows through them.
  __device__ void store(const QuantGrad<S>& a, const Group& group, int64_t k, bool isExtreme,
                        const ExtremeShares<T>& shares) const {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      const int64_t at = k + i * kLanes;
      if (at >= group.vectors) break;
      if (!isExtreme && a.gx) {
        storeVec(a.gx + group.begin, at, g[i]);
        continue;
      }
      Vec<T, kVec> value = widen(g[i]);
      if (isExtreme) {
        const Vec<T, kVec> y = group.scaled(x[i], at);
#pragma unroll
        for (int e = 0; e < kVec; e++) value.lane[e] += shares.of(y.lane[e]);
      }
      if (a.gx) storeVec(a.gx + group.begin, at, narrow<G>(value));
      if (a.gy) storeVec(a.gy + group.begin, at, value);
    }
  }
};

}  // namespace aq::cuda
