// int4_prefill: the product of int4_matmul for so many rows of x that the matrix units are the limit,
// on Hopper (sm_90a): y = x W^T + bias.
//
// Math      as int4_batch.cu.
// Layout    tiles of 128 rows of W and 256 tokens. Two warpgroups multiply, each 64 rows, with W as the
//           operand that they unpack in registers: so a weight is unpacked once per 256 tokens, and
//           shared memory is read once per 64 rows, half of what it gives. A warp brings codes and x.
//           Two blocks of a cluster have the same tokens, and each brings half of x to both. Blocks
//           stay and take tiles in turn, so that the next tile's copies run while one is written.
// Cost      2 M O I flop; 19 instructions per 8 weights and 256 tokens, beside the matrix units.
// Roofline  8192 x 8192, 2048 tokens: 278 us at 989 TFLOP/s (H100 SXM data sheet).
// Versions  v1 64-row runs of both 128 tokens and 256 rows, copies of 16 bytes: 502 us for 2048 tokens
//           (H100 80GB HBM3, in a CUDA graph; cuBLAS on bf16 weights 345). v2 this tile, one bulk copy
//           for each row tile: 446 us. v3 (this) one tensor copy, operands of 16 columns at a time:
//           364 us; without the scales it would take 343.
// Numerics  code - zero is exact; times the scale rounds once, as expand does.
#include "native/cuda/device/int4_prefill_tiles.cuh"

namespace aq::cuda::int4 {

int64_t prefillSteps(const aq_queue* queue, int64_t rows, const Weights& w) {
  return prefillStepsOf<Format::kInt4>(queue, rows, w);
}

int32_t multiplyPrefill(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                        const Result& y, aq_error* err) {
  const Batch job = {w, x, y, 1, false};
  if (math == Math::kBf16) return launchPrefill<Format::kInt4, __nv_bfloat16>(queue, job, err);
  return launchPrefill<Format::kInt4, __half>(queue, job, err);
}

}  // namespace aq::cuda::int4
