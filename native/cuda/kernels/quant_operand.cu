// quant_operand: the grid of a matrix and the matrix on it, for an operand of several products.
//
// Math      scale and zero as quant_grid has them, then code - zero as int8, and (code - zero) scale
//           beside it or instead.
// Layout    2 to 32 threads a group, or a block of its own, by its length; a thread holds 32 or 64
//           numbers in registers, so that x is read once, up to 32768 numbers. 16-byte loads. Rows
//           with factors belong to blocks that stay and keep the factors of their columns
//           (device/operand_stream.cuh). Odd widths, f64 and longer groups go element by element
//           and read x twice, the second time from L2. Kernels start early: they send for their
//           first numbers, as far as L2, before the kernel in front of them is over; beside another
//           pass that they do not depend on they do not wait at all (passes.h).
// Cost      f16 to int8 moves 3 B an element, to bf16 4 B, f32 to int8 5 B; values 2 B, offsets 4 B
//           more. 14 to 24 instructions an element, of which the more numbers a thread has, the
//           fewer are for what is done once a group.
// Roofline  11008 x 4096 f16 to int8: 135 MB -> 40 us at 3.35 TB/s (H100 SXM data sheet). Measured
//           on an H100 80GB HBM3: 49 us, 92 % of a copy; 4096^2 21.8 us, 77 %; f32 2048 x 4096 16.4
//           us, 85 %; 2048 x 11008 93 %. With factors 59 us, to bf16 76; with offsets 134 us, 90 %.
// Versions  v6 runs beside other passes: of W, of x in bf16 and the product of both 90.5 -> 83.5 us;
//           v5 starts early (v4: 23.4 us at 4096^2, 51.4, and 19.1 for f32); v4 has a form of its
//           own for a matrix as it lies (device/plain_operand.cuh; v3: 26.4 us, 62); v3 has no
//           branches before it writes; v2 has up to 64 numbers a thread, scaled once. Slower: blocks
//           that stay for matrices without factors as well, 22 to 31 us at 4096^2 in eight variants
//           (few groups under way wait for each one's latency, many arrive together); fewer
//           blocks on a multiprocessor at once, 83.5 -> 84 to 91 us in the row above.
// Numerics  every operation rounds as in quant_grid and fake_quant, so the bits are theirs.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/group.cuh"
#include "native/cuda/device/operand_stream.cuh"
#include "native/cuda/device/plain_operand.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/quant_operand.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/passes.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kFew = 32, kMany = 64;  // numbers of a group that a thread has
constexpr int kSomeThreads = 384;     // of a block: 8192 .. 12288 numbers, few a thread

// Blocks on a multiprocessor that the registers are to leave room for.
template <int kNumbers, int kThreads>
inline constexpr int kBlocksOf = kNumbers == kFew ? (kThreads == kGroupThreads ? 3 : 2)
                                                  : (kThreads == kGroupThreads ? 2 : 1);

template <class S, int kNumbers, int kThreads, bool kValues>
inline constexpr int kPlainBlocks =
    (kNumbers * int(sizeof(S)) <= 128 ? (kValues && kThreads == kGroupThreads ? 3 : 4) : 2) *
    kGroupThreads / (kThreads == kGroupThreads ? kGroupThreads : 2 * kGroupThreads);

// A thread's group, and which vectors of it are its own.
template <int kLanes, int kVec>
struct OwnVectors {
  int lanes, lane, last;
  int64_t group, begin;
  bool isLive;

  __device__ explicit OwnVectors(const Groups& groups) {
    lanes = kLanes == kBlock ? int(blockDim.x) : kLanes;
    lane = kLanes == kBlock ? int(threadIdx.x) : int(threadIdx.x) % kLanes;
    group = blockIdx.x;
    if constexpr (kLanes != kBlock) {
      group = group * (kGroupThreads / kLanes) + int(threadIdx.x) / kLanes;
    }
    isLive = group < groups.count;
    if (!isLive) group = groups.count - 1;
    begin = groups.begin(group);
    last = int(groups.length(group)) / kVec - 1;
  }

  // Lanes without a vector take the group's last one once more, which changes nothing, so that
  // there are no branches until it is written.
  __device__ int read(int i) const { return min(lane + i * lanes, last); }
  __device__ int written(int i) const {
    return isLive && lane + i * lanes <= last ? lane + i * lanes : -1;
  }
};

// A group belongs to kLanes threads, which hold kNumbers numbers each. kThreads: of a block, at
// most.
template <class S, int kLanes, int kNumbers, int kThreads>
__global__ __launch_bounds__(kThreads,
                             kBlocksOf<kNumbers, kThreads>) void quantizeGroups(OperandCall<S> a) {
  constexpr int kVec = kVecWidth<S>, kBatch = kNumbers / kVec;
  const OwnVectors<kLanes, kVec> mine(a.groups);
  const int64_t group = mine.group, begin = mine.begin;
  if (mine.lane % 8 == 0 && !a.isBeside) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) prefetchL2(a.x + begin + mine.read(i) * kVec);
  }
  startPass(a.isBeside);
  Vec<S, kVec> raw[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) raw[i] = loadVec<S, kVec>(a.x + begin, mine.read(i));
  const float r = a.row(group);
  const float* const c = a.columns(group);
  const ClipFactors<float> clip(a.clip, group);
  const float seed = a.seed(a.x + begin, r, c);
  float x[kBatch][kVec], lows[kVec], highs[kVec];
#pragma unroll
  for (int e = 0; e < kVec; e++) lows[e] = highs[e] = seed;
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    scaledValues<S, kVec>(raw[i], r, c, mine.read(i), x[i]);
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      lows[e] = fminf(lows[e], x[i][e]);
      highs[e] = fmaxf(highs[e], x[i][e]);
    }
  }
  float low = seed, high = seed;
#pragma unroll
  for (int e = 0; e < kVec; e++) {
    low = fminf(low, lows[e]);
    high = fmaxf(high, highs[e]);
  }
  if constexpr (kLanes == kBlock) {
    blockExtremes(low, high);
  } else {
    neighbourExtremes<kLanes>(low, high);
  }
  const FoundGrid<float> grid(a, clip, low, high);
  const BiasedCode codes(grid.s, grid.z, a.rule.top);
  uint32_t doubts = codes.isPlain() && !a.v ? 0 : 1;
#pragma unroll
  for (int i = 0; i < kBatch; i++) doubts |= codes.doubts(x[i]);
  if (doubts == 0) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
#pragma unroll
      for (int e = 0; e < kVec; e++) x[i][e] = codes.quick(x[i][e]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      Vec<float, kVec> v = {}, own;
      if (a.v) v = loadRun<float, kVec>(a.v + begin, mine.read(i));
#pragma unroll
      for (int e = 0; e < kVec; e++) own.lane[e] = x[i][e];
      own = sureCodes<kVec>(codes.exact, own, v);
#pragma unroll
      for (int e = 0; e < kVec; e++) x[i][e] = own.lane[e];
    }
  }
  const bool isNone = writeAll<kVec, kBatch>(a.y, a.values, a.dtype, begin, x, grid.s,
                                             [&](int i) { return mine.written(i); }) ||
                      !isfinite(grid.s);
  const bool anyNone = a.dtype == AQ_I8 && groupAny<kLanes>(isNone);
  endPass(a.isBeside);
  if (mine.lane != 0 || !mine.isLive) return;
  a.scale[group] = anyNone ? nanf("") : grid.s;
  a.zero[group] = grid.z;
}

// The same of a matrix without factors and offsets (device/plain_operand.cuh). kValues: with values
// beside the codes.
template <class S, int kLanes, int kNumbers, int kThreads, bool kValues>
__global__ __launch_bounds__(
    kThreads, kPlainBlocks<S, kNumbers, kThreads, kValues>) void quantizePlain(OperandCall<S> a) {
  constexpr int kVec = kVecWidth<S>, kBatch = kNumbers / kVec;
  const OwnVectors<kLanes, kVec> mine(a.groups);
  const int64_t group = mine.group, begin = mine.begin;
  if (mine.lane % 8 == 0 && !a.isBeside) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) prefetchL2(a.x + begin + mine.read(i) * kVec);
  }
  startPass(a.isBeside);
  Vec<S, kVec> raw[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) raw[i] = loadVec<S, kVec>(a.x + begin, mine.read(i));
  const ClipFactors<float> clip(a.clip, group);
  float low = a.rule.published ? static_cast<float>(a.x[begin]) : 0.0f, high = low;
  ownExtremes<S, kVec, kBatch>(raw, low, high);
  if constexpr (kLanes == kBlock) {
    blockExtremes(low, high);
  } else {
    neighbourExtremes<kLanes>(low, high);
  }
  const FoundGrid<float> grid(a, clip, low, high);
  const BiasedCode codes(grid.s, grid.z, a.rule.top);
  const auto place = [&](int i) { return mine.written(i); };
  const auto write = [&]<class Y>(auto to) {
    return writeCodes<Y, S, kVec, kBatch>(to, begin, raw, codes, grid.s, place);
  };
  bool isNone = !isfinite(grid.s);
  if constexpr (kValues) {
    isNone = write.template operator()<int8_t>(CodesAndValues{a.y, a.values}) || isNone;
  } else if (a.dtype == AQ_I8) {
    isNone = write.template operator()<int8_t>(a.y) || isNone;
  } else if (a.dtype == AQ_BF16) {
    write.template operator()<__nv_bfloat16>(a.y);
  } else if (a.dtype == AQ_F16) {
    write.template operator()<__half>(a.y);
  } else {
    write.template operator()<float>(a.y);
  }
  const bool anyNone = a.dtype == AQ_I8 && groupAny<kLanes>(isNone);
  endPass(a.isBeside);
  if (mine.lane != 0 || !mine.isLive) return;
  a.scale[group] = anyNone ? nanf("") : grid.s;
  a.zero[group] = grid.z;
}

template <class S>
int32_t inVectors(aq_queue* queue, const OperandCall<S>& a, aq_error* err) {
  if (canStream(a)) return streamOperand(queue, a, err);
  const int64_t length = a.groups.group;
  const bool isPlain = !a.v && !a.r && !a.c;
  const auto start = [&](auto kernel, unsigned blocks, int threads) -> int32_t {
    const EarlyLaunch launch(queue, dim3(blocks), threads);
    CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, a));
    return AQ_OK;
  };
  const auto shared = [&]<int kLanes>() {
    return start(!isPlain   ? quantizeGroups<S, kLanes, kFew, kGroupThreads>
                 : a.values ? quantizePlain<S, kLanes, kFew, kGroupThreads, true>
                            : quantizePlain<S, kLanes, kFew, kGroupThreads, false>,
                 groupBlocks<kLanes>(a.groups.count), kGroupThreads);
  };
  const auto own = [&]<int kNumbers, int kThreads>() {
    const int64_t perWarp = kNumbers * kWarp;
    return start(!isPlain   ? quantizeGroups<S, kBlock, kNumbers, kThreads>
                 : a.values ? quantizePlain<S, kBlock, kNumbers, kThreads, true>
                            : quantizePlain<S, kBlock, kNumbers, kThreads, false>,
                 unsigned(a.groups.count), int((length + perWarp - 1) / perWarp) * kWarp);
  };
  if (length <= 2 * kFew) return shared.template operator()<2>();
  if (length <= 4 * kFew) return shared.template operator()<4>();
  if (length <= kWarp * kFew) return shared.template operator()<kWarp>();
  // Short numbers leave room for many of them in flight; offsets, of 4 bytes, do not.
  if (sizeof(S) == 4 || a.v) {
    if (length <= kGroupThreads * kFew) return own.template operator()<kFew, kGroupThreads>();
    if (length <= kSomeThreads * kFew) return own.template operator()<kFew, kSomeThreads>();
  }
  if (length <= kGroupThreads * kMany) return own.template operator()<kMany, kGroupThreads>();
  return own.template operator()<kMany, kMostThreads>();
}

// ---------------------------------------------------------------- element by element

template <class S, int kLanes>
__global__ __launch_bounds__(kGroupThreads) void quantizeElements(OperandCall<S> a) {
  using T = Wide<S>;
  const GroupLane<kLanes> own(a.groups.count);
  const int64_t begin = a.groups.begin(own.group);
  const int64_t length = own.live ? a.groups.length(own.group) : 0;
  const S* const x = a.x + begin;
  const T r = a.row(own.group);
  const T* const c = a.columns(own.group);
  const auto value = [&](int64_t k) {
    const T scaled = mulRn(r, T(x[k]));
    return c ? mulRn(scaled, c[k]) : scaled;
  };
  const ClipFactors<T> clip(a.clip, own.group);
  const T seed = a.seed(x, r, c);
  T low = seed, high = seed;
  for (int64_t k = own.lane; k < length; k += kLanes) {
    low = fmin(low, value(k));
    high = fmax(high, value(k));
  }
  groupExtremes<kLanes>(low, high);
  const FoundGrid<T> grid(a, clip, low, high);
  const GridCode<T> codes(grid.s, grid.z, a.rule.top);
  bool isNone = !isfinite(grid.s);
  for (int64_t k = own.lane; k < length; k += kLanes) {
    const T code = a.v ? codes.code(value(k), a.v[begin + k]) : codes.code(value(k));
    const T whole = addRn(code, -grid.z), y = codes.value(code);
    if (a.dtype == AQ_I8) {
      static_cast<int8_t*>(a.y)[begin + k] = whole == whole ? int8_t(int32_t(whole)) : int8_t(0);
      isNone = isNone || whole != whole;
      if (a.values) a.values[begin + k] = __float2bfloat16_rn(float(y));
    } else if (a.dtype == AQ_BF16) {
      static_cast<__nv_bfloat16*>(a.y)[begin + k] = __float2bfloat16_rn(float(y));
    } else if (a.dtype == AQ_F16) {
      static_cast<__half*>(a.y)[begin + k] = __float2half_rn(float(y));
    } else {
      static_cast<T*>(a.y)[begin + k] = y;
    }
  }
  const bool anyNone = a.dtype == AQ_I8 && groupAny<kLanes>(isNone);
  if (own.lane != 0 || !own.live) return;
  a.scale[own.group] = anyNone ? T(nan("")) : grid.s;
  a.zero[own.group] = grid.z;
}

template <class S>
int32_t inElements(aq_queue* queue, const OperandCall<S>& a, aq_error* err) {
  const int64_t count = a.groups.count;
  if (a.groups.group <= 1024) {
    quantizeElements<S, kWarp><<<groupBlocks<kWarp>(count), kGroupThreads, 0, queue->stream>>>(a);
  } else {
    quantizeElements<S, kGroupThreads><<<unsigned(count), kGroupThreads, 0, queue->stream>>>(a);
  }
  LAUNCH_CHECK("quant_operand");
  return AQ_OK;
}

template <class S>
bool fitsVectors(const OperandCall<S>& a) {
  constexpr int64_t kMost = kMostThreads * kMany;  // numbers that the registers of a block hold
  return a.groups.hasWidth(kVecWidth<S>) && a.groups.group <= kMost && isAligned16(a.x) &&
         isAligned16(a.v) && isAligned16(a.c) && isAligned16(a.y) && isAligned16(a.values);
}

}  // namespace

int32_t quant_operand(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out,
                      int32_t n_out, const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_quant_operand_params*>(params);
  const Groups groups =
      Groups::of(numel(in[0]), in[0].rank ? in[0].dim[in[0].rank - 1] : 1, o.group);
  if (groups.count == 0) return AQ_OK;
  return visitStored(in[0].dtype, err, [&]<class S>() -> int32_t {
    using T = Wide<S>;
    const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
    OperandCall<S> call = {};
    call.x = static_cast<const S*>(in[0].data);
    call.clip = {input(1), groups.count, numel(in[1]) == 1};
    call.v = input(2);
    call.r = input(3);
    call.c = input(4);
    call.scale = static_cast<T*>(out[0].data);
    call.zero = static_cast<T*>(out[1].data);
    call.y = out[2].data;
    call.dtype = o.dtype;
    call.values = o.values ? static_cast<__nv_bfloat16*>(out[3].data) : nullptr;
    call.groups = groups;
    call.rule = GridRule<T>::of(o, false);
    if constexpr (sizeof(T) == 4) {
      if (fitsVectors(call)) {
        call.isBeside = queue->passes->join(queue->calls, in, n_in, out, n_out);
        return inVectors(queue, call, err);
      }
    }
    return inElements(queue, call, err);
  });
}

}  // namespace aq::cuda
