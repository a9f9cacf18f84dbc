// head_product.h: head_matmul and its gradient in one pass over the weights, for heads of 64 or 128
// numbers on tensor cores. What does not suit is left to the caller, with *taken false.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

// Heads of a weight: [size, length] each on side 0, [length, size] on side 1.
struct HeadLayout {
  int32_t side;
  int64_t heads, kvHeads, size, length;
  int64_t ld;        // numbers between rows
  int64_t headStep;  // and between heads

  HeadLayout(int64_t count, int32_t side_, int64_t heads_, int64_t kvHeads_, int64_t size_)
      : side(side_),
        heads(heads_),
        kvHeads(kvHeads_),
        size(size_),
        length(count / (heads_ * size_)),
        ld(side_ == 0 ? length : heads_ * size_),
        headStep(side_ == 0 ? size_ * length : size_) {}

  int64_t perKv() const { return heads / kvHeads; }
  int64_t pieces(int64_t span) const { return (length + span - 1) / span; }  // of a head
};

// y_h = op(m) w_h (side 0) or w_h op(m) (side 1).
int32_t headProduct(aq_queue* queue, const HeadLayout& layout, const float* w, const float* m,
                    bool transpose, float* y, bool* taken, aq_error* err);

// The same of w and y of `dtype`, BF16 or F16.
int32_t headProductShort(aq_queue* queue, const HeadLayout& layout, int32_t dtype, const void* w,
                         const float* m, bool transpose, void* y, bool* taken, aq_error* err);

// gm = sum over the group of a_h b_hT (side 0) or a_hT b_h (side 1), added to gm if `accumulate`.
int32_t headProductGrad(aq_queue* queue, const HeadLayout& layout, const float* a, const float* b,
                        float* gm, bool accumulate, bool* taken, aq_error* err);

// The same of a and b that are BF16 or F16, multiplied as BF16.
int32_t headProductGradShort(aq_queue* queue, const HeadLayout& layout, const void* a,
                             int32_t aDtype, const void* b, int32_t bDtype, float* gm,
                             bool accumulate, bool* taken, aq_error* err);

// How many blocks share the pieces of each of `groups`, at most `limit`, where `most` blocks run at
// once and one takes as long to begin and end as for two pieces. It decides the order of sums, so
// it does not look at the device.
inline int64_t blocksOf(int64_t groups, int64_t pieces, int64_t most, int64_t limit) {
  const auto time = [&](int64_t blocks) {
    return (groups * blocks + most - 1) / most * ((pieces + blocks - 1) / blocks + 2);
  };
  int64_t best = 1;
  for (int64_t blocks = 2; blocks <= std::min(limit, pieces); blocks++) {
    if (time(blocks) < time(best)) best = blocks;
  }
  return best;
}

// Sums of one group's matrices, which are added up afterwards.
inline constexpr int64_t kMostSplits = 16;

// gm [count] = (gm where `accumulate`) + the sum of `parts` such runs of numbers, in their order;
// count is a multiple of 4. Both 16-byte aligned.
int32_t addHeadParts(aq_queue* queue, const float* sums, int64_t parts, int64_t count,
                     bool accumulate, float* gm, aq_error* err);

}  // namespace aq::cuda
