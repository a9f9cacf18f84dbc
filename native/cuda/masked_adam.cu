// masked_adam: one AdamW step on the live band of banded matrices, and the dominance projection.
//
// Math      for |i-j| <= band: p, m, v <- AdamW(p, g, m, v) as torch does it; then, for each row of a
//           = p o mask (1 on the diagonal, sf beside it): off = sum over j != i of |a_ij|; where off
//           > limit |a_ii|, p_ij *= limit |a_ii| / off for j != i. margin = 1 - max off / |a_ii|.
// Layout    p, g, m, v [B, D, D] row-major; a row's live part is [i-band, i+band] cut to the matrix.
//           One warp per row while rows fill the GPU that way, else one block of 256 threads; blocks
//           do not span matrices. 16-byte accesses where D and the addresses allow. A vector that
//           straddles the band's edge is written back with its dead lanes unchanged: no other thread
//           touches it.
// Cost      reads 4 and writes 3 numbers per live entry: 28 B (f32), ~12 flop: bandwidth-bound. The
//           cost follows the band: entries outside are not read. The projection's second pass runs
//           only for rows that break the limit, and finds them in L2.
// Roofline  4096 x 4096 f32, full band: 470 MB -> 140 us at 3.35 TB/s (H100 SXM data sheet). Measured
//           on an H100 80GB HBM3, in a graph, on arrays that are not in L2: 175 us = 2.69 TB/s, 92 %
//           of what a plain copy reaches (2.91 TB/s); band 512: 47.4 us, 1.16 times the live share;
//           band 128: 14.6 us, 1.35 times; band 1: 4.7 us, of which 1.7 us are for the margin, from
//           block to block.
// Versions  v1 step, row sums and shrinking as three kernels; v2 fused by row, a launch before and
//           one after it for the margin; v3 one launch, the last block makes the margins: bands 512,
//           128 and 1 in 48.4, 17.6 and 6.0 us; v4 a launch that overlaps the one before and asks for
//           data already, a ticket without fences, the step's constants by two threads; v5 roots and
//           quotients of one instruction and a product (this): 1 % less. Tried: two to four vectors a
//           thread (band 1024 3 % faster, band 128 9 % slower); blocks that stay, with 32 to 256
//           threads a row and the next row on its way while one is summed (full band 172 us, bands
//           512 and 128 49 and 19 us); in v4, margins by a kernel of their own (16.1 us at band 128),
//           blocks of 128 threads, one to four vectors ahead, and a row's last few numbers taken
//           along with its first turn (14.2 us, 47.8 us at band 512); half as many blocks, with two
//           rows a warp, so that the next kernel's find room beside them and ask for their data (17.5
//           us at band 128, 51 us at 512); five blocks a multiprocessor (16.5, 51.7 us); sums of a
//           vector in float (nothing).
// Numerics  row sums in double in a fixed order; the maximum over rows by integer comparison of
//           non-negative floats, which no order of blocks changes. A zero diagonal gives margin
//           -infinity.
#include <cmath>
#include <initializer_list>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/adam.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// 256: enough bytes in flight for full bandwidth, and 8 warp-rows a block.
constexpr int kThreads = 256;
// Vectors of each array that a thread has in flight, and that it asks for before the kernel in front
// of this one is over.
constexpr int kUnroll = 1, kAhead = 2;
// Blocks that a multiprocessor is to hold: all rows of a large matrix at once.
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 4 : 2;

template <class T>
struct Matrices {
  T* p;
  const T* g;
  T* m;
  T* v;
  T* margin;         // [count]
  T* worst;          // scratch, [count, blocksEach]: the largest off / |a_ii| of a block's rows
  uint32_t* ticket;  // of the queue
  int32_t count;     // B
  int32_t size;      // D
  int32_t band;
  int32_t blocksEach;  // blocks of a matrix
};

// What a row's threads learn about it: their part of sum |p_ij| off the diagonal, and |p_ii| (zero
// in all threads but its owner's).
struct RowSums {
  double off = 0, diagonal = 0;
};

template <int kLanes>
__device__ RowSums reduceRow(RowSums mine) {
  return {rowSum<kLanes>(mine.off), rowSum<kLanes>(mine.diagonal)};
}

// The larger of two non-negative numbers, or the NaN among them.
template <class T>
__device__ T worse(T a, T b) {
  return a > b || a != a ? a : b;
}

// The live part of one row, seen by one of the kLanes threads that share it. Vectors are counted from
// the start of the matrices.
template <class T, int kVec, int kLanes>
struct Row {
  const Matrices<T>& x;
  int64_t start;      // of the row
  int32_t low, high;  // first and last live column
  Vec<T, kVec> pk[kUnroll], gk[kUnroll], mk[kUnroll], vk[kUnroll];

  __device__ Row(const Matrices<T>& all, int64_t matrix, int32_t i)
      : x(all), start((matrix * all.size + i) * (all.size / kVec)) {
    low = i > x.band ? i - x.band : 0;
    high = x.size - 1 - i > x.band ? i + x.band : x.size - 1;
  }

  // Brings the first vectors to the L2 cache, where they stay as new as memory is: this is allowed
  // while another kernel still writes them.
  __device__ void announce(int32_t k) const {
#pragma unroll
    for (int u = 0; u < kAhead; u++, k += kLanes) {
      if (k > high / kVec) break;
      for (const T* array : std::initializer_list<const T*>{x.p, x.g, x.m, x.v}) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(array + (start + k) * kVec));
      }
    }
  }

  __device__ void load(int32_t k) {
#pragma unroll
    for (int u = 0; u < kUnroll; u++, k += kLanes) {
      if (k > high / kVec) break;
      pk[u] = loadVec<T, kVec>(x.p, start + k);
      gk[u] = loadVec<T, kVec>(x.g, start + k);
      mk[u] = loadVec<T, kVec>(x.m, start + k);
      vk[u] = loadVec<T, kVec>(x.v, start + k);
    }
  }

  __device__ void step(int32_t k, int32_t i, const AdamStep<T>& adam, RowSums& mine) {
#pragma unroll
    for (int u = 0; u < kUnroll; u++, k += kLanes) {
      if (k > high / kVec) break;
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const int32_t j = k * kVec + e;
        if (j < low || j > high) continue;
        adam.apply(pk[u].lane[e], gk[u].lane[e], mk[u].lane[e], vk[u].lane[e]);
        (j == i ? mine.diagonal : mine.off) += fabs(double(pk[u].lane[e]));
      }
      storeVec(x.p, start + k, pk[u]);
      storeVec(x.m, start + k, mk[u]);
      storeVec(x.v, start + k, vk[u]);
    }
  }

  // Shrinks what stands beside the diagonal, and returns the thread's part of its new sum. The same
  // threads visit the same entries as in `step`, so they see what they have written.
  __device__ double shrink(int lane, int32_t i, T factor) {
    double off = 0;
    for (int32_t k = low / kVec + lane; k <= high / kVec; k += kLanes) {
      Vec<T, kVec> row = loadVec<T, kVec>(x.p, start + k);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const int32_t j = k * kVec + e;
        if (j < low || j > high || j == i) continue;
        row.lane[e] *= factor;
        off += fabs(double(row.lane[e]));
      }
      storeVec(x.p, start + k, row);
    }
    return off;
  }
};

// margin[b] from what the blocks of matrix b wrote, by one block: threads share a matrix where there
// are fewer of these.
template <class T>
__device__ void finishMargins(const Matrices<T>& x) {
  __shared__ T worst[kThreads];
  int32_t share = kThreads;
  while (share > 1 && int64_t(share) * x.count > kThreads) share /= 2;
  const int32_t matrices = kThreads / share, own = threadIdx.x / share;
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
__global__ __launch_bounds__(kThreads, kBlocks<T>) void stepRows(Matrices<T> x,
                                                                 AdamSettings settings,
                                                                 StepControl control, double sf,
                                                                 double limit) {
  constexpr int kRowsPerBlock = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t matrix = blockIdx.x / x.blocksEach;
  const int32_t i =
      int32_t(blockIdx.x % x.blocksEach) * kRowsPerBlock + int32_t(threadIdx.x) / kLanes;
  const bool isRow = i < x.size;  // for whole groups of kLanes, as the sums below need

  Row<T, kVec, kLanes> row(x, matrix, isRow ? i : x.size - 1);
  int32_t k = row.low / kVec + lane;
  letNextKernelStart();
  if (isRow) row.announce(k);
  waitForKernelBefore();
  if (isRow) row.load(k);
  const auto [adam, mayChange] = BlockStep<T>::load(settings, control);
  if (!mayChange) {
    for (int32_t b = threadIdx.x; blockIdx.x == 0 && b < x.count; b += kThreads) x.margin[b] = NAN;
    return;
  }
  double ratio = 0;
  if (isRow) {
    RowSums mine;
    while (k <= row.high / kVec) {
      row.step(k, i, adam, mine);
      k += kLanes * kUnroll;
      row.load(k);
    }
    RowSums sums = reduceRow<kLanes>(mine);
    if (limit > 0 && sf * sums.off > limit * sums.diagonal) {
      sums.off = rowSum<kLanes>(row.shrink(lane, i, T(limit * sums.diagonal / (sf * sums.off))));
    }
    ratio = sums.diagonal == 0 ? INFINITY : sf * sums.off / sums.diagonal;
  }

  __shared__ T ratios[kRowsPerBlock];
  if (lane == 0) ratios[threadIdx.x / kLanes] = T(ratio);
  __syncthreads();
  T worst = 0;
  for (T each : ratios) worst = worse(each, worst);
  if (isLastBlock(x.ticket, x.worst, worst)) finishMargins(x);
}

// Rows that a warp each would have to be on, for the whole GPU to be busy.
int64_t busyRows(const aq_queue* queue) { return int64_t(queue->multiprocessors) * 16; }

template <class T, int kVec>
int32_t launchRows(aq_queue* queue, Matrices<T> x, const aq_masked_adam_params& params,
                   const StepControl& control, aq_error* err) {
  // A warp's first turns hold this much of a row; where rows are few, longer ones take a block.
  const int64_t live = x.band < x.size / 2 ? 2 * int64_t(x.band) + 1 : x.size;
  const bool isWarpRow =
      live <= int64_t(kWarp) * kUnroll * kVec || int64_t(x.count) * x.size >= busyRows(queue);
  const int32_t rowsPerBlock = isWarpRow ? kThreads / kWarp : 1;
  x.blocksEach = (x.size + rowsPerBlock - 1) / rowsPerBlock;
  const int64_t blocks = int64_t(x.blocksEach) * x.count;
  Scratch scratch(queue);
  if (scratch.allocate(uint64_t(blocks) * sizeof(T), "masked_adam", err) != AQ_OK) return err->code;
  x.worst = scratch.at<T>();
  const auto run = isWarpRow ? stepRows<T, kVec, kWarp> : stepRows<T, kVec, kThreads>;
  const EarlyLaunch launch(queue, dim3(unsigned(blocks)), kThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, run, x, AdamSettings::of(params), control,
                                std::fabs(params.sf), params.limit));
  return AQ_OK;
}

// Of matrices without rows: 1.
template <class T>
__global__ __launch_bounds__(kThreads) void emptyMargins(T* margin, int64_t count,
                                                         StepControl control) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
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
  const Matrices<T> x = {static_cast<T*>(in[0].data),
                         static_cast<const T*>(in[1].data),
                         static_cast<T*>(in[2].data),
                         static_cast<T*>(in[3].data),
                         static_cast<T*>(margin.data),
                         nullptr,
                         queue->ticket,
                         int32_t(count),
                         int32_t(size),
                         params.band,
                         0};
  if (size == 0) {
    const unsigned blocks = unsigned((count + kThreads - 1) / kThreads);
    emptyMargins<T><<<blocks, kThreads, 0, queue->stream>>>(x.margin, count, control);
    LAUNCH_CHECK("masked_adam (no rows)");
    return AQ_OK;
  }
  const bool isWide = size % kVecWidth<T> == 0 && isAligned16(x.p) && isAligned16(x.g) &&
                      isAligned16(x.m) && isAligned16(x.v);
  return isWide ? launchRows<T, kVecWidth<T>>(queue, x, params, control, err)
                : launchRows<T, 1>(queue, x, params, control, err);
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
