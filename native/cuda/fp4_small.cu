// fp4_small: the product of fp4_matmul for few rows of x (decoding): y = x W^T + bias in one pass over
// the packed weights.
//
// Math      y_mo = factor sum over k of (q_ok s_og) x_mk + bias_o, by the matrix units in f32.
// Layout    int4_small.cu's, with scales instead of grids: a warp turns the bytes of a piece's scales
//           into factors once (device/fp4_decode.cuh), and every operand is multiplied by its own.
// Cost      reads each weight once: O I / 2 bytes of codes, one for 16 (32) of them; x from L2.
// Roofline  8192 x 8192, NVFP4, 1 row: 37.7 MB -> 11.3 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 17.9 us for 1 row, 18.5 for 8 (H100 80GB HBM3, weights rotated, in a CUDA graph; 71 and
//           69 % of the bandwidth of a copy; cuBLAS on bf16 weights 47.4 and 48.0), bound by what the
//           compiler made of the masks. v2 one instruction for two masks, shifts to the left, starts of
//           copies found once: 15.9 and 16.4. v3 (this) bytes of scales a piece ahead: 15.4 for 1 row.
// Numerics  q s is exact in the type of x. Sums of warps and blocks are added in a fixed order.
#include "native/cuda/device/int4_small.cuh"

namespace aq::cuda::int4 {

int32_t multiplySmallFloats(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                            const Result& y, aq_error* err) {
  const Task task = {w, x, y, nullptr, 1, 1};
  if (w.format == Format::kMxFp4)
    return launchSmallFor<Format::kMxFp4, Math::kBf16>(queue, task, err);
  if (math == Math::kF16) return launchSmallFor<Format::kNvFp4, Math::kF16>(queue, task, err);
  return launchSmallFor<Format::kNvFp4, Math::kBf16>(queue, task, err);
}

}  // namespace aq::cuda::int4
