// int4_batch: the product of int4_matmul for 9 and more rows of x on Hopper (sm_90a): y = x W^T +
// bias, the weights turned into halves in the registers from which the matrix units take them.
//
// Math      as int4_small.cu for up to 64 rows: y_mo = sum over groups of scale_og sum over k in the
//           group of (code_ok - zero_og) x_mk, the inner sum by the matrix units in f32. For more:
//           y_mo = sum over k of x_mk w_ok, w = round((code - zero) scale) to the type of x.
// Layout    a block has 64, 128 or 256 rows of W, 16 to 128 tokens and a share of k. A warp brings
//           steps of 4 x 64 rows of codes and what of x they meet by tensor copies, two to a step,
//           many steps ahead. Two or four warpgroups multiply, each 64 rows: W is the left operand,
//           whose fragments in registers are what a 16-byte read of the packed codes unpacks to; so
//           weights never go through shared memory as halves. Every block reads x of its share of k
//           from L2, so that its rows are few where tokens are few (then warpgroups divide k) and
//           many where they are many; each block begins with another part of it. Up to 32 tokens two
//           blocks share a multiprocessor. Blocks that share a tile are a cluster and add their sums
//           through its shared memory. Kernels with more rows still: int4_prefill.cu.
// Cost      2 M O I flop; O I / 2 bytes of codes once per tile of tokens; 11 instructions per 8
//           weights to unpack them (19 above 64 tokens), beside the matrix units and the copies.
// Roofline  8192 x 8192: 10.5 us for the bytes at 3.35 TB/s; 8.7 us for the flop of 64 tokens at 989
//           TFLOP/s (H100 SXM data sheet).
// Versions  v1 weights through shared memory. v2 operands in registers. v3 copies of 16 bytes by a
//           warpgroup: 37.7 us for 64 tokens, 18.8 for 16 with int4_small (H100 80GB HBM3, in a CUDA
//           graph; cuBLAS on bf16 weights 49.2 and 48.4). v4 four warpgroups, one bulk copy for each
//           row tile: 30.3 and 26.8, because a copy takes the warp a hundred cycles to start. v5 one
//           tensor copy for all: 25.5 and 19.1, bound by instructions. v6 scales sums: 23.9 and 16.4.
//           v7 (this) two sets of sums in turn, blocks of 16 tokens that begin with different
//           columns, two blocks up to 32 tokens: 16.2 for 16, 18.2 instead of 20.3 for 32; 4096 x
//           4096 7.3 instead of 8.2 for 16. Tried: two blocks of two or three warpgroups for 8192 x
//           8192 and 16 tokens (16.7, 17.2), different columns for 32 (20.9).
// Numerics  code - zero is exact, and so is the product with it; above 64 tokens times the scale
//           rounds once, as expand does. Sums of warpgroups and blocks are added in a fixed order.
#include "native/cuda/device/int4_batch_tiles.cuh"

namespace aq::cuda::int4 {

namespace {

// Whether the device runs a body of these kernels: a build may lack sm_90a. Only the body needs the
// registers of its sums.
bool isBuilt() {
  static const bool built = [] {
    cudaFuncAttributes attributes = {};
    const auto kernel = batchTiles<__nv_bfloat16, Plan<Format::kInt4, 128, 1>>;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    (void)cudaGetLastError();
    return status == cudaSuccess && attributes.numRegs > 64;
  }();
  return built;
}

}  // namespace

bool fitsBatch(const aq_queue* queue, int64_t rows, const Weights& w) {
  constexpr int64_t kMaxBlocks = 65535;  // of a grid's second dimension
  // Starting takes longer than in multiplySmall, so that few rows need many weights.
  constexpr int64_t kManyTiles = 8192;
  const bool pays =
      rows > kSmallRows || (rows > kFewRows && int64_t(w.tileRows) * w.tiles >= kManyTiles);
  return queue->computeCapability == 90 && pays && w.tiles > 0 &&
         (w.tileRows + 3) / 4 <= kMaxBlocks && isBuilt();
}

int32_t multiplyBatch(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err) {
  if (w.format != Format::kInt4) return multiplyBatchFloats(queue, math, x, w, y, err);
  if (x.rows > 128 &&
      10 * prefillSteps(queue, x.rows, w) <
          11 * splitsOf<__nv_bfloat16, Plan<Format::kInt4, 128, 1>>(queue, x.rows, w).steps)
    return multiplyPrefill(queue, math, x, w, y, err);
  const Batch job = {w, x, y, 1, false};
  if (math == Math::kBf16) return launchBatch<Format::kInt4, __nv_bfloat16>(queue, job, err);
  return launchBatch<Format::kInt4, __half>(queue, job, err);
}

}  // namespace aq::cuda::int4
