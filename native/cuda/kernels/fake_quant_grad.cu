// fake_quant_grad: the gradient of learned fake quantization.
//
// Math      device/grid_grad.cuh, as in native/cpu/kernels/fake_quant_grad.h.
// Layout    4 to 256 threads a group by its length (device/group.cuh). x and g of a group of up to
//           12288 numbers (f32: 11264) stay in registers as they lie in memory, so that they are
//           read and gx is written once. Of longer groups gx is written at once, without what flows
//           through the extremes; the threads that hold extreme elements, mostly two, add it
//           afterwards, from L2. Only they count how many there are, too.
//           Short numbers without offsets and factors, and whatever needs no gx, belong to blocks
//           that stay (device/grad_stream.cuh).
//           One logit for all groups: a partial sum a block, then one block adds them up.
//           Kernels start early: they send for their first numbers, as far as L2, before the kernel
//           in front of them is over; beside a pass that they do not depend on they do not wait
//           (passes.h).
// Cost      reads x and g, writes gx: 12 B an element (f32) or 6 B (short x, bf16 gradients), a
//           third less without gx; with offsets 20 B or 12 B. Bandwidth-bound in f32; short types
//           without offsets wait for instructions as well (device/grid_grad.cuh).
// Roofline  2048 x 11008 f32: 271 MB -> 81 us at 3.35 TB/s (H100 SXM data sheet). Measured on an
//           H100 80GB HBM3, with the sum for its one logit: 103 us, 88 % of a copy. 11008 x 4096
//           with offsets and without gx: f32 237 us, as a copy; f16 172 us, 88 %. f16 without gx,
//           logits of every row: 4096^2 31 us, 73 %; bf16 with gx: 2048 x 4096 25.5 us, 66 %.
// Versions  v5 runs beside other passes and has 4 vectors of a row of 4096 a thread (8: 34 and 30
//           us; 4, and 64 registers for more blocks: 33.5 and 24.3). v4 has blocks that stay for
//           short numbers (v3 without gx 39.5 and 97.6 us, with gx 53.4), clamps codes by a
//           saturating instruction and starts early. v3 decides most codes by the reciprocal of the
//           scale and counts extremes afterwards. v2 keeps rows of 11008 in registers, 2 blocks a
//           multiprocessor (v1: 106 us, and 152 us where half of the elements are zero and so
//           extreme), and launches the sum early (-1 us). Slower: 512 threads a row, 128 threads, 5
//           blocks a multiprocessor (spills). As fast: from the last group on, which a product wrote
//           last.
// Numerics  codes as on the CPU; sums over a group in T, a few dozen terms a thread and then a
//           tree; over all groups in f64. The order is fixed by the shape and, over blocks that
//           stay, by the device's number of multiprocessors.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/grad_batch.cuh"
#include "native/cuda/device/grad_stream.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/group.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/fake_quant_grad.h"
#include "native/cuda/launch.h"
#include "native/cuda/passes.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kAhead = 16;        // numbers of x and of g in flight a thread
constexpr int kMostAhead = 48;    // as many as leave registers for two blocks on a multiprocessor
constexpr int kSumThreads = 512;  // of the block that adds up the partial sums

// Blocks on a multiprocessor that the registers are to leave room for.
template <class S, int kLanes, int kNumbers, bool kOffset>
inline constexpr int kBlocksOf = (kOffset || kNumbers > kAhead || sizeof(S) == 8 ? 2 : 3) *
                                 (kGroupThreads / kGroupBlock<kLanes>);

// kBatch: vectors of x and of g in flight a thread. kWhole: they are all of the group.
template <class S, int kVec, int kLanes, int kBatch, bool kWhole, bool kOffset>
__global__ __launch_bounds__(
    kGroupBlock<kLanes>,
    kBlocksOf<S, kLanes, kBatch * kVec, kOffset>) void gradGroups(QuantGrad<S> a) {
  using T = Wide<S>;
  using Held = Batch<S, kVec, kLanes, kBatch, kOffset>;
  constexpr int kStep = kBatch * kLanes;
  const GroupLane<kLanes> own(a.groups.count);
  if (kWhole && !a.isBeside) {
    const int64_t begin = a.groups.begin(own.group), length = a.groups.length(own.group);
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int64_t k = (own.lane + i * kLanes) * kVec;
      if (own.lane % 8 != 0 || k >= length) break;
      prefetchL2(a.x + begin + k);
      prefetchL2(a.g + begin + k);
    }
  }
  startPass(a.isBeside);
  const GradGroup<S, kVec> group(a, own.group, own.live);
  const GradGrid<T> grid(a.scale[own.group], a.zero[own.group], a.rule.top);
  const ClipFactors<T> clip(a.clip, own.group);
  GroupSums<T> sums(group.seed(a));

  Held batch;
  if constexpr (kWhole) {
    batch.load(a, group, own.lane);
    batch.take(a, group, own.lane, grid, sums);
  } else {
    for (int64_t k = own.lane; k < group.vectors; k += kStep) {
      batch.load(a, group, k);
      batch.take(a, group, k, grid, sums);
      if (a.hasValues()) batch.store(a, group, k, false, {});
    }
  }

  if (!a.hasValues() && !a.partials && !a.clipGrad) {  // gv is all that is wanted
    endPass(a.isBeside);
    return;
  }
  const GroupSums<T> mine = sums;
  groupSums<kLanes>(sums);
  const T f1 = clip.high, f2 = clip.low;
  const ExtremeGrads<T> grads = extremeGrads(sums, a.rule, grid.s, f1, f2);

  if (a.hasValues()) {
    const bool isReached = mine.low == sums.low || mine.high == sums.high;
    ExtremeCounts counts;
    if constexpr (kWhole) {
      if (isReached) counts = batch.count(group, own.lane, sums);
    } else if (isReached) {
      for (int64_t k = own.lane; k < group.vectors; k += kLanes) {
        const Vec<T, kVec> y = group.scaled(loadVec<S, kVec>(a.x + group.begin, k), k);
#pragma unroll
        for (int e = 0; e < kVec; e++) counts.take(y.lane[e], sums);
      }
    }
    const bool isExtreme = counts.low > 0 || counts.high > 0;
    groupCounts<kLanes>(counts);
    const ExtremeShares<T> shares(sums, counts, grads.low * f2, grads.high * f1);
    if constexpr (kWhole) {
      batch.store(a, group, own.lane, isExtreme, shares);
    } else if (isExtreme) {
      for (int64_t k = own.lane; k < group.vectors; k += kLanes) {
        const Vec<T, kVec> y = group.scaled(loadVec<S, kVec>(a.x + group.begin, k), k);
#pragma unroll
        for (int e = 0; e < kVec; e++) {
          const T share = shares.of(y.lane[e]);
          const int64_t at = group.begin + k * kVec + e;
          if (share == T(0)) continue;
          if (a.gx) a.gx[at] = GradientOf<S>(T(a.gx[at]) + share);
          if (a.gy) a.gy[at] += share;
        }
      }
    }
  }

  const bool isFirst = own.lane == 0 && own.live;
  if (a.partials) {
    double sum = 0;
    if (isFirst)
      sum = double(grads.high) * double(sums.high) + double(grads.low) * double(sums.low);
    if constexpr (kLanes <= kWarp) sum = rowSum<kGroupThreads>(sum);
    if (threadIdx.x == 0) a.partials[blockIdx.x] = sum;
  } else if (a.clipGrad && isFirst) {
    a.clipGrad[own.group] = grads.high * sums.high * (f1 * (T(1) - f1));
    a.clipGrad[a.groups.count + own.group] = grads.low * sums.low * (f2 * (T(1) - f2));
  }
  endPass(a.isBeside);
}

template <class T>
__global__ __launch_bounds__(kSumThreads) void addPartials(const double* partials, int64_t count,
                                                           const T* logit, T* clipGrad) {
  waitForKernelBefore();
  double sum = 0;
  for (int64_t k = threadIdx.x; k < count; k += kSumThreads) sum += partials[k];
  sum = rowSum<kSumThreads>(sum);
  const double f = clipFactor(logit[0]);
  if (threadIdx.x == 0) clipGrad[0] = static_cast<T>(sum * (f * (1 - f)));
}

// Launches the form for kNumbers numbers a thread; returns how many blocks it has.
template <class S, int kVec, int kLanes, int kNumbers, bool kWhole, bool kOffset>
int64_t launch(aq_queue* queue, const QuantGrad<S>& a) {
  const unsigned blocks = groupBlocks<kLanes>(a.groups.count);
  const EarlyLaunch shape(queue, dim3(blocks), kGroupBlock<kLanes>);
  const auto kernel = gradGroups<S, kVec, kLanes, kNumbers / kVec, kWhole, kOffset>;
  cudaLaunchKernelEx(&shape.config, kernel, a);  // an error shows in LAUNCH_CHECK
  return blocks;
}

// The form for the length of the groups. Returns how many blocks it has, each with a partial sum.
template <class S>
int64_t launchFor(aq_queue* queue, const QuantGrad<S>& a, bool isWide) {
  const int64_t length = a.groups.group;
  if constexpr (sizeof(Wide<S>) == 4) {  // what runs in f64 are tests: the forms below will do
    constexpr int kVec = kVecWidth<S>;
    if (isWide && a.v) {
      if (length <= 4 * 8) return launch<S, kVec, 4, 8, false, true>(queue, a);
      if (length <= 8 * kAhead) return launch<S, kVec, 8, kAhead, false, true>(queue, a);
      if (length <= kWarp * kAhead) return launch<S, kVec, kWarp, kAhead, false, true>(queue, a);
      return launch<S, kVec, kGroupThreads, kAhead, false, true>(queue, a);
    }
    if (isWide) {
      if (length <= 4 * 8) return launch<S, kVec, 4, 8, true, false>(queue, a);
      if (length <= 8 * kAhead) return launch<S, kVec, 8, kAhead, true, false>(queue, a);
      if (length <= kWarp * kAhead) return launch<S, kVec, kWarp, kAhead, true, false>(queue, a);
      if (length <= kGroupThreads * kAhead)
        return launch<S, kVec, kGroupThreads, kAhead, true, false>(queue, a);
      constexpr int kMost = sizeof(S) == 2 ? kMostAhead : kMostAhead - 4;
      if (length <= kGroupThreads * kMost && (a.gx || a.gy))
        return launch<S, kVec, kGroupThreads, kMost, true, false>(queue, a);
      return launch<S, kVec, kGroupThreads, kAhead, false, false>(queue, a);
    }
  }
  if (length <= 1024) return launch<S, 1, kWarp, 4, false, true>(queue, a);
  return launch<S, 1, kGroupThreads, 4, false, true>(queue, a);
}

template <class S>
bool isWide(const QuantGrad<S>& a) {
  if (!a.groups.hasWidth(kVecWidth<S>)) return false;
  for (const void* data : {static_cast<const void*>(a.x), static_cast<const void*>(a.g),
                           static_cast<const void*>(a.v), static_cast<const void*>(a.c),
                           static_cast<const void*>(a.gx), static_cast<const void*>(a.gy)}) {
    if (!isAligned16(data)) return false;
  }
  return !a.v || isAligned16(a.gv);
}

template <class T>
int32_t launchSum(aq_queue* queue, const double* partials, int64_t count, const T* logit,
                  T* clipGrad, aq_error* err) {
  const EarlyLaunch launch(queue, dim3(1), kSumThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, addPartials<T>, partials, count, logit, clipGrad));
  return AQ_OK;
}

template <class S>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view* out, void* gy,
            const aq_fake_quant_grad_params& o, aq_error* err) {
  using T = Wide<S>;
  using G = GradientOf<S>;
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  QuantGrad<S> a = {};
  a.groups = Groups::of(numel(in[0]), in[0].rank ? in[0].dim[in[0].rank - 1] : 1, o.group);
  a.x = static_cast<const S*>(in[0].data);
  a.scale = input(1);
  a.zero = input(2);
  a.g = static_cast<const G*>(in[3].data);
  a.clip = {input(4), a.groups.count, numel(in[4]) == 1};
  a.v = input(5);
  a.r = input(6);
  a.c = input(7);
  a.gx = o.need_gx ? static_cast<G*>(out[0].data) : nullptr;
  a.gy = static_cast<T*>(gy);
  a.gv = a.v ? static_cast<G*>(out[2].data) : nullptr;
  a.rule = GridRule<T>::of(o, false);
  T* const clipGrad = a.clip.logits ? static_cast<T*>(out[1].data) : nullptr;
  a.clipGrad = clipGrad;
  a.ticket = queue->ticket;
  const bool isOneLogit = clipGrad && a.clip.shared;
  if (a.groups.count == 0) {
    if (isOneLogit) CUDA_CHECK(cudaMemsetAsync(clipGrad, 0, sizeof(T), queue->stream));
    return AQ_OK;
  }
  if (!a.gx && !a.gy && !a.v && !clipGrad) return AQ_OK;

  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(a.groups.count) * sizeof(double);
  if (isOneLogit) {
    if (scratch.allocate(bytes, "fake_quant_grad", err) != AQ_OK) return err->code;
    a.partials = scratch.at<double>();
  }
  // gy comes with other kernels around this one.
  if (!gy) {
    constexpr int32_t kInputs = 8, kOutputs = 5;
    a.isBeside = queue->passes->join(
        queue->calls, in, kInputs, out, kOutputs,
        {Span::of(a.partials, bytes), Span::of(a.ticket, isOneLogit ? sizeof *a.ticket : 0)});
  }
  if constexpr (sizeof(T) == 4) {
    if (isWide(a) && canStream(a)) return launchStream<S>(queue, a, err);
  }
  const int64_t blocks = launchFor<S>(queue, a, isWide(a));
  LAUNCH_CHECK("fake_quant_grad");
  if (!isOneLogit) return AQ_OK;
  queue->passes->end();
  return launchSum<T>(queue, a.partials, blocks, a.clip.logits, clipGrad, err);
}

}  // namespace

int32_t groupFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out, void* gy,
                           const aq_fake_quant_grad_params& params, aq_error* err) {
  return visitStored(in[0].dtype, err,
                     [&]<class S>() { return run<S>(queue, in, out, gy, params, err); });
}

int32_t fake_quant_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_fake_quant_grad_params*>(params);
  if (in[6].data || in[7].data) return scaledFakeQuantGrad(queue, in, out, o, err);
  return groupFakeQuantGrad(queue, in, out, nullptr, o, err);
}

}  // namespace aq::cuda
