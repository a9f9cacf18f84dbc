// attention_grad_args.cuh: what the kernels of attention's gradient are given.
//
// With p_ij = e^(scale q_i k_j - lse_i), dp_ij = go_i v_j, delta_i = go_i o_i and
// ds_ij = p_ij (dp_ij - delta_i): gv = pT go, gk = scale dsT q, gq = scale ds k. One kernel adds up
// gk and gv by blocks of keys, one gq by blocks of queries; both rebuild p and dp.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_shape.cuh"

namespace aq::cuda {

// E: of the packed tensors; T: of sums and results.
template <class T, class E>
struct Backward {
  const E *q, *k, *v, *go;  // packed
  const T *lse2, *delta;    // packed: lse log2(e), and go o
  T *gq, *gk, *gv;
  const uint32_t* peak;  // of go, or null: gradientFactor
  AttentionShape shape;
  T power;         // scale log2(e)
  bool isPaired;   // rows of the results take accesses of two numbers
  int32_t blocks;  // of keys or queries, a head
  int32_t parts;   // of a group of query heads: gk and gv are [parts][...] where there are several
};

// The block of keys, and the query heads of its group, that a thread block works on. The first
// keys, which most queries see, come first, and neighbouring blocks have neighbouring heads.
struct KeyPlace {
  int64_t b;
  int h;
  int64_t kvHead, head;  // of the packed tensors; head: the first of `heads` query heads
  int heads;
  int key0;
  int64_t part;  // where this part's gk and gv start

  __device__ KeyPlace(const AttentionShape& shape, int parts, int keys) {
    const unsigned count = unsigned(shape.keyHeads()) * unsigned(parts);
    const unsigned index = blockIdx.x % count;
    key0 = int(blockIdx.x / count) * keys;
    kvHead = index / unsigned(parts);
    b = kvHead / shape.kvHeads;
    h = int(kvHead - b * shape.kvHeads);
    heads = shape.group() / parts;
    const int which = int(index % unsigned(parts));
    head = b * shape.heads + int64_t(h) * shape.group() + which * heads;
    part = which * shape.keyHeads() * shape.tokens * shape.size;
  }
  // Of a key's row in gk and gv.
  __device__ int64_t row(const AttentionShape& shape, int key) const {
    return part + ((b * shape.tokens + key) * shape.kvHeads + h) * shape.size;
  }
};

}  // namespace aq::cuda
