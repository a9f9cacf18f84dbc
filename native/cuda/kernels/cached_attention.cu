// cached_attention: attention of new tokens whose predecessors' keys and values lie in caches.
//
// Math      o = softmax(scale q k^T) v over places 0 .. positions[m] of the token's slot (params.h).
// Layout    a first launch writes the tokens' keys and values to their places. Then a block of four
//           warps works on one token and query head; each warp takes every fourth place, its lanes the
//           channels, with a running maximum and sum, and the four results are put together at last.
// Cost      per token and query head 2 D elements of the caches a place: a group's query heads read
//           the same ones, from L2 after the first. 4 D flop a place.
// Roofline  bandwidth of the caches.
// Versions  v1 (this).
// Numerics  f32 (f64) throughout, the order of additions is fixed. Codes are those of the CPU.
#include <cmath>
#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/check.h"
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
enum : int { kKeys = 9, kValues, kKeyGrid, kValueGrid, kSlots, kPositions };

// A tensor of q, k or v with its grid per token and head, if it has one.
template <class T>
struct HeadRows {
  const T* x;
  const T* scale;
  const T* zero;
};

// K: T, bf16, f16, or uint8_t: two codes a byte and (scale, zero) in `grid`.
template <class T, class K>
struct Cache {
  K* data;
  T* grid;
};

template <class T, class K>
struct CachedCall {
  HeadRows<T> q, kv[2];
  Cache<T, K> cache[2];
  T* o;
  const int32_t* slots;
  const int32_t* positions;
  int64_t slotCount, capacity;
  int heads, kvHeads, size;
  T scale, top;
  Fault* fault;

  __device__ bool isInside(int64_t m) const {
    return slots[m] >= 0 && slots[m] < slotCount && positions[m] >= 0 && positions[m] < capacity;
  }
};

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
  const int64_t m = blockIdx.x;
  if (!c.isInside(m)) {
    if (threadIdx.x == 0)
      raiseFault(c.fault, FaultKind::kCachePlace, m,
                 int64_t(c.slots[m]) << 32 | uint32_t(c.positions[m]));
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
      const T* const x = from.x + row * c.size;
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
        const T value = from.scale ? grid.value(grid.code(x[first])) : x[first];
        to.data[at * c.size + first] = K(value);
      }
    }
  }
}

// A block per token and query head. kPer: channels of a lane.
template <class T, class K, int kPer>
__global__ __launch_bounds__(kThreads) void attend(const __grid_constant__ CachedCall<T, K> c) {
  const int64_t m = blockIdx.x / c.heads;
  if (!c.isInside(m)) return;
  const int h = blockIdx.x % c.heads, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = m * c.heads + h;
  const GridCode<T> grid(c.q.scale ? c.q.scale[row] : T(1), c.q.zero ? c.q.zero[row] : T(0), c.top);
  T q[kPer], sum[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) {
    const int d = lane + i * kWarp;
    T x = d < c.size ? c.q.x[row * c.size + d] : T(0);
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
    c.o[row * c.size + d] = x / all;
  }
}

template <class T, class K>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view& out,
            const aq_cached_attention_params& p, aq_error* err) {
  CachedCall<T, K> c = {};
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  c.q = {input(0), input(3), input(4)};
  for (int side = 0; side < 2; side++) {
    c.kv[side] = {input(1 + side), input(5 + 2 * side), input(6 + 2 * side)};
    c.cache[side] = {static_cast<K*>(in[kKeys + side].data),
                     static_cast<T*>(in[kKeyGrid + side].data)};
  }
  c.o = static_cast<T*>(out.data);
  c.slots = static_cast<const int32_t*>(in[kSlots].data);
  c.positions = static_cast<const int32_t*>(in[kPositions].data);
  c.slotCount = in[kKeys].dim[0];
  c.capacity = in[kKeys].dim[1];
  c.heads = p.heads;
  c.kvHeads = p.kv_heads;
  const int64_t tokens = numel(in[kSlots]);
  c.size = int(numel(in[0]) / (tokens * p.heads));
  c.scale = T(p.scale);
  c.top = T((1 << (p.bits > 0 && p.bits <= 8 ? p.bits : 8)) - 1);
  c.fault = queue->fault;
  if (c.size > kMostSize)
    return fail(err, AQ_UNSUPPORTED,
                "cached_attention: on a GPU a head has at most %d channels, "
                "got %d; run on the CPU.",
                kMostSize, c.size);
  writePlaces<T, K><<<unsigned(tokens), kThreads, 0, queue->stream>>>(c);
  LAUNCH_CHECK("cached_attention (caches)");
  const auto kernel = c.size <= 64    ? attend<T, K, 2>
                      : c.size <= 128 ? attend<T, K, 4>
                                      : attend<T, K, kMostSize / kWarp>;
  kernel<<<unsigned(tokens * p.heads), kThreads, 0, queue->stream>>>(c);
  LAUNCH_CHECK("cached_attention");
  return AQ_OK;
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
