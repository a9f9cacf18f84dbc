// int4_small: the product of int4_matmul for few rows of x (decoding): y = x W^T + bias in one pass
// over the packed weights.
//
// Math      y_mo = sum over groups of scale_og sum over k in the group of (code_ok - zero_og) x_mk,
//           the inner sum by the matrix units in f32; integer: x_mk = (c_mk - z_m) s_m, and sum (code
//           - zero)(c - z) = sum code c - z sum code - zero sum c + zero z n, exact in i32.
// Layout    a block has 2 to 12 row tiles of W, as many as let one block a multiprocessor have them
//           all where that is possible, and a share of the columns; its warps, in two sets where a
//           warp's sums would not do for all the rows, take pieces of 64 or 128 columns in turn, so
//           that they read neighbouring memory. Every warp has a ring of stages in shared memory,
//           filled by 16-byte asynchronous copies and never shared: no barrier stands in the loop.
//           Codes lie in the order of the operands. W is the 16-row operand and x the 8-column one,
//           so that 1 to 8 rows of x cost one instruction. Warps are summed through shared memory,
//           blocks that share rows through that of their cluster (before sm_90: through scratch).
//           On sm_90 a block for up to 8 rows of x has its multiprocessor to itself.
// Cost      reads each weight once: O I / 2 bytes of codes, 3 per row and group; x from L2.
// Roofline  8192 x 8192, groups of 128, 1 row: 35.1 MB -> 10.5 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 one block per multiprocessor, deeper rings, a subtraction per weight. Measured on an
//           H100 80GB HBM3, weights rotated, in a CUDA graph: 16.5 us for 1 row, 17.0 for 8, 18.1 for
//           16 (72, 70 and 66 % of the bandwidth of a copy; cuBLAS on bf16 weights 47.5, 48.1, 48.4).
//           v2 two blocks, the next kernel let in at the start: 16.8, 17.6, 19.8, because it then
//           brings its first weights too early to fill the gap between the two. v3 lets it in when
//           the last loads are under way: 14.9, 15.4. v4 bias loaded before the products (0.8
//           us where there is one), and blocks of as many rows as leave one for a multiprocessor:
//           14.5 and 15.2; 4096 x 4096 5.7 us instead of 6.5, 12288 x 4096 10.5 instead of 14.5,
//           11008 x 4096 10.6 instead of 14.7. Tried: weights into the ring before the kernel in
//           front has ended (nothing, as they are in L2 by then), twice as many bytes asked for ahead
//           (21 us for 8192 x 8192). v5 (this), measured in the chain of a 7B block's products: no
//           two blocks of a kernel on one multiprocessor, where the first ones of the next kernel
//           went that found room while the last of this one ran: 51.8 us instead of 65.0. The
//           places of a lane's copies found once. With weights in L2 products took as long, so that
//           instructions are the limit: pieces of 128 columns, and 22016 x 4096 in one round of
//           blocks of 11 row tiles (20.5 us instead of 24.4): 49.2. Tried: sixteen warps a block
//           (52.6), even shares for all 132 multiprocessors (52.7), nothing to L2 before the kernel
//           in front has ended (53.0), weights of the next product brought to L2 by the kernels in
//           front of it, 4 to 24 MB (0.3 us of a block's 65).
// Numerics  codes enter the product as whole numbers, exact; scales multiply f32 sums of 32, 64
//           or 128 products. Sums of warps and blocks are added in a fixed order.
#include "native/cuda/device/int4_small.cuh"

namespace aq::cuda::int4 {

int32_t multiplySmall(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err) {
  if (w.format != Format::kInt4) return multiplySmallFloats(queue, math, x, w, y, err);
  const Task task = {w, x, y, nullptr, 1, 1};
  switch (math) {
    case Math::kBf16:
      return launchSmallFor<Format::kInt4, Math::kBf16>(queue, task, err);
    case Math::kF16:
      return launchSmallFor<Format::kInt4, Math::kF16>(queue, task, err);
    default:
      return launchSmallFor<Format::kInt4, Math::kInteger>(queue, task, err);
  }
}

}  // namespace aq::cuda::int4
