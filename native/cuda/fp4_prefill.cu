// fp4_prefill: the product of fp4_matmul for so many rows of x that the matrix units are the limit, on
// Hopper (sm_90a): y = x W^T + bias.
//
// Math      as fp4_batch.cu.
// Layout    int4_prefill.cu's: a weight is unpacked once per 256 tokens.
// Cost      2 M O I flop; 14 instructions per 8 weights and 256 tokens, beside the matrix units.
// Roofline  8192 x 8192, 2048 tokens: 278 us at 989 TFLOP/s (H100 SXM data sheet).
// Versions  v1 341 us for 2048 tokens (H100 80GB HBM3, in a CUDA graph; cuBLAS on bf16 weights 342). v2
//           (this) operands as in fp4_small.cu: 335.
// Numerics  q s is exact in the type of x.
#include "native/cuda/device/int4_prefill_tiles.cuh"

namespace aq::cuda::int4 {

int64_t prefillStepsFloats(const aq_queue* queue, int64_t rows, const Weights& w) {
  return prefillStepsOf<Format::kNvFp4>(queue, rows, w);
}

int32_t multiplyPrefillFloats(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                              const Result& y, aq_error* err) {
  const Batch job = {w, x, y, 1, false};
  if (w.format == Format::kMxFp4)
    return launchPrefill<Format::kMxFp4, __nv_bfloat16>(queue, job, err);
  if (math == Math::kF16) return launchPrefill<Format::kNvFp4, __half>(queue, job, err);
  return launchPrefill<Format::kNvFp4, __nv_bfloat16>(queue, job, err);
}

}  // namespace aq::cuda::int4
