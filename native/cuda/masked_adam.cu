// masked_adam: one AdamW step on the live band of banded matrices, and the dominance projection.
//
// Math      a = p o mask: 1 on the diagonal, sf beside it, 0 for |i-j| > band. g is the gradient of a.
//           For |i-j| <= band: p, m, v <- AdamW(p, g o mask, m, v) as torch does it, and |p| is raised to
//           floor, 0 excepted; then, for each row: off = sum over j != i of |a_ij|; where off > limit
//           |a_ii|, p_ij *= limit |a_ii| / off for j != i. margin = 1 - max off / |a_ii|. Where they are
//           wanted, a and a in bf16 follow.
// Layout    p, g, m, v, a, copy [B, D, D] row-major; a row's live part is [i-band, i+band] cut to the
//           matrix. One warp per row while rows fill the GPU that way, else one block of 256 threads;
//           blocks do not span matrices. 16-byte accesses where D and the addresses allow. A vector of
//           p, m or v that straddles the band's edge is written back with its dead lanes unchanged: no
//           other thread touches it. The row itself: device/masked_row.cuh.
// Cost      reads 4 and writes 3 numbers per live entry, 28 B (f32), with a and copy 34; ~12 flop:
//           bandwidth-bound. The cost follows the band: entries outside are not read. The projection's
//           second pass runs only for rows that break the limit, and finds them in L2. a and copy spare
//           a step gradual_mask of p and of g, and a pass that rounds.
// Roofline  4096 x 4096 f32, full band: 470 MB -> 140 us at 3.35 TB/s (H100 SXM data sheet). Measured
//           on an H100 80GB HBM3, in a graph, on arrays that are not in L2: 175 us = 2.69 TB/s, 92 %
//           of what a plain copy reaches (2.91 TB/s); band 512: 47.5 us, 1.16 times the live share;
//           band 128: 14.7 us, 1.36 times; band 1: 4.7 us, of which 1.5 us are for the margin, from
//           block to block. With a and copy, 570 MB: 227 us, 86 %; 60.8 (1.14 times), 18.9 us (1.35).
// Versions  v1 step, row sums and shrinking as three kernels; v2 fused by row, a launch before and
//           one after it for the margin; v3 one launch, the last block makes the margins: bands 512,
//           128 and 1 in 48.4, 17.6 and 6.0 us; v4 a launch that overlaps the one before and asks for
//           data already, a ticket without fences, the step's constants by two threads; v5 roots and
//           quotients of one instruction and a product: 1 % less; v6 the mask of g, the floor, a and
//           copy (this): nothing more without the latter. Tried: two to four vectors a
//           thread (band 1024 3 % faster, band 128 9 % slower); blocks that stay, with 32 to 256
//           threads a row and the next row on its way while one is summed (full band 172 us, bands
//           512 and 128 49 and 19 us); in v4, margins by a kernel of their own (16.1 us at band 128),
//           blocks of 128 threads, one to four vectors ahead, and a row's last few numbers taken
//           along with its first turn (14.2 us, 47.8 us at band 512); half as many blocks, with two
//           rows a warp, so that the next kernel's find room beside them and ask for their data (17.5
//           us at band 128, 51 us at 512); five blocks a multiprocessor (16.5, 51.7 us); sums of a
//           vector in float (nothing). In v6, three turns on their way past the registers (cp.async):
//           bands 128, 512 and full 14.6, 50.2 and 190 us, with a and copy 17.6, 63.3 and 239; the same
//           in blocks of 512 threads 14.4, 48.5, 180, in five or six blocks a multiprocessor 18.7 and
//           24.4 us at band 128; parts handed over by an exchange instead of a release (nothing).
// Numerics  row sums in double in a fixed order; the maximum over rows by integer comparison of
//           non-negative floats, which no order of blocks changes. A zero diagonal gives margin
//           -infinity. a and copy are, to the byte, what gradual_mask and cast make of p.
#include <cmath>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/device/masked_row.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// Blocks that a multiprocessor is to hold: all rows of a large matrix at once.
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 4 : 2;

// How margins are found.
template <class T>
struct Margins {
  T* margin;           // [count]
  T* worst;            // scratch, [count, blocksEach]: the largest off / |a_ii| of a block's rows
  uint32_t* ticket;    // of the queue
  int32_t count;       // B
  int32_t blocksEach;  // blocks of a matrix
};

// The larger of two non-negative numbers, or the NaN among them.
template <class T>
__device__ T worse(T a, T b) {
  return a > b || a != a ? a : b;
}

// margin[b] from what the blocks of matrix b wrote, by one block: threads share a matrix where there
// are fewer of these.
template <class T>
__device__ void finishMargins(const Margins<T>& x) {
  __shared__ T worst[kRowThreads];
  int32_t share = kRowThreads;
  while (share > 1 && int64_t(share) * x.count > kRowThreads) share /= 2;
  const int32_t matrices = kRowThreads / share, own = threadIdx.x / share;
  for (int32_t first = 0; first < x.count; first += matrices) {
    worst[threadIdx.x] = 0;
    __syncthreads();
    if (first + own < x.count) {
      const T* const parts = x.worst + int64_t(first + own) * x.blocksEach;
      T mine = 0;
#pragma unroll 8
      for (int32_t i = threadIdx.x % share; i < x.blocksEach; i += share) {
        mine = worse(parts[i], mine);
      }
      atomicMaxNonNegative(&worst[own], mine);
    }
    __syncthreads();
    if (threadIdx.x < matrices && first + int32_t(threadIdx.x) < x.count) {
      x.margin[first + threadIdx.x] = 1 - worst[threadIdx.x];
    }
    __syncthreads();
  }
}

template <class T, int kVec, int kLanes>
__global__ __launch_bounds__(kRowThreads,
                             kBlocks<T>) void stepRows(MaskedMatrices<T> x, Margins<T> margins,
                                                       AdamSettings settings, StepControl control,
                                                       double sf, double limit) {
  constexpr int kRowsPerBlock = kRowThreads / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t matrix = blockIdx.x / margins.blocksEach;
  const int32_t i =
      int32_t(blockIdx.x % margins.blocksEach) * kRowsPerBlock + int32_t(threadIdx.x) / kLanes;
  const bool isRow = i < x.size;  // for whole groups of kLanes, as the sums below need

  MaskedRow<T, kVec, kLanes> row(x, matrix, isRow ? i : x.size - 1);
  int32_t k = row.first(lane);
  letNextKernelStart();
  if (isRow) row.announce(k);
  waitForKernelBefore();
  if (isRow) row.load(k);
  const auto [adam, mayChange] = BlockStep<T>::load(settings, control);
  if (!mayChange) {
    for (int32_t b = threadIdx.x; blockIdx.x == 0 && b < x.count; b += kRowThreads) {
      margins.margin[b] = NAN;
    }
    return;
  }
  double ratio = 0;
  if (isRow) {
    RowSums mine;
    while (row.has(k)) {
      row.step(k, adam, mine);
      k += kLanes;
      row.load(k);
    }
    RowSums sums = reduceRow<kLanes>(mine);
    if (limit > 0 && sf * sums.off > limit * sums.diagonal) {
      sums.off = rowSum<kLanes>(row.shrink(lane, T(limit * sums.diagonal / (sf * sums.off))));
    }
    ratio = sums.diagonal == 0 ? INFINITY : sf * sums.off / sums.diagonal;
  }

  __shared__ T ratios[kRowsPerBlock];
  if (lane == 0) ratios[threadIdx.x / kLanes] = T(ratio);
  __syncthreads();
  T worst = 0;
  for (T each : ratios) worst = worse(each, worst);
  if (isLastBlock(margins.ticket, margins.worst, worst)) finishMargins(margins);
}

// Rows that a warp each would have to be on, for the whole GPU to be busy.
int64_t busyRows(const aq_queue* queue) { return int64_t(queue->multiprocessors) * 16; }

template <class T, int kVec>
int32_t launchRows(aq_queue* queue, const MaskedMatrices<T>& x, T* margin,
                   const aq_masked_adam_params& params, const StepControl& control, aq_error* err) {
  // A warp's first turns hold this much of a row; where rows are few, longer ones take a block.
  const int64_t live = x.band < x.size / 2 ? 2 * int64_t(x.band) + 1 : x.size;
  const bool isWarpRow =
      live <= int64_t(kWarp) * kVec || int64_t(x.count) * x.size >= busyRows(queue);
  const int32_t rowsPerBlock = isWarpRow ? kRowThreads / kWarp : 1;
  const int32_t blocksEach = (x.size + rowsPerBlock - 1) / rowsPerBlock;
  const int64_t blocks = int64_t(blocksEach) * x.count;
  Scratch scratch(queue);
  if (scratch.allocate(uint64_t(blocks) * sizeof(T), "masked_adam", err) != AQ_OK) return err->code;
  const Margins<T> margins = {margin, scratch.at<T>(), queue->ticket, x.count, blocksEach};
  const auto run = isWarpRow ? stepRows<T, kVec, kWarp> : stepRows<T, kVec, kRowThreads>;
  const EarlyLaunch launch(queue, dim3(unsigned(blocks)), kRowThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, run, x, margins, AdamSettings::of(params), control,
                                std::fabs(params.sf), params.limit));
  return AQ_OK;
}

// Of matrices without rows: 1.
template <class T>
__global__ __launch_bounds__(kRowThreads) void emptyMargins(T* margin, int64_t count,
                                                            StepControl control) {
  const int64_t b = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (b < count) margin[b] = control.mayChange() ? T(1) : T(NAN);
}

template <class T>
int32_t run(aq_queue* queue, const aq_view* all, const aq_view& margin,
            const aq_masked_adam_params& params, aq_error* err) {
  const StepControl control(all);
  const aq_view* const in = all + StepControl::kInputs;
  const int64_t count = in[0].dim[0], size = in[0].dim[1];
  if (count == 0) return AQ_OK;
  if (count > INT32_MAX || size > INT32_MAX || count * size > INT32_MAX) {
    return fail(err, AQ_SHAPE, "masked_adam: %lld matrices of %lld rows exceed 2^31 - 1 rows.",
                static_cast<long long>(count), static_cast<long long>(size));
  }
  const MaskedMatrices<T> x = {static_cast<T*>(in[0].data),
                               static_cast<const T*>(in[1].data),
                               static_cast<T*>(in[2].data),
                               static_cast<T*>(in[3].data),
                               static_cast<T*>(in[4].data),
                               static_cast<__nv_bfloat16*>(in[5].data),
                               T(params.sf),
                               T(params.floor),
                               int32_t(count),
                               int32_t(size),
                               params.band};
  T* const out = static_cast<T*>(margin.data);
  if (size == 0) {
    const unsigned blocks = unsigned((count + kRowThreads - 1) / kRowThreads);
    emptyMargins<T><<<blocks, kRowThreads, 0, queue->stream>>>(out, count, control);
    LAUNCH_CHECK("masked_adam (no rows)");
    return AQ_OK;
  }
  const bool isWide = size % kVecWidth<T> == 0 && isAligned16(x.p) && isAligned16(x.g) &&
                      isAligned16(x.m) && isAligned16(x.v) && isAligned16(x.a) &&
                      isAligned16(x.copy);
  return isWide ? launchRows<T, kVecWidth<T>>(queue, x, out, params, control, err)
                : launchRows<T, 1>(queue, x, out, params, control, err);
}

}  // namespace

int32_t masked_adam(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_masked_adam_params*>(params);
  return visitFloat(in[StepControl::kInputs].dtype, err,
                    [&]<class T>() { return run<T>(queue, in, out[0], p, err); });
}

}  // namespace aq::cuda
