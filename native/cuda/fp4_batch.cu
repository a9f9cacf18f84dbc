// fp4_batch: the product of fp4_matmul for 9 and more rows of x on Hopper (sm_90a): y = x W^T + bias,
// the weights turned into halves in the registers from which the matrix units take them.
//
// Math      y_mo = factor sum over k of (q_ok s_og) x_mk + bias_o, by the matrix units in f32.
// Layout    int4_batch.cu's. Scales come by a tensor copy like codes do, and a warp turns the bytes of
//           its row tile into factors once (device/fp4_decode.cuh). Up to 32 tokens two blocks share a
//           multiprocessor.
// Cost      2 M O I flop; O I / 2 bytes of codes, one for 16 (32) of them, once per tile of tokens; 14
//           instructions per 8 weights to unpack them, beside the matrix units and the copies.
// Roofline  8192 x 8192, NVFP4: 11.3 us for the bytes at 3.35 TB/s; 8.7 us for the flop of 64 tokens at
//           989 TFLOP/s (H100 SXM data sheet).
// Versions  v1 19.2 us for 16 tokens (H100 80GB HBM3, in a CUDA graph; cuBLAS on bf16 weights 48.3). v2
//           operands as in fp4_small.cu, factors a unit ahead, four operands together: 18.1. v3 (this)
//           bias and factor before the sums are there, two blocks of a multiprocessor for 16 tokens:
//           16.4 without bias.
// Numerics  q s is exact in the type of x. Sums of warpgroups and blocks are added in a fixed order.
#include "native/cuda/device/int4_batch_tiles.cuh"

namespace aq::cuda::int4 {

int32_t multiplyBatchFloats(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                            const Result& y, aq_error* err) {
  using Tall = Plan<Format::kNvFp4, 128, 1>;
  if (x.rows > 128 && 10 * prefillStepsFloats(queue, x.rows, w) <
                          11 * splitsOf<__nv_bfloat16, Tall>(queue, x.rows, w).steps)
    return multiplyPrefillFloats(queue, math, x, w, y, err);
  const Batch job = {w, x, y, 1, false};
  if (w.format == Format::kMxFp4)
    return launchBatch<Format::kMxFp4, __nv_bfloat16>(queue, job, err);
  if (math == Math::kF16) return launchBatch<Format::kNvFp4, __half>(queue, job, err);
  return launchBatch<Format::kNvFp4, __nv_bfloat16>(queue, job, err);
}

}  // namespace aq::cuda::int4
