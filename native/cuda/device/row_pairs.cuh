// row_pairs.cuh: two matrices of one shape read row by row, every thread the same columns of each
// row, with the next rows on their way to shared memory. Registers so hold one row, however many
// are under way, and short numbers are widened only when it is their turn.
#pragma once
#include <cstdint>

#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

// kOwn vectors of kVec numbers, kLanes vectors apart, of a row of a and of b. A thread reads only
// what it copied itself, so no barrier is needed. Single numbers (kVec 1) are read when they are
// asked for.
template <class A, class B, int kVec, int kOwn, int kLanes, int kThreads>
class RowPairs {
 public:
  static constexpr bool kInBackground = kVec > 1;
  static constexpr int kBytes = 256;  // of a thread: what is on its way
  static constexpr int kAhead = kBytes / (2 * 16 * kOwn) - 1;
  static constexpr int kSharedBytes = kBytes * kThreads;

  struct Part {
    Vec<A, kVec> a[kOwn];
    Vec<B, kVec> b[kOwn];
  };

  // Rows of perRow vectors; the thread begins at vector k0 of row `begin` and goes on in steps of
  // `step` rows, up to `end`. `memory`: kSharedBytes of the block, 16-byte aligned.
  __device__ RowPairs(const A* a, const B* b, int64_t perRow, int64_t k0, int64_t begin, int step,
                      int64_t end, void* memory)
      : a_(a),
        b_(b),
        perRow_(perRow),
        k0_(k0),
        row_(begin),
        step_(step),
        end_(end),
        own_(static_cast<uint4*>(memory) + threadIdx.x) {
    if constexpr (kInBackground) {
#pragma unroll
      for (int i = 0; i < kAhead; i++) copy(i);
    }
  }

  // The next row's; zero beyond the row.
  __device__ Part next() {
    Part part = {};
    if constexpr (kInBackground) {
      waitCopies<kAhead - 1>();
#pragma unroll
      for (int v = 0; v < kOwn; v++) {
        if (k0_ + v * kLanes >= perRow_) continue;
        const uint4* const from = place(slot_, v);
        part.a[v] = *reinterpret_cast<const Vec<A, kVec>*>(from);
        part.b[v] = *reinterpret_cast<const Vec<B, kVec>*>(from + kThreads);
      }
      copy(slot_ == 0 ? kAhead : slot_ - 1);
      slot_ = slot_ == kAhead ? 0 : slot_ + 1;
    } else {
#pragma unroll
      for (int v = 0; v < kOwn; v++) {
        const int64_t k = k0_ + v * kLanes;
        if (k >= perRow_) continue;
        part.a[v] = loadVec<A, kVec>(a_, row_ * perRow_ + k);
        part.b[v] = loadVec<B, kVec>(b_, row_ * perRow_ + k);
      }
      row_ += step_;
    }
    return part;
  }

 private:
  __device__ uint4* place(int slot, int v) const {
    return own_ + (slot * kOwn + v) * (2 * kThreads);
  }
  __device__ void copy(int slot) {
#pragma unroll
    for (int v = 0; v < kOwn; v++) {
      const int64_t k = k0_ + v * kLanes, at = row_ * perRow_ + k;
      if (row_ >= end_ || k >= perRow_) continue;
      copyAsync16(sharedAddress(place(slot, v)), reinterpret_cast<const uint4*>(a_) + at);
      copyAsync16(sharedAddress(place(slot, v) + kThreads),
                  reinterpret_cast<const uint4*>(b_) + at);
    }
    commitCopies();
    row_ += step_;
  }

  const A* a_;
  const B* b_;
  int64_t perRow_, k0_, row_;  // the row that is copied or read next
  int step_;
  int64_t end_;
  uint4* own_;
  int slot_ = 0;
};

}  // namespace aq::cuda
