// cached_attention: attention of new tokens whose predecessors' keys and values lie in caches.
//
// Math      o = softmax(scale q k^T) v over places 0 .. positions[m] of the slot (params.h).
// Layout    heads of 32, 64, 128 or 256 channels without grids: device/cached_split.cuh, in which
//           the blocks of a cluster share a token's places, and write the token's own where tokens
//           are apart. Else a first launch writes the tokens' keys and values to their places.
//           Other heads: a block of four warps works on one token and query head; each warp takes
//           every fourth place, its lanes the channels, with a running maximum and sum, and the
//           four results are put together at last.
// Cost      per token and query head 2 D elements of the caches a place: a group's query heads
//           read the same ones, from L2 after the first. 4 D flop a place.
// Roofline  bandwidth of the caches.
// Early     where tokens are apart, old places are on their way before the kernel in front is over, which
//           makes q, k and v. Whoever wrote them is over by then: between two calls for the same caches
//           there is one for other ones (aq_queue::attended; else nothing is early), and it waits for
//           all that is in front of it before it lets anything behind it start. What else writes to
//           caches (fill, copies) lets nothing start before its end. Slot and position may be made by
//           the kernel in front; they are looked at again.
// Versions  v1 a block per token and query head for all; v2 clusters of 8 whose lanes each turned
//           their channels: 32 heads of 128, 513 places in f16, back to back on an H100, 15.2 us,
//           for one place 12.3; v3 clusters of 4 whose threads share that, 4 loads of a lane in flight,
//           old places early as far as L2: 9.7 us, of 4096 places 57, of 8 tokens 40, of 32 139; v4
//           (this) old places early as far as shared memory, sums sent to the block that adds them: of
//           4096 places 30, of 8 tokens 25, of 32 94; beside products that leave it room for 70 KB it
//           takes about 5 us less than v3 in a step of decoding.
// Tried     places in registers (8 loads of a lane): threads stand at their loads until the places are
//           there, and only then go for q: 0.257 ms for a step of four blocks against 0.252, and 3 to 9
//           % slower for many tokens. The end of the kernel run once before the wait, to have its code
//           in the cache: 3 us more.
// Numerics  f32 (f64) throughout, the order of additions is fixed. Codes are those of the CPU.
#include <cmath>
#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/cached_attention.cuh"
#include "native/cuda/device/cached_split.cuh"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/fault.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kMostSize = 512;  // of a head

// Inputs by position, those of attention first.
enum : int { kKeys = 9, kValues, kKeyGrid, kValueGrid, kSlots, kPositions, kCosines, kSines };

template <class K>
constexpr bool kIsCodes = std::is_same_v<K, uint8_t>;

// Channel d of a head at `place` (of place and head, counted through).
template <class T, class K>
__device__ T readChannel(const Cache<T, K>& cache, int64_t place, int size, int d) {
  if constexpr (kIsCodes<K>) {
    const uint8_t byte = cache.data[place * ((size + 1) / 2) + d / 2];
    const T code = T(int(byte >> (d % 2 * 4) & 15));
    return mulRn(addRn(code, -cache.grid[2 * place + 1]), cache.grid[2 * place]);
  } else {
    return T(cache.data[place * size + d]);
  }
}

// A block per token: keys and values of all heads, on their grids, to their place.
template <class T, class K>
__global__ __launch_bounds__(kThreads) void writePlaces(
    const __grid_constant__ CachedCall<T, K> c) {
  waitForKernelBefore();
  letNextKernelStart();
  const int64_t m = blockIdx.x;
  if (!c.isInside(m)) {
    if (threadIdx.x == 0) c.refuse(m);
    return;
  }
  const int64_t place = c.slots[m] * c.capacity + c.positions[m];
  constexpr int kPer = kIsCodes<K> ? 2 : 1;  // channels of one store
  const int perHead = (c.size + kPer - 1) / kPer;
  for (int side = 0; side < 2; side++) {
    const HeadRows<T>& from = c.kv[side];
    const Cache<T, K>& to = c.cache[side];
    for (int i = threadIdx.x; i < c.kvHeads * perHead; i += kThreads) {
      const int h = i / perHead, first = i % perHead * kPer;
      const int64_t row = m * c.kvHeads + h, at = place * c.kvHeads + h;
      const T* const x = from.x + m * from.ld + h * c.size;
      const GridCode<T> grid(from.scale ? from.scale[row] : T(1), from.zero ? from.zero[row] : T(0),
                             c.top);
      if constexpr (kIsCodes<K>) {
        const int low = int(grid.code(x[first]));
        const int high = first + 1 < c.size ? int(grid.code(x[first + 1])) : 0;
        to.data[at * perHead + first / 2] = uint8_t(low | high << 4);
        if (first == 0) {
          to.grid[2 * at] = grid.s;
          to.grid[2 * at + 1] = grid.z;
        }
      } else {
        const T value = from.scale ? grid.value(grid.code(x[first]))
                        : side     ? x[first]
                                   : c.turned(x, m, first);
        to.data[at * c.size + first] = K(value);
      }
    }
  }
}

// A block per token and query head. kPer: channels of a lane.
template <class T, class K, int kPer>
__global__ __launch_bounds__(kThreads) void attend(const __grid_constant__ CachedCall<T, K> c) {
  waitForKernelBefore();
  letNextKernelStart();
  const int64_t m = blockIdx.x / c.heads;
  if (!c.isInside(m)) return;
  const int h = blockIdx.x % c.heads, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = m * c.heads + h;
  const GridCode<T> grid(c.q.scale ? c.q.scale[row] : T(1), c.q.zero ? c.q.zero[row] : T(0), c.top);
  T q[kPer], sum[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) {
    const int d = lane + i * kWarp;
    T x = d < c.size ? c.turned(c.q.x + m * c.q.ld + h * c.size, m, d) : T(0);
    if (c.q.scale && d < c.size) x = grid.value(grid.code(x));
    q[i] = x * c.scale;
    sum[i] = 0;
  }
  const int64_t first = int64_t(c.slots[m]) * c.capacity;
  const int head = h / (c.heads / c.kvHeads), seen = c.positions[m] + 1;
  T most = -T(INFINITY), total = 0;
  for (int t = warp; t < seen; t += kWarps) {
    const int64_t place = (first + t) * c.kvHeads + head;
    T dot = 0, value[kPer];
#pragma unroll
    for (int i = 0; i < kPer; i++) {
      const int d = lane + i * kWarp;
      const bool inside = d < c.size;
      dot += inside ? q[i] * readChannel(c.cache[0], place, c.size, d) : T(0);
      value[i] = inside ? readChannel(c.cache[1], place, c.size, d) : T(0);
    }
    dot = warpSum(dot);
    const T higher = fmax(most, dot), shrink = ::exp(most - higher), weight = ::exp(dot - higher);
    most = higher;
    total = total * shrink + weight;
#pragma unroll
    for (int i = 0; i < kPer; i++) sum[i] = sum[i] * shrink + weight * value[i];
  }

  __shared__ T mosts[kWarps], totals[kWarps], sums[kWarps][kPer * kWarp];
  if (lane == 0) {
    mosts[warp] = most;
    totals[warp] = total;
  }
#pragma unroll
  for (int i = 0; i < kPer; i++) sums[warp][lane + i * kWarp] = sum[i];
  __syncthreads();
  T highest = mosts[0];
  for (int w = 1; w < kWarps; w++) highest = fmax(highest, mosts[w]);
  T all = 0, factor[kWarps];
  for (int w = 0; w < kWarps; w++) {
    // A warp without a place has the maximum -inf and nothing to add.
    factor[w] = w < seen ? ::exp(mosts[w] - highest) : T(0);
    all += totals[w] * factor[w];
  }
  for (int d = threadIdx.x; d < c.size; d += kThreads) {
    T x = 0;
    for (int w = 0; w < kWarps; w++) x += sums[w][d] * factor[w];
    c.store(row * c.size + d, x / all);
  }
}

// Blocks that share a token and head, where blocks can: as many as leave two for a multiprocessor.
int splitsOf(const aq_queue* queue, int64_t heads) {
  if (queue->computeCapability < 90) return 1;
  int splits = 1;
  while (splits < kMostSplits && heads * splits <= queue->multiprocessors) splits *= 2;
  return splits;
}

template <class K, int kLanes>
int32_t launchSplit(aq_queue* queue, CachedCall<float, K> c, int64_t tokens, aq_error* err) {
  c.splits = splitsOf(queue, tokens * c.heads);
  const auto kernel = attendSplit<K, kLanes>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes));
  const EarlyLaunch shape(queue, dim3(unsigned(tokens * c.heads * c.splits)), kSplitThreads,
                          kRingBytes, c.splits);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, c));
  return AQ_OK;
}

// Lanes whose 16-byte accesses hold the channels of a head, or 0.
template <class T, class K>
int lanesOf(const CachedCall<T, K>& c) {
  if (!std::is_same_v<T, float> || kIsCodes<K> || c.q.scale || c.kv[0].scale || c.kv[1].scale ||
      !isAligned16(c.cache[0].data) || !isAligned16(c.cache[1].data)) {
    return 0;
  }
  const size_t lanes = size_t(c.size) * sizeof(K) / 16;
  const bool fits = c.size >= kWarp && (lanes == 4 || lanes == 8 || lanes == 16 || lanes == 32);
  return fits && lanes * 16 == size_t(c.size) * sizeof(K) ? int(lanes) : 0;
}

template <class T, class K>
int32_t attendAll(aq_queue* queue, const CachedCall<T, K>& c, int64_t tokens, aq_error* err) {
  if constexpr (std::is_same_v<T, float> && !kIsCodes<K>) {
    switch (lanesOf(c)) {
      case 4:
        if constexpr (sizeof(K) == 2) return launchSplit<K, 4>(queue, c, tokens, err);
        break;
      case 8:
        return launchSplit<K, 8>(queue, c, tokens, err);
      case 16:
        return launchSplit<K, 16>(queue, c, tokens, err);
      case 32:
        return launchSplit<K, 32>(queue, c, tokens, err);
    }
  }
  const auto kernel = c.size <= 64    ? attend<T, K, 2>
                      : c.size <= 128 ? attend<T, K, 4>
                                      : attend<T, K, kMostSize / kWarp>;
  const EarlyLaunch shape(queue, dim3(unsigned(tokens * c.heads)), kThreads);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, c));
  return AQ_OK;
}

template <class T, class K>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view& out,
            const aq_cached_attention_params& p, aq_error* err) {
  CachedCall<T, K> c = {};
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  const int64_t tokens = numel(in[kSlots]);
  c.heads = p.heads;
  c.kvHeads = p.kv_heads;
  c.size = int(numel(out) / (tokens * p.heads));
  const int64_t width = int64_t(c.heads) * c.size, kvWidth = int64_t(c.kvHeads) * c.size;
  const bool isJoined = !in[1].data;  // q, k and v of a token side by side
  c.q = {input(0), input(3), input(4), isJoined ? width + 2 * kvWidth : width};
  for (int side = 0; side < 2; side++) {
    c.kv[side] = {input(1 + side), input(5 + 2 * side), input(6 + 2 * side), kvWidth};
    if (isJoined) c.kv[side] = {input(0) + width + side * kvWidth, nullptr, nullptr, c.q.ld};
    c.cache[side] = {static_cast<K*>(in[kKeys + side].data),
                     static_cast<T*>(in[kKeyGrid + side].data)};
  }
  c.cosines = input(kCosines);
  c.sines = input(kSines);
  c.o = out.data;
  c.round = p.round;
  c.slots = static_cast<const int32_t*>(in[kSlots].data);
  c.positions = static_cast<const int32_t*>(in[kPositions].data);
  c.slotCount = in[kKeys].dim[0];
  c.capacity = in[kKeys].dim[1];
  c.splits = 1;
  c.scale = T(p.scale);
  c.top = T((1 << (p.bits > 0 && p.bits <= 8 ? p.bits : 8)) - 1);
  c.fault = queue->fault;
  if (c.size > kMostSize)
    return fail(err, AQ_UNSUPPORTED,
                "cached_attention: on a GPU a head has at most %d channels, "
                "got %d; run on the CPU.",
                kMostSize, c.size);
  c.isApart = p.apart && lanesOf(c) > 0;
  c.isEarly = c.isApart && queue->attended != c.cache[0].data;
  queue->attended = c.cache[0].data;
  if (!c.isApart) {
    const EarlyLaunch shape(queue, dim3(unsigned(tokens)), kThreads);
    CUDA_CHECK(cudaLaunchKernelEx(&shape.config, writePlaces<T, K>, c));
  }
  return attendAll(queue, c, tokens, err);
}

}  // namespace

int32_t cached_attention(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_cached_attention_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  if (in[0].dtype == AQ_F64) {
    return in[kKeys].dtype == AQ_U8 ? run<double, uint8_t>(queue, in, out[0], p, err)
                                    : run<double, double>(queue, in, out[0], p, err);
  }
  switch (in[kKeys].dtype) {
    case AQ_U8:
      return run<float, uint8_t>(queue, in, out[0], p, err);
    case AQ_BF16:
      return run<float, __nv_bfloat16>(queue, in, out[0], p, err);
    case AQ_F16:
      return run<float, __half>(queue, in, out[0], p, err);
    default:
      return run<float, float>(queue, in, out[0], p, err);
  }
}

}  // namespace aq::cuda
