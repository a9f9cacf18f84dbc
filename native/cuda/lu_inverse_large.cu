// lu_inverse_large: inverses of matrices of more than 128 rows, f32.
//
// Math      nearly diagonal ones by Newton's method (lu_inverse_newton.cu). The others: blocked
//           Gauss-Jordan in place without pivoting, in steps of 128 columns. With k the rows of a
//           step, C = A_:k, R = A_k:, P = A_kk^-1: T = P in the rows k, -C P in the others; A <- (A
//           with rows k set to zero) + T R; A_:k <- T. After the last step A is the inverse.
// Layout    one grid that stays for all steps, two blocks a multiprocessor, with barriers of the
//           grid between phases. The tile (k+1, k+1) is updated first and inverted by its block
//           (lu_tile.cuh) while the others go on, so that P is there when the next step begins. T R
//           runs on the tensor cores with split operands (lu_split.cuh). At the end the residual is
//           estimated (lu_residual.cuh); matrices for which it is too large are marked and inverted
//           with pivoting by the launch that follows, which else ends at once.
// Cost      2 n^3 flop, three times on the tensor cores; every step reads and writes the matrix, 8
//           n^2 bytes, n/128 times.
// Roofline  4096^2: 3 x 137 Gflop, 0.42 ms at the bf16 rate of an H100; 4.3 GB, 1.4 ms at its 3
//           TB/s.
//           Measured there, H100 80GB HBM3, driver 580: 4.2 ms, of 130 us a step; the chain of the
//           next P, 66 us of it for the inverse, takes longer than the update beside it.
// Versions  v1 sums that began with A: residuals ten times these; v2 (this).
// Numerics  P in f32; products as if of 16-bit factors, with f32 sums: residuals of 2e-7 to 1e-6.
//           Which block takes a tile depends on timing, what it computes does not.
#include <cooperative_groups.h>

#include <algorithm>
#include <utility>

#include "native/cuda/check.h"
#include "native/cuda/device/lu_blocked.cuh"
#include "native/cuda/device/lu_residual.cuh"
#include "native/cuda/lu_inverse.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// Scratch of a launch; more matrices are done in several.
constexpr int64_t kScratchBytes = int64_t(256) << 20;

__device__ inline void syncGrid() { cooperative_groups::this_grid().sync(); }

__global__ __launch_bounds__(kLuThreads, 2) void invertBlocked(LuBlocked m, LuCheck check,
                                                               bool isWide) {
  extern __shared__ char shared[];
  bool isAny = false;
  for (int64_t b = threadIdx.x; b < m.count; b += kLuThreads) isAny |= m.isWanted(b);
  if (!__syncthreads_or(isAny)) return;
  if (isWide) {
    startBlocked<4>(m);
  } else {
    startBlocked<2>(m);
  }
  syncGrid();
  for (int64_t b = blockIdx.x; b < m.count; b += gridDim.x) {
    if (m.isWanted(b)) invertDiagonal(m, b, 0, shared);
    __syncthreads();
  }
  for (int step = 0; step < m.blocks; step++) {
    syncGrid();
    makeLeft(m, step, shared);
    syncGrid();
    updateRest(m, step, shared);
  }
  syncGrid();
  check.apply();
  syncGrid();
  check.compare();
  syncGrid();
  check.judge(kLuLargeLimit);
}

int32_t launchBlocked(aq_queue* queue, LuBlocked m, LuCheck check, aq_error* err) {
  const void* const kernel = reinterpret_cast<const void*>(&invertBlocked);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLuSharedBytes));
  int resident = 0;
  CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kLuThreads, kLuSharedBytes));
  if (resident == 0) {
    return fail(err, AQ_UNSUPPORTED,
                "lu_inverse: device %d has less than the %d bytes of shared memory that a block "
                "of this kernel takes; use a GPU of compute capability 8.0 or later.",
                queue->device, kLuSharedBytes);
  }
  // Blocks beyond the tiles of a step would only make its barriers slower.
  const int64_t tiles = m.count * m.blocks * m.blocks;
  const int64_t blocks = std::clamp<int64_t>(tiles, 16, int64_t(resident) * queue->multiprocessors);
  bool isWide = m.n % 4 == 0 && isAligned16(m.a);
  void* args[] = {&m, &check, &isWide};
  CUDA_CHECK(cudaLaunchCooperativeKernel(kernel, dim3(unsigned(blocks)), dim3(kLuThreads), args,
                                         kLuSharedBytes, queue->stream));
  return AQ_OK;
}

struct Sizes {
  int32_t blocks, padded;
  uint64_t states, steps, panels, vectors, errors, copies;

  explicit Sizes(int32_t n, int64_t matrices = 1)
      : blocks((n + kLuBlock - 1) / kLuBlock), padded(blocks * kLuBlock) {
    const auto count = uint64_t(matrices);
    states = scratchBytes(count * 4);
    steps = scratchBytes(uint64_t(blocks) * 4);
    panels = scratchBytes(count * 2 * padded * kLuBlock * 2);
    vectors = scratchBytes(count * n * 16);
    errors = scratchBytes(count * n * 4);
    copies = scratchBytes(count * padded * padded * 4);
  }
  uint64_t total(bool isInPlace) const {
    return states + steps + 5 * panels + vectors + errors + (isInPlace ? 0 : copies);
  }
};

// Those that `wanted` names, in one launch, and the pivoting of what it leaves.
int32_t invertWanted(aq_queue* queue, const LuBatch<float>& batch, const int32_t* wanted,
                     aq_error* err) {
  const Sizes sizes(batch.size, batch.count);
  const bool isInPlace = batch.size == sizes.padded && isAligned16(batch.x);
  Scratch memory(queue);
  if (memory.allocate(sizes.total(isInPlace), "lu_inverse", err) != AQ_OK) return err->code;
  uint64_t used = 0;
  const auto take = [&](uint64_t bytes) { return std::exchange(used, used + bytes); };
  int32_t* const state = memory.at<int32_t>(take(sizes.states));
  LuBlocked m = {};
  m.taken = memory.at<uint32_t>(take(sizes.steps));
  m.left = memory.at<__nv_bfloat16>(take(2 * sizes.panels));
  m.right = memory.at<__nv_bfloat16>(take(2 * sizes.panels));
  m.column = memory.at<__nv_bfloat16>(take(sizes.panels));
  LuCheck check = {};
  check.image = memory.at<float4>(take(sizes.vectors));
  check.error = memory.at<float>(take(sizes.errors));
  m.w = isInPlace ? batch.x : memory.at<float>(take(sizes.copies));
  m.a = check.a = batch.a;
  m.wanted = check.wanted = wanted;
  m.count = check.count = batch.count;
  m.n = check.n = batch.size;
  m.padded = check.pitch = sizes.padded;
  m.blocks = sizes.blocks;
  check.w = m.w;
  check.x = batch.x;
  check.state = state;
  CUDA_CHECK(cudaMemsetAsync(state, 0, sizes.states + sizes.steps, queue->stream));
  if (launchBlocked(queue, m, check, err) != AQ_OK) return err->code;
  return invertWithPivots(queue, batch, state, err);
}

}  // namespace

int32_t invertLarge(aq_queue* queue, const LuBatch<float>& batch, aq_error* err) {
  const uint64_t perMatrix = std::max(newtonBytes(batch.size), Sizes(batch.size).total(false));
  const int64_t part = std::clamp<int64_t>(kScratchBytes / perMatrix, 1, batch.count);
  Scratch memory(queue);
  if (memory.allocate(part * sizeof(int32_t), "lu_inverse", err) != AQ_OK) return err->code;
  int32_t* const wanted = memory.at<int32_t>();
  for (int64_t b = 0; b < batch.count; b += part) {
    const int64_t skip = b * batch.size * batch.size;
    LuBatch<float> some = batch;
    some.a += skip;
    some.x += skip;
    if (some.start) some.start += skip;
    some.first += b;
    some.count = std::min(part, batch.count - b);
    if (refineInverse(queue, some, wanted, err) != AQ_OK) return err->code;
    if (invertWanted(queue, some, wanted, err) != AQ_OK) return err->code;
  }
  return AQ_OK;
}

}  // namespace aq::cuda
