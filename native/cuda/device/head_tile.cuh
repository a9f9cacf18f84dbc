// head_tile.cuh: pieces of the weights of attention heads, kSpan along their length, on their way
// to shared memory: f32 ones through registers, split into two bf16 parts (split_bf16.cuh); short
// ones by copies in the background.
#pragma once
#include <cstdint>

#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/split_bf16.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

inline constexpr int kHeadPad = 8;  // numbers between rows, for the banks (split_bf16.cuh)
// Of a piece along the length: rows of 256 bytes on side 0.
inline constexpr int kSplitSpan = 64;
inline constexpr int kShortSpan = 128;

// Lengths and distances between rows that the pieces can have, so that offsets in one are 32 bits.
inline bool fitsPieces(int64_t length, int64_t ld) {
  return length <= INT32_MAX / 2 && ld <= INT32_MAX / 128;
}

// A piece as it lies in memory: [D, kSpan] of a head [D, L] on side 0, [kSpan, D] of [L, D] on side
// 1, moved by kThreads threads.
template <int kD, int kSide, int kThreads, int kSpan>
struct HeadTile {
  static constexpr int kRows = kSide == 0 ? kD : kSpan, kColumns = kSide == 0 ? kSpan : kD;
  static constexpr int kPitch = kColumns + kHeadPad, kSize = kRows * kPitch;

  // Calls f(i, row, column) for this thread's runs of kRun numbers.
  template <int kRun, class F>
  static __device__ void each(const F& f) {
#pragma unroll
    for (int i = 0; i < kRows * kColumns / kRun / kThreads; i++) {
      const int k = i * kThreads + int(threadIdx.x);
      f(i, k / (kColumns / kRun), k % (kColumns / kRun) * kRun);
    }
  }
  static __device__ bool isInside(int first, int row, int column, int length) {
    return first + (kSide == 0 ? column : row) < length;
  }
  // Where the piece that starts at `first` starts.
  static __device__ int64_t start(int first, int ld) {
    return kSide == 0 ? first : int64_t(first) * ld;
  }
};

// f32 pieces: loaded to registers, and split when they are stored. Outside the length are zeros.
template <int kD, int kSide, int kThreads>
struct SplitTile : HeadTile<kD, kSide, kThreads, kSplitSpan> {
  using Base = HeadTile<kD, kSide, kThreads, kSplitSpan>;
  static constexpr int kLow = Base::kSize;  // from the high parts to the low ones
  static constexpr int kLoads = Base::kRows * Base::kColumns / 4 / kThreads;
  using Registers = Vec<float, 4>[kLoads];

  static __device__ void load(const float* head, int ld, int first, int length, Registers& value) {
    const float* const from = head + Base::start(first, ld);
    Base::template each<4>([&](int i, int row, int column) {
      const bool isInside = Base::isInside(first, row, column, length);
      value[i] = isInside ? loadVec<float, 4>(from + row * ld + column, 0) : Vec<float, 4>{};
    });
  }
  static __device__ void store(const Registers& value, __nv_bfloat16* tile) {
    Base::template each<4>([&](int i, int row, int column) {
      storeSplit(tile + row * Base::kPitch + column, kLow, value[i]);
    });
  }
};

// Pieces of two-byte numbers E: kept whole. What is outside the length is left as it was, or zero
// where kZeros.
template <int kD, int kSide, int kThreads>
struct ShortTile : HeadTile<kD, kSide, kThreads, kShortSpan> {
  using Base = HeadTile<kD, kSide, kThreads, kShortSpan>;

  template <bool kZeros, class E>
  static __device__ void copy(const E* head, int ld, int first, int length, E* tile) {
    const E* const from = head + Base::start(first, ld);
    Base::template each<8>([&](int, int row, int column) {
      E* const to = tile + row * Base::kPitch + column;
      if (Base::isInside(first, row, column, length)) {
        copyAsync16(sharedAddress(to), from + row * ld + column);
      } else if (kZeros) {
        *reinterpret_cast<uint4*>(to) = uint4{};
      }
    });
  }
  template <class E>
  static __device__ void store(const E* tile, E* head, int ld, int first, int length) {
    E* const to = head + Base::start(first, ld);
    Base::template each<8>([&](int, int row, int column) {
      const auto value = loadVec<E, 8>(tile + row * Base::kPitch + column, 0);
      if (Base::isInside(first, row, column, length)) storeVec(to + row * ld + column, 0, value);
    });
  }
};

// The pieces of a group's heads, one head after the other, that the block number `split` of
// `splits` takes, and a place among them. Groups begin at different places, so that at any time all
// of a row is being read somewhere: only some columns of many rows would keep only some of the
// memory's channels busy.
class PieceRange {
 public:
  __device__ PieceRange(int kv, int split, int splits, int perKv, int length, int span)
      : length_(length), span_(span), perHead_((length + span - 1) / span), firstHead_(kv * perKv) {
    const int64_t pieces = int64_t(perHead_) * perKv;
    begin_ = int(pieces * split / splits);
    end_ = int(pieces * (split + 1) / splits);
    left_ = end_ - begin_;
    moveTo(begin_ + (left_ > 0 ? kv % left_ : 0));
  }
  __device__ int count() const { return end_ - begin_; }
  __device__ bool isInside() const { return left_ > 0; }
  __device__ int64_t head() const { return head_; }
  __device__ int first() const { return first_; }  // of the piece along its head
  __device__ void advance() {
    left_--;
    at_++;
    first_ += span_;
    if (at_ == end_) {
      moveTo(begin_);
    } else if (first_ >= length_) {
      first_ = 0;
      head_++;
    }
  }

 private:
  __device__ void moveTo(int piece) {
    at_ = piece;
    head_ = firstHead_ + piece / perHead_;
    first_ = piece % perHead_ * span_;
  }

  int length_, span_, perHead_, firstHead_, begin_, end_, left_, at_, head_, first_;
};

}  // namespace aq::cuda
