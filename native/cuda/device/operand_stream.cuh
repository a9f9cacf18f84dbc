// operand_stream.cuh: quant_operand of a matrix with factors, row by row, by blocks that stay:
// threads keep the factors of their columns in registers, and while they work on a row, their next
// ones are on their way to shared memory. A thread reads only what it copied itself.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native/cuda/check.h"
#include "native/cuda/device/biased_code.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/plain_operand.cuh"
#include "native/cuda/device/prefetch.cuh"
#include "native/cuda/device/quant_operand.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

inline constexpr int kStreamThreads = 512;  // on a multiprocessor, and of a block, at most
inline constexpr int kStreamBatch = 4;      // vectors of a group that a thread has
inline constexpr int kStreamAhead = 2;      // groups that are under way

// The clipping factors of a block's groups and the factors of their rows: a warp's lanes look after
//           16
// groups at a time, two lanes each.
template <class S>
class GroupFactors {
 public:
  float high, low, row;

  __device__ explicit GroupFactors(const OperandCall<S>& call) : call_(call) {}

  // Those of group n of the block, one after the other. All lanes of a warp take part.
  __device__ void take(int n) {
    const int own = n % (kWarp / 2);
    if (own == 0) fetch(n + int(threadIdx.x) % kWarp / 2);
    high = __shfl_sync(~0u, clip_, 2 * own);
    low = __shfl_sync(~0u, clip_, 2 * own + 1);
    row = __shfl_sync(~0u, row_, 2 * own);
  }

 private:
  __device__ void fetch(int n) {
    const int group =
        int(min(int64_t(blockIdx.x) + int64_t(n) * gridDim.x, call_.groups.count - 1));
    clip_ = call_.clip.factor(threadIdx.x & 1 ? call_.clip.low(group) : call_.clip.high(group));
    row_ = call_.row(group);
  }

  const OperandCall<S>& call_;
  float clip_ = 1, row_ = 1;
};

// Smallest and largest over a block, for its group n: memory is used in turn, so that one barrier a
//           group
// is enough.
__device__ inline void blockExtremesOf(int n, float& low, float& high) {
  __shared__ float2 parts[2][kStreamThreads / kWarp];
  float2* const own = parts[n % 2];
  neighbourExtremes<kWarp>(low, high);
  if (threadIdx.x % kWarp == 0) own[threadIdx.x / kWarp] = {low, high};
  __syncthreads();
  for (int w = 0; w < int(blockDim.x) / kWarp; w++) {
    low = fminf(low, own[w].x);
    high = fmaxf(high, own[w].y);
  }
}

template <class S>
__global__ __launch_bounds__(kStreamThreads,
                             1) void quantizeStream(const __grid_constant__ OperandCall<S> a) {
  constexpr int kVec = kVecWidth<S>, kBatch = kStreamBatch;
  extern __shared__ uint4 ring[];
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  const int length = int(a.groups.group), last = length / kVec - 1;
  const int rounds = int((a.groups.count - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x));
  const auto start = [&](int n) { return (int64_t(blockIdx.x) + int64_t(n) * gridDim.x) * length; };
  // Threads without a vector take the group's last one once more, which changes nothing.
  const auto inside = [&](int i) { return min(thread + i * threads, last); };
  const auto slotOf = [&](int n, int i) {
    return ring + (n % kStreamAhead * kBatch + i) * threads + thread;
  };
  const auto copy = [&](int n) {
    if (n < rounds) {
      const S* const from = a.x + start(n);
#pragma unroll
      for (int i = 0; i < kBatch; i++)
        copyAsync16(sharedAddress(slotOf(n, i)), from + inside(i) * kVec);
    }
    commitCopies();
  };
  if (thread % 8 == 0 && !a.isBeside) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) prefetchL2(a.x + start(0) + inside(i) * kVec);
  }
  startPass(a.isBeside);
#pragma unroll
  for (int n = 0; n < kStreamAhead; n++) copy(n);
  GroupFactors<S> factors(a);
  Vec<float, kVec> columns[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; i++) {
    if (a.c) columns[i] = loadRun<float, kVec>(a.c, inside(i));
#pragma unroll
    for (int e = 0; e < kVec; e++) columns[i].lane[e] = a.c ? columns[i].lane[e] : 1.0f;
  }
  for (int n = 0; n < rounds; n++) {
    const int64_t begin = start(n);
    factors.take(n);
    waitCopies<kStreamAhead - 1>();
    float low = 0;
    if (a.rule.published) low = a.seed(a.x + begin, factors.row, a.c);
    float high = low;
    Vec<float, kVec> x[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      Vec<S, kVec> raw;
      const uint4 bits = *slotOf(n, i);
      memcpy(&raw, &bits, sizeof raw);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        x[i].lane[e] =
            mulRn(mulRn(factors.row, static_cast<float>(raw.lane[e])), columns[i].lane[e]);
      }
    }
    ownExtremes<float, kVec, kBatch>(x, low, high);
    asm volatile("" ::: "memory");  // read before it is written over
    copy(n + kStreamAhead);
    blockExtremesOf(n, low, high);
    low = mulRn(low, factors.low);
    const float s = a.rule.scale(low, mulRn(high, factors.high)), z = a.rule.zeroPoint(low, s);
    const BiasedCode codes(s, z, a.rule.top);
    const auto place = [&](int i) {
      return thread + i * threads <= last ? thread + i * threads : -1;
    };
    const auto write = [&]<class Y>(auto to) {
      return writeCodes<Y, float, kVec, kBatch>(to, begin, x, codes, s, place);
    };
    bool isNone = !isfinite(s);
    if (a.dtype == AQ_I8) {
      const bool isAny = a.values ? write.template operator()<int8_t>(CodesAndValues{a.y, a.values})
                                  : write.template operator()<int8_t>(a.y);
      isNone = __syncthreads_or(isAny) != 0 || isNone;
    } else if (a.dtype == AQ_BF16) {
      write.template operator()<__nv_bfloat16>(a.y);
    } else if (a.dtype == AQ_F16) {
      write.template operator()<__half>(a.y);
    } else {
      write.template operator()<float>(a.y);
    }
    if (thread != 0) continue;
    const int64_t group = int64_t(blockIdx.x) + int64_t(n) * gridDim.x;
    a.scale[group] = a.dtype == AQ_I8 && isNone ? nanf("") : s;
    a.zero[group] = z;
  }
  waitCopies<0>();
  endPass(a.isBeside);
}

// ---------------------------------------------------------------- launch

// Whether quantizeStream takes a matrix that can be read in vectors: one with factors whose groups
//           are
// its rows, long enough for more than a warp.
template <class S>
bool canStream(const OperandCall<S>& a) {
  if (a.v || (!a.r && !a.c) || a.groups.perRow != 1 || a.groups.count > INT32_MAX / 2) return false;
  constexpr int kMost = kStreamThreads * kStreamBatch * kVecWidth<S>;
  return a.groups.group > kWarp * kStreamBatch * kVecWidth<S> && a.groups.group <= kMost;
}

template <class S>
int32_t streamOperand(aq_queue* queue, const OperandCall<S>& a, aq_error* err) {
  constexpr int kPerWarp = kStreamBatch * kVecWidth<S> * kWarp;
  const int threads = int((a.groups.group + kPerWarp - 1) / kPerWarp) * kWarp;
  const int64_t fit = int64_t(kStreamThreads / threads) * queue->multiprocessors;
  const int bytes = kStreamAhead * kStreamBatch * threads * 16;
  CUDA_CHECK(
      cudaFuncSetAttribute(quantizeStream<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const EarlyLaunch launch(queue, dim3(unsigned(std::min(a.groups.count, fit))), threads, bytes);
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, quantizeStream<S>, a));
  return AQ_OK;
}

}  // namespace aq::cuda
