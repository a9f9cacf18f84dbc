// fake_quant_grad: the gradient of learned fake quantization.
//
// Math      device/grid_grad.cuh, as in native/cpu/kernels/fake_quant_grad.h.
// Layout    4 to 256 threads a group by its length (device/group.cuh). x and g of a group of up to
//           11264 floats stay in registers, so that they are read and gx is written once. Of longer
//           groups gx is written at once, without what flows through the extremes; the threads that
//           hold extreme elements, mostly two, add it afterwards, from L2.
//           One logit for all groups: a partial sum a block, then one block adds them up.
// Cost      reads x and g, writes gx: 12 B an element (f32), 8 B without gx, 8 B more with offsets;
//           ~50 instructions. Bandwidth-bound.
// Roofline  2048 x 11008 f32: 271 MB -> 81 us at 3.35 TB/s (H100 SXM data sheet). Measured on an
//           H100 80GB HBM3, with the sum for its one logit: 104 us = 2.60 TB/s; 11008 x 4096 with
//           logits of every group: 182 us = 2.97 TB/s, in groups of 128 186 us; 4096 x 11008 in
//           groups of 32 206 us.
// Versions  v2 keeps rows of 11008 in registers, 2 blocks a multiprocessor (v1: 106 us, and 152
//           us where half of the elements are zero and so extreme), and launches the sum early
//           (-1 us).
//           Slower: 512 threads a row, 128 threads, 5 blocks a multiprocessor (spills).
// Numerics  codes as on the CPU; sums over a group in T, a few dozen terms a thread and then a
//           tree; over all groups in f64. The order is fixed by the shape.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/group.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/fake_quant_grad.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kAhead = 4;         // vectors of x and of g in flight a thread
constexpr int kMostAhead = 11;    // as many as leave registers for two blocks on a multiprocessor
constexpr int kSumThreads = 512;  // of the block that adds up the partial sums

template <class T>
struct QuantGrad {
  const T* x;
  const T* g;
  const T* v;
  const T* scale;
  const T* zero;
  ClipLogits<T> clip;
  T* gx;
  T* gv;
  T* clipGrad;       // [2, M, G], where every group has its own logits
  double* partials;  // of the one logit's gradient, one a block; else null
  Groups groups;
  GridRule<T> rule;
};

// The kernel that adds up the partial sums may be launched while this one still runs (it then waits
// for its end), which hides most of what a launch costs. From Hopper on.
__device__ inline void letNextLaunch() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ inline void awaitLast() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// kSize vectors of a group: x, g, and what of g passes to x.
template <class T, int kVec, int kLanes, int kSize, bool kOffset>
struct Batch {
  Vec<T, kVec> x[kSize], g[kSize], v[kOffset ? kSize : 1];

  // Vectors k, k + kLanes, ... of a group that starts at `begin`.
  __device__ void load(const QuantGrad<T>& a, int64_t begin, int64_t k, int64_t vectors) {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      if (k + i * kLanes >= vectors) break;
      x[i] = loadVec<T, kVec>(a.x + begin, k + i * kLanes);
      g[i] = loadVec<T, kVec>(a.g + begin, k + i * kLanes);
      if constexpr (kOffset) v[i] = loadVec<T, kVec>(a.v + begin, k + i * kLanes);
    }
  }

  // Adds to the sums, writes gv and leaves in g what passes.
  template <bool kCounts>
  __device__ void take(const QuantGrad<T>& a, int64_t begin, int64_t k, int64_t vectors,
                       const GridCode<T>& grid, GroupSums<T>& sums) {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      if (k + i * kLanes >= vectors) break;
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        g[i].lane[e] = gradStep<kCounts, kOffset>(grid, x[i].lane[e], g[i].lane[e],
                                                  kOffset ? v[i].lane[e] : T(0), sums);
      }
      if constexpr (kOffset) {
#pragma unroll
        for (int e = 0; e < kVec; e++) v[i].lane[e] = g[i].lane[e] * grid.s;
        storeVec(a.gv + begin, k + i * kLanes, v[i]);
      }
    }
  }

  __device__ void store(const QuantGrad<T>& a, int64_t begin, int64_t k, int64_t vectors) const {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      if (k + i * kLanes < vectors) storeVec(a.gx + begin, k + i * kLanes, g[i]);
    }
  }

  __device__ void addAtExtremes(const ExtremeShares<T>& shares) {
#pragma unroll
    for (int i = 0; i < kSize; i++) {
#pragma unroll
      for (int e = 0; e < kVec; e++) g[i].lane[e] += shares.of(x[i].lane[e]);
    }
  }
};

// kBatch: vectors of x and of g in flight a thread. kWhole: they are all of the group. The bounds
// keep the registers so few that 4 blocks share a multiprocessor, or 2 of the larger forms.
template <class T, int kVec, int kLanes, int kBatch, bool kWhole, bool kValues, bool kOffset>
__global__ __launch_bounds__(kGroupThreads,
                             kOffset || kBatch > kAhead ? 2 : 4) void gradGroups(QuantGrad<T> a) {
  constexpr int kStep = kBatch * kLanes;
  letNextLaunch();
  const GroupLane<kLanes> own(a.groups.count);
  const int64_t begin = a.groups.begin(own.group);
  const int64_t vectors = own.live ? a.groups.length(own.group) / kVec : 0;
  const GridCode<T> grid(a.scale[own.group], a.zero[own.group], a.rule.top);
  const T logitHigh = a.clip.high(own.group), logitLow = a.clip.low(own.group);
  GroupSums<T> sums(a.rule.published ? a.x[begin] : T(0));

  Batch<T, kVec, kLanes, kBatch, kOffset> batch;
  if constexpr (kWhole) {
    batch.load(a, begin, own.lane, vectors);
    batch.template take<kValues>(a, begin, own.lane, vectors, grid, sums);
  } else {
    for (int64_t k = own.lane; k < vectors; k += kStep) {
      batch.load(a, begin, k, vectors);
      batch.template take<kValues>(a, begin, k, vectors, grid, sums);
      if constexpr (kValues) batch.store(a, begin, k, vectors);
    }
  }

  const GroupSums<T> mine = sums;
  groupSums<kLanes, kValues>(sums);
  const T f1 = a.clip.factor(logitHigh), f2 = a.clip.factor(logitLow);
  const ExtremeGrads<T> grads = extremeGrads(sums, a.rule, grid.s, f1, f2);

  if constexpr (kValues) {
    const ExtremeShares<T> shares(sums, grads.low * f2, grads.high * f1);
    if constexpr (kWhole) {
      batch.addAtExtremes(shares);
      batch.store(a, begin, own.lane, vectors);
    } else if (shares.reach(mine)) {
      for (int64_t k = own.lane; k < vectors; k += kLanes) {
        const Vec<T, kVec> x = loadVec<T, kVec>(a.x + begin, k);
#pragma unroll
        for (int e = 0; e < kVec; e++) {
          const T share = shares.of(x.lane[e]);
          if (share != T(0)) a.gx[begin + k * kVec + e] += share;
        }
      }
    }
  }

  const bool isFirst = own.lane == 0 && own.live;
  if (a.partials) {
    double sum = 0;
    if (isFirst)
      sum = double(grads.high) * double(sums.high) + double(grads.low) * double(sums.low);
    if constexpr (kLanes < kGroupThreads) sum = rowSum<kGroupThreads>(sum);
    if (threadIdx.x == 0) a.partials[blockIdx.x] = sum;
  } else if (a.clipGrad && isFirst) {
    a.clipGrad[own.group] = grads.high * sums.high * (f1 * (T(1) - f1));
    a.clipGrad[a.groups.count + own.group] = grads.low * sums.low * (f2 * (T(1) - f2));
  }
}

template <class T>
__global__ __launch_bounds__(kSumThreads) void addPartials(const double* partials, int64_t count,
                                                           const T* logit, T* clipGrad) {
  awaitLast();
  double sum = 0;
  for (int64_t k = threadIdx.x; k < count; k += kSumThreads) sum += partials[k];
  sum = rowSum<kSumThreads>(sum);
  const double f = clipFactor(logit[0]);
  if (threadIdx.x == 0) clipGrad[0] = static_cast<T>(sum * (f * (1 - f)));
}

template <class T, int kVec, int kLanes, int kBatch, bool kWhole>
void launch(aq_queue* queue, const QuantGrad<T>& a) {
  const unsigned blocks = groupBlocks<kLanes>(a.groups.count);
  const auto start = [&](auto kernel) { kernel<<<blocks, kGroupThreads, 0, queue->stream>>>(a); };
  if (a.gx && a.v) start(gradGroups<T, kVec, kLanes, kBatch, kWhole, true, true>);
  if (a.gx && !a.v) start(gradGroups<T, kVec, kLanes, kBatch, kWhole, true, false>);
  if (!a.gx && a.v) start(gradGroups<T, kVec, kLanes, kBatch, kWhole, false, true>);
  if (!a.gx && !a.v) start(gradGroups<T, kVec, kLanes, kBatch, kWhole, false, false>);
}

// Long groups whose x and g fit the registers of a block, where gx is all that is wanted.
template <class T, int kVec>
void launchLong(aq_queue* queue, const QuantGrad<T>& a) {
  gradGroups<T, kVec, kGroupThreads, kMostAhead, true, true, false>
      <<<groupBlocks<kGroupThreads>(a.groups.count), kGroupThreads, 0, queue->stream>>>(a);
}

// The form for the length of the groups. Returns how many blocks it has, each with a partial sum.
template <class T>
int64_t launchFor(aq_queue* queue, const QuantGrad<T>& a, bool isWide) {
  constexpr int kVec = kVecWidth<T>;
  if constexpr (sizeof(T) == 4) {  // what runs in f64 are tests: the forms below will do
    const int64_t vectors = a.groups.group / kVec;
    const auto whole = [&]<int kLanes, int kBatch>() {
      launch<T, kVec, kLanes, kBatch, true>(queue, a);
      return int64_t(groupBlocks<kLanes>(a.groups.count));
    };
    if (isWide && vectors <= 8) return whole.template operator()<4, 2>();
    if (isWide && vectors <= 8 * kAhead) return whole.template operator()<8, kAhead>();
    if (isWide && vectors <= kWarp * kAhead) return whole.template operator()<kWarp, kAhead>();
    if (isWide && vectors <= kGroupThreads * kAhead) {
      return whole.template operator()<kGroupThreads, kAhead>();
    }
    if (isWide) {
      const bool fits = vectors <= kGroupThreads * kMostAhead && a.gx && !a.v;
      fits ? launchLong<T, kVec>(queue, a)
           : launch<T, kVec, kGroupThreads, kAhead, false>(queue, a);
      return a.groups.count;
    }
  }
  if (a.groups.group <= 1024) {
    launch<T, 1, kWarp, kAhead, false>(queue, a);
    return groupBlocks<kWarp>(a.groups.count);
  }
  launch<T, 1, kGroupThreads, kAhead, false>(queue, a);
  return a.groups.count;
}

template <class T>
int32_t launchSum(aq_queue* queue, const QuantGrad<T>& a, int64_t count, T* clipGrad,
                  aq_error* err) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = kSumThreads;
  config.stream = queue->stream;
  config.attrs = &early;
  config.numAttrs = queue->computeCapability >= 90 ? 1 : 0;
  const double* const partials = a.partials;
  CUDA_CHECK(cudaLaunchKernelEx(&config, addPartials<T>, partials, count, a.clip.logits, clipGrad));
  return AQ_OK;
}

template <class T>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view* out,
            const aq_fake_quant_grad_params& o, aq_error* err) {
  QuantGrad<T> a = {};
  a.groups = Groups::of(numel(in[0]), in[0].rank ? in[0].dim[in[0].rank - 1] : 1, o.group);
  a.x = static_cast<const T*>(in[0].data);
  a.scale = static_cast<const T*>(in[1].data);
  a.zero = static_cast<const T*>(in[2].data);
  a.g = static_cast<const T*>(in[3].data);
  a.clip = {static_cast<const T*>(in[4].data), a.groups.count, numel(in[4]) == 1};
  a.v = static_cast<const T*>(in[5].data);
  a.gx = o.need_gx ? static_cast<T*>(out[0].data) : nullptr;
  a.gv = static_cast<T*>(out[2].data);
  a.rule = GridRule<T>::of(o, false);
  T* const clipGrad = a.clip.logits ? static_cast<T*>(out[1].data) : nullptr;
  const bool isOneLogit = clipGrad && a.clip.shared;
  if (a.groups.count == 0) {
    if (isOneLogit) CUDA_CHECK(cudaMemsetAsync(clipGrad, 0, sizeof(T), queue->stream));
    return AQ_OK;
  }
  if (!a.gx && !a.v && !clipGrad) return AQ_OK;

  Scratch scratch(queue);
  if (isOneLogit) {
    const uint64_t bytes = uint64_t(a.groups.count) * sizeof(double);
    if (scratch.allocate(bytes, "fake_quant_grad", err) != AQ_OK) return err->code;
    a.partials = scratch.at<double>();
  } else {
    a.clipGrad = clipGrad;
  }
  const bool isWide = a.groups.hasWidth(kVecWidth<T>) && isAligned16(a.x) && isAligned16(a.g) &&
                      isAligned16(a.v) && isAligned16(a.gx) && (!a.v || isAligned16(a.gv));
  const int64_t blocks = launchFor<T>(queue, a, isWide);
  LAUNCH_CHECK("fake_quant_grad");
  return isOneLogit ? launchSum(queue, a, blocks, clipGrad, err) : int32_t(AQ_OK);
}

}  // namespace

int32_t plainFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                           const aq_fake_quant_grad_params& params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return run<T>(queue, in, out, params, err); });
}

int32_t fake_quant_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                        const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_fake_quant_grad_params*>(params);
  return in[6].data || in[7].data ? scaledFakeQuantGrad(queue, in, out, o, err)
                                  : plainFakeQuantGrad(queue, in, out, o, err);
}

}  // namespace aq::cuda
