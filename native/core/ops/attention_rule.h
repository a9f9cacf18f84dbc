// attention_rule.h: the inputs that attention, its gradient and the ops that quantize its result share,
// and what is checked of them.
#pragma once
#include <vector>

#include "native/core/op.h"

namespace aq {

inline std::vector<InputSpec> attentionInputs() {
  return {{"q"},
          {"k"},
          {"v"},
          {"q_scale", kOptional},
          {"q_zero", kOptional},
          {"k_scale", kOptional},
          {"k_zero", kOptional},
          {"v_scale", kOptional},
          {"v_zero", kOptional}};
}

// What a call's shape rule goes on with.
struct AttentionShape {
  int64_t batch, tokens;
  int32_t dtype;
};

// Bytes of `kept`: of q, k and v in 16 bits, heads and sequences widened to what the tiles of a backend
// take.
inline int64_t keptBytes(const AttentionShape& s, int32_t heads, int32_t kvHeads, int64_t size) {
  constexpr int64_t kTokens = 128;
  int64_t width = 32;
  while (width < size) width *= 2;
  return 2 * s.batch * (heads + 2 * kvHeads) * ((s.tokens + kTokens - 1) / kTokens * kTokens) *
         width;
}

template <class P>
void outputKept(Infer& in, const AttentionShape& s, const P& p) {
  in.range("keep", p.keep, 0, 1);
  const int64_t size = in.cols(0) / p.heads;
  in.output(AQ_U8, {p.keep ? keptBytes(s, p.heads, p.kv_heads, size) : 0});
}

// Input i, where it is given.
template <class P>
void checkKept(const Infer& in, int i, const AttentionShape& s, const P& p) {
  if (!in.has(i)) return;
  if (in.dtype(i) != AQ_U8) in.fail(AQ_DTYPE, "kept must be u8");
  in.elements(i, keptBytes(s, p.heads, p.kv_heads, in.cols(0) / p.heads), "as attention gave it");
}

// Checks q, k, v and their grids, inputs 0 to 8.
inline AttentionShape checkAttention(const Infer& in, int32_t heads, int32_t kvHeads,
                                     int32_t bits) {
  const int32_t dtype = in.compute({0, 1, 2, 3, 4, 5, 6, 7, 8});
  in.range("heads", heads, 1, 1 << 20);
  in.range("kv_heads", kvHeads, 1, heads);
  for (int i = 0; i < 3; i++) in.rank(i, 3);
  in.same(1, 2);
  const Shape& q = in.shape(0);
  const Shape& k = in.shape(1);
  if (heads % kvHeads != 0 || q[2] % heads != 0 || k[2] != q[2] / heads * kvHeads || q[0] != k[0] ||
      q[1] != k[1]) {
    in.fail(AQ_SHAPE, "q %s, k %s do not fit %d query and %d kv heads", toString(q).c_str(),
            toString(k).c_str(), heads, kvHeads);
  }
  bool quantized = false;
  for (int i = 0; i < 3; i++) {
    const int scale = 3 + 2 * i;
    if (in.has(scale) != in.has(scale + 1)) {
      in.fail(AQ_ARG, "%s needs both its scale and its zero, or neither",
              i == 0   ? "q"
              : i == 1 ? "k"
                       : "v");
    }
    if (!in.has(scale)) continue;
    quantized = true;
    const int64_t count = q[0] * q[1] * (i == 0 ? heads : kvHeads);
    in.elements(scale, count, "one per token and head");
    in.elements(scale + 1, count, "one per token and head");
  }
  if (quantized) in.range("bits", bits, 1, 8);
  return {q[0], q[1], dtype};
}

}  // namespace aq
