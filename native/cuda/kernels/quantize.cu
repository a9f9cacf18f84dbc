// quant_grid, fake_quant, quantize, dequantize: uniform integer grids and what they do to values.
//
// Math      quant_grid: the extremes of each group, clipped by learned factors, give s and z.
//           code = clamp(round(x/s + v) + z, 0, top), y = (code - z) s (device/grid.cuh).
// Layout    quant_grid: 2 to 256 threads a group by its length (device/group.cuh), kAhead vectors
//           in flight a thread. The others are flat, kAhead vectors a thread; the grid of a vector
//           comes from L1. 16-byte accesses where rows and groups allow, else by elements.
// Cost      quant_grid reads 4 B an element (f32); fake_quant moves 8 B, 12 B with offsets, and
//           ~25 instructions; quantize and dequantize 5 B. Bandwidth-bound.
// Roofline  11008 x 4096 f32: quant_grid 180 MB -> 54 us, fake_quant 361 MB -> 108 us at 3.35 TB/s
//           (H100 SXM data sheet). Measured on an H100 80GB HBM3: quant_grid 62 us,
//           67 us in groups of 128; fake_quant 124 us; quantize 78 us; dequantize 85 us.
// Versions  v1 (this). Slower: 8 vectors in flight.
// Numerics  every operation rounds as on the CPU, so scales, zero points and codes are the same.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid.cuh"
#include "native/cuda/device/group.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kAhead = 4;

Groups groupsOf(const aq_view& x, int32_t size) {
  return Groups::of(numel(x), x.rank ? x.dim[x.rank - 1] : 1, size);
}

// ---------------------------------------------------------------- grids

template <class S>
struct GridSearch {
  using T = Wide<S>;
  const S* x;
  const T* r;  // factors of rows and columns, or null
  const T* c;
  ClipLogits<T> clip;
  T* scale;
  T* zero;
  Groups groups;
  GridRule<T> rule;
};

// kScaled: the grid is of r x c.
template <class S, int kVec, int kLanes, bool kScaled>
__global__ __launch_bounds__(kGroupBlock<kLanes>) void findGrids(GridSearch<S> a) {
  using T = Wide<S>;
  const GroupLane<kLanes> own(a.groups.count);
  const S* const x = a.x + a.groups.begin(own.group);
  const int64_t vectors = a.groups.length(own.group) / kVec;
  const T logitHigh = a.clip.high(own.group), logitLow = a.clip.low(own.group);
  const T r = kScaled && a.r ? a.r[a.groups.row(own.group)] : T(1);
  const T* const c = kScaled && a.c ? a.c + a.groups.column(own.group) : nullptr;
  T seed = 0;
  if (a.rule.published) seed = kScaled ? mulRn(mulRn(r, T(x[0])), c ? c[0] : T(1)) : T(x[0]);
  T low = seed, high = seed;
  for (int64_t k = own.lane; k < vectors; k += kAhead * kLanes) {
    Vec<S, kVec> part[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (k + i * kLanes < vectors) part[i] = loadVec<S, kVec>(x, k + i * kLanes);
    }
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (k + i * kLanes >= vectors) break;
      Vec<T, kVec> value = widen(part[i]);
      if constexpr (kScaled) {
        Vec<T, kVec> factor;
        if (c) factor = loadRun<T, kVec>(c, k + i * kLanes);
#pragma unroll
        for (int e = 0; e < kVec; e++) {
          value.lane[e] = mulRn(r, value.lane[e]);
          if (c) value.lane[e] = mulRn(value.lane[e], factor.lane[e]);
        }
      }
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        low = fmin(low, value.lane[e]);
        high = fmax(high, value.lane[e]);
      }
    }
  }
  groupExtremes<kLanes>(low, high);
  if (own.lane != 0 || !own.live) return;
  high = mulRn(high, a.clip.factor(logitHigh));
  low = mulRn(low, a.clip.factor(logitLow));
  const T s = a.rule.scale(low, high);
  a.scale[own.group] = s;
  a.zero[own.group] = a.rule.zeroPoint(low, s);
}

template <class S, int kVec>
int32_t findAll(aq_queue* queue, const GridSearch<S>& search, aq_error* err) {
  return visitGroupLanes(search.groups.group / kVec, [&]<int kLanes>() -> int32_t {
    const unsigned blocks = groupBlocks<kLanes>(search.groups.count);
    const bool isScaled = search.r || search.c;
    const auto kernel =
        isScaled ? findGrids<S, kVec, kLanes, true> : findGrids<S, kVec, kLanes, false>;
    kernel<<<blocks, kGroupBlock<kLanes>, 0, queue->stream>>>(search);
    LAUNCH_CHECK("quant_grid");
    return AQ_OK;
  });
}

// ---------------------------------------------------------------- values

enum class Does { kFakeQuant, kQuantize, kDequantize };

template <class T>
struct OnGrid {
  const void* x;  // T, or the codes
  const T* scale;
  const T* zero;
  const T* v;     // null where kOffset is false
  void* y;        // T, or the codes
  Groups groups;  // in units of vectors
  int64_t vectors;
  T top;
};

template <class T, Does kDoes, bool kOffset, int kVec>
__global__ __launch_bounds__(kElementThreads) void mapOnGrid(OnGrid<T> a) {
  using From = std::conditional_t<kDoes == Does::kDequantize, uint8_t, T>;
  using To = std::conditional_t<kDoes == Does::kQuantize, uint8_t, T>;
  const int64_t first = int64_t(blockIdx.x) * (kAhead * kElementThreads) + threadIdx.x;
  Vec<From, kVec> x[kAhead];
  Vec<T, kVec> v[kAhead] = {};
  T s[kAhead], z[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; i++) {
    const int64_t k = first + i * kElementThreads;
    if (k >= a.vectors) break;
    const int64_t group = a.groups.indexOf(k);
    x[i] = loadVec<From, kVec>(static_cast<const From*>(a.x), k);
    if constexpr (kOffset) v[i] = loadVec<T, kVec>(a.v, k);
    s[i] = a.scale[group];
    z[i] = a.zero[group];
  }
#pragma unroll
  for (int i = 0; i < kAhead; i++) {
    const int64_t k = first + i * kElementThreads;
    if (k >= a.vectors) break;
    const GridCode<T> grid(s[i], z[i], a.top);
    Vec<To, kVec> y;
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      if constexpr (kDoes == Does::kDequantize) {
        y.lane[e] = grid.value(static_cast<T>(x[i].lane[e]));
      } else {
        const T code = kOffset ? grid.code(x[i].lane[e], v[i].lane[e]) : grid.code(x[i].lane[e]);
        if constexpr (kDoes == Does::kQuantize) {
          y.lane[e] = static_cast<uint8_t>(static_cast<int32_t>(code));
        } else {
          y.lane[e] = grid.value(code);
        }
      }
    }
    storeVec(static_cast<To*>(a.y), k, y);
  }
}

template <class T, Does kDoes, bool kOffset, int kVec>
int32_t launchMap(aq_queue* queue, OnGrid<T> map, int64_t n, aq_error* err) {
  constexpr int64_t kPerBlock = kAhead * kElementThreads;
  map.groups = map.groups.inVectors(kVec);
  map.vectors = n / kVec;
  const unsigned blocks = unsigned((map.vectors + kPerBlock - 1) / kPerBlock);
  mapOnGrid<T, kDoes, kOffset, kVec><<<blocks, kElementThreads, 0, queue->stream>>>(map);
  LAUNCH_CHECK("a quantizer");
  return AQ_OK;
}

// Inputs x, scale, zero, v of the op as its kernel takes them.
template <Does kDoes>
int32_t run(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, int32_t bits,
            int32_t group, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const int64_t n = numel(in[0]);
  if (n == 0) return AQ_OK;
  return visitFloat(in[1].dtype, err, [&]<class T>() -> int32_t {
    constexpr int kVec = kVecWidth<T>;
    OnGrid<T> map = {};
    map.x = in[0].data;
    map.scale = static_cast<const T*>(in[1].data);
    map.zero = static_cast<const T*>(in[2].data);
    map.v = n_in > 3 ? static_cast<const T*>(in[3].data) : nullptr;
    map.y = out[0].data;
    map.groups = groupsOf(in[0], group);
    map.top = topCode<T>(bits);
    const bool isWide =
        map.groups.hasWidth(kVec) && isAligned16(map.x) && isAligned16(map.y) && isAligned16(map.v);
    if constexpr (kDoes != Does::kDequantize) {
      if (map.v) {
        return isWide ? launchMap<T, kDoes, true, kVec>(queue, map, n, err)
                      : launchMap<T, kDoes, true, 1>(queue, map, n, err);
      }
    }
    return isWide ? launchMap<T, kDoes, false, kVec>(queue, map, n, err)
                  : launchMap<T, kDoes, false, 1>(queue, map, n, err);
  });
}

}  // namespace

int32_t quant_grid(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_quant_grid_params*>(params);
  const Groups groups = groupsOf(in[0], o.group);
  if (groups.count == 0) return AQ_OK;
  return visitStored(in[0].dtype, err, [&]<class S>() -> int32_t {
    using T = Wide<S>;
    GridSearch<S> search = {};
    search.x = static_cast<const S*>(in[0].data);
    search.r = static_cast<const T*>(in[2].data);
    search.c = static_cast<const T*>(in[3].data);
    search.clip = {static_cast<const T*>(in[1].data), groups.count, numel(in[1]) == 1};
    search.scale = static_cast<T*>(out[0].data);
    search.zero = static_cast<T*>(out[1].data);
    search.groups = groups;
    search.rule = GridRule<T>::of(o, o.round_f16 != 0);
    constexpr int kVec = kVecWidth<S>;
    const bool isWide = groups.hasWidth(kVec) && isAligned16(search.x) && isAligned16(search.c);
    return isWide ? findAll<S, kVec>(queue, search, err) : findAll<S, 1>(queue, search, err);
  });
}

int32_t fake_quant(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_fake_quant_params*>(params);
  return run<Does::kFakeQuant>(queue, in, n_in, out, o.bits, o.group, err);
}

int32_t quantize(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, int32_t,
                 const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_quantize_params*>(params);
  return run<Does::kQuantize>(queue, in, n_in, out, o.bits, o.group, err);
}

int32_t dequantize(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, int32_t,
                   const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_dequantize_params*>(params);
  return run<Does::kDequantize>(queue, in, n_in, out, 8, o.group, err);
}

}  // namespace aq::cuda
