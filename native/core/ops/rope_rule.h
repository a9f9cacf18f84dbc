// rope_rule.h: what is checked of the inputs of rope and of the ops that have its grids too.
#pragma once
#include "native/core/op.h"

namespace aq {

// Input 0 has rows of `heads` heads, inputs 1 and 2 their tables.
inline void checkRope(const Infer& in, int32_t heads) {
  in.range("heads", heads, 1, 1 << 20);
  in.same(1, 2);
  in.rank(1, 2);
  const Shape& table = in.shape(1);
  if (in.cols(0) != int64_t(heads) * 2 * table[1]) {
    in.fail(AQ_SHAPE, "x %s has rows of %lld, %d heads with a table %s need %lld",
            toString(in.shape(0)).c_str(), static_cast<long long>(in.cols(0)), heads,
            toString(table).c_str(), static_cast<long long>(2 * heads * table[1]));
  }
  if (table[0] < 1 || in.rows(0) % table[0] != 0) {
    in.fail(AQ_SHAPE, "%lld rows of x are not whole sequences of %lld positions",
            static_cast<long long>(in.rows(0)), static_cast<long long>(table[0]));
  }
}

}  // namespace aq
