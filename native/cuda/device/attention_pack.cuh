// attention_pack.cuh: q, k, v and go made ready for attention's tiles: put on their grids, rounded
// to the products' element type and laid out by head, [batch * heads][padded tokens][width] (panels
// for the tensor cores, attention_shape.cuh), zeros beyond the tokens and the channels. The same
// pass sums go * o for the backward pass.
//
// Cost: reads 4 and writes 2 bytes per number (f32 to bf16): bandwidth-bound.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_shape.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/launch.h"

namespace aq::cuda {

namespace {

// One tensor [batch, tokens, heads * size] to pack. `o` is given with go only.
template <class T, class E>
struct PackJob {
  const T* x;
  const T *scale, *zero;  // [batch * tokens, heads], or null
  const T* o;
  E* y;
  int32_t heads;
  int64_t firstBlock;
};

template <class T, class E>
struct PackJobs {
  PackJob<T, E> job[4];
  int32_t count;
  bool isWide;  // 16-byte accesses of all inputs are allowed
  AttentionShape shape;
  // With go: lse in, lse log2(e) and sums of go o out, both [batch * heads][padded tokens].
  const T* lse;
  T *lse2, *delta;
  const uint32_t* peak;  // the largest |go|, or null where go needs no scaling
};

constexpr int kPackThreads = 256;
constexpr int kPackRun = 8;  // neighbouring channels a thread takes

// Gradients are tiny beside f16's smallest number: they are multiplied by the power of two that
// brings the largest near 16. Powers of two change no digit. Without a peak: 1.
__device__ inline float gradientFactor(const uint32_t* peak) {
  if (!peak || *peak == 0) return 1;
  const int exponent = int(*peak >> 23) - 127;
  return exponent > 127 ? 1.0f : ldexpf(1.0f, min(4 - exponent, 120));
}

template <class T>
__device__ inline void loadRun(const T* from, int count, bool isWide, T (&x)[kPackRun]) {
  constexpr int kVec = kVecWidth<T>;
  if (isWide && count == kPackRun) {
#pragma unroll
    for (int i = 0; i < kPackRun / kVec; i++) {
      const Vec<T, kVec> part = loadVec<T, kVec>(from, i);
#pragma unroll
      for (int e = 0; e < kVec; e++) x[i * kVec + e] = part.lane[e];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPackRun; i++) x[i] = i < count ? from[i] : T(0);
  }
}

template <class T, class E, int kD>
__global__ __launch_bounds__(kPackThreads) void packHeads(PackJobs<T, E> x) {
  constexpr int kLanes = kD / kPackRun, kRows = kPackThreads / kLanes;
  int j = 0;
  while (j + 1 < x.count && blockIdx.x >= x.job[j + 1].firstBlock) j++;
  const PackJob<T, E>& job = x.job[j];
  const AttentionShape& shape = x.shape;

  const int blocksPerHead = shape.padded / kRows;
  const int block = int(blockIdx.x - job.firstBlock), head = block / blocksPerHead;
  const int t = block % blocksPerHead * kRows + int(threadIdx.x) / kLanes;
  const int channel = int(threadIdx.x) % kLanes * kPackRun;
  const int64_t b = head / job.heads, h = head % job.heads;
  const int64_t row = (b * shape.tokens + t) * job.heads + h;
  const int count = t < shape.tokens ? max(0, min(kPackRun, shape.size - channel)) : 0;

  T value[kPackRun] = {};
  if (count > 0) loadRun(job.x + row * shape.size + channel, count, x.isWide, value);
  if (job.o) {
    const T factor = T(gradientFactor(x.peak));
    T o[kPackRun] = {}, sum = 0;
    if (count > 0) loadRun(job.o + row * shape.size + channel, count, x.isWide, o);
#pragma unroll
    for (int i = 0; i < kPackRun; i++) {
      value[i] *= factor;
      sum += value[i] * o[i];
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (channel == 0) {
      const int64_t at = int64_t(head) * shape.padded + t;
      const bool isReal = t < shape.tokens;
      x.delta[at] = sum;
      x.lse2[at] = isReal ? x.lse[int64_t(head) * shape.tokens + t] * T(kLog2E) : T(0);
    }
  }
  if (job.scale && count > 0) {
    const GridCode<T> grid(job.scale[row], job.zero[row], topCode<T>(shape.bits));
#pragma unroll
    for (int i = 0; i < kPackRun; i++)
      if (i < count) value[i] = grid.fakeQuant(value[i]);
  }

  E* y = job.y + int64_t(head) * shape.padded * kD;
  if constexpr (sizeof(E) == 2) {
    const int panel = channel / kPanelColumns<kD>, chunk = channel % kPanelColumns<kD> / kPackRun;
    y += int64_t(panel) * shape.padded * kPanelColumns<kD> + chunkOffset<kD>(t, chunk) / 2;
  } else {
    y += int64_t(t) * kD + channel;
  }
  constexpr int kVec = kVecWidth<E>;
#pragma unroll
  for (int i = 0; i < kPackRun / kVec; i++) {
    Vec<E, kVec> part;
#pragma unroll
    for (int e = 0; e < kVec; e++) part.lane[e] = E(value[i * kVec + e]);
    storeVec<E, kVec>(y, i, part);
  }
  waitForKernelBefore();  // so that it is over where this one is
}

// The largest |x| of `vectors` vectors of kVec numbers, as the bits of a float, into a word that
// starts at zero.
template <int kVec>
__global__ __launch_bounds__(kElementThreads) void findPeak(const float* x, int64_t vectors,
                                                            uint32_t* peak) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  float most = 0;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < vectors; k += stride) {
    const Vec<float, kVec> part = loadVec<float, kVec>(x, k);
#pragma unroll
    for (int e = 0; e < kVec; e++) most = fmaxf(most, fabsf(part.lane[e]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  if (threadIdx.x % 32 == 0 && most > 0) atomicMax(peak, __float_as_uint(most));
}

template <class E>
uint64_t packedHeadBytes(const AttentionShape& shape, int64_t heads) {
  return uint64_t(heads) * uint64_t(shape.padded) * uint64_t(shape.width) * sizeof(E);
}

// Collects the tensors of one launch of packHeads.
template <class T, class E>
class Packer {
 public:
  explicit Packer(const AttentionShape& shape) {
    jobs_.shape = shape;
    jobs_.isWide = shape.size % kVecWidth<T> == 0;
  }

  void add(const aq_view& x, const aq_view* grid, int32_t heads, E* y, const T* o = nullptr) {
    const auto data = [](const aq_view& v) { return static_cast<const T*>(v.data); };
    jobs_.isWide = jobs_.isWide && isAligned16(x.data) && isAligned16(o);
    jobs_.job[jobs_.count++] = {
        data(x), grid ? data(grid[0]) : nullptr, grid ? data(grid[1]) : nullptr, o, y, heads,
        blocks_};
    constexpr int kElementsPerBlock = kPackThreads * kPackRun;
    blocks_ += jobs_.shape.batch * heads * jobs_.shape.padded *
               (int64_t(jobs_.shape.width) / kPackRun) / kPackThreads;
    static_assert(kTokenTile * 32 % kElementsPerBlock == 0, "a block packs rows of one head");
  }

  // With a job that has `o`.
  void setSums(const T* lse, T* lse2, T* delta, const uint32_t* peak) {
    jobs_.lse = lse;
    jobs_.lse2 = lse2;
    jobs_.delta = delta;
    jobs_.peak = peak;
  }

  // isEarly: what is packed is older than the kernel in front of this one, whose end need not be waited
  // for.
  int32_t run(aq_queue* queue, const char* what, aq_error* err, bool isEarly = false) const {
    if (blocks_ == 0) return AQ_OK;
    return visitWidth(jobs_.shape.width, [&]<int kD>() -> int32_t {
      if (!isEarly)
        return launchTiles(queue, packHeads<T, E, kD>, what, blocks_, kPackThreads, 0, err, jobs_);
      const EarlyLaunch launch(queue, dim3(unsigned(blocks_)), kPackThreads);
      CUDA_CHECK(cudaLaunchKernelEx(&launch.config, packHeads<T, E, kD>, jobs_));
      return AQ_OK;
    });
  }

 private:
  PackJobs<T, E> jobs_{};
  int64_t blocks_ = 0;
};

}  // namespace

}  // namespace aq::cuda
