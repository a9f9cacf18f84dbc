// head_product.h: head_matmul and its gradient in one pass over the weights, for heads of 64 or 128
// f32 numbers on tensor cores. What does not suit is left to the caller, with *taken false.
#pragma once
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
};

// y_h = op(m) w_h (side 0) or w_h op(m) (side 1).
int32_t headProduct(aq_queue* queue, const HeadLayout& layout, const float* w, const float* m,
                    bool transpose, float* y, bool* taken, aq_error* err);

// gm = sum over the group of a_h b_hT (side 0) or a_hT b_h (side 1).
int32_t headProductGrad(aq_queue* queue, const HeadLayout& layout, const float* a, const float* b,
                        float* gm, bool* taken, aq_error* err);

}  // namespace aq::cuda
