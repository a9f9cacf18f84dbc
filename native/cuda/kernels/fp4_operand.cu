// fp4_global, fp4_operand: matrices in 4-bit floats, for products and for export.
//
// Math      params.h; the numbers are in device/fp4.cuh.
// Layout    A thread has runs of 8 columns of a few rows in registers, so x is read once and y written
//           once, 16 bytes at a time; bf16 without factors and offsets: device/fp4_flat.cuh. f64 and what
//           is not aligned go number by number. Passes that do not depend on each other run beside each
//           other (passes.h). fp4_global: a maximum a block, the last makes g of them.
// Cost      fp4_operand f16 to bf16 moves 4.25 B an element with its scales, f32 to bf16 6.25 B,
//           4 B more with offsets, a quarter more with logits of groups; fp4_global reads x.
// Roofline  4096 x 4096 f16 to bf16 with logits: 75 MB -> 23 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured on an H100 80GB HBM3: 30 us, 84 % of a copy (24 us between products); with
//           factors 32 us, with offsets 53 us, 91 %; 2048 x 4096 bf16 17 us, f32 22 us.
// Versions  v4 packed forms for the most frequent case: 18 instructions an element instead of 27, of
//           them 9 a number (this); v3 rows in 32 bits; v2 runs kept as words; v1 38 us. Tried: blocks
//           that load ahead (32 us), two turns a thread, 256 threads, loads of 256 B (all as v4).
// Numerics  every operation rounds as on the CPU, so the bits are the same.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/fp4_flat_operand.cuh"
#include "native/cuda/device/fp4_strips.cuh"
#include "native/cuda/device/last_block.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/passes.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kGlobalRows = 4;    // of a thread of fp4_global at once
constexpr int kGlobalBlocks = 8;  // of fp4_global on a multiprocessor

// ---------------------------------------------------------------- fp4_global

template <class S>
struct GlobalCall {
  using T = Wide<S>;
  const S* x;
  const T* g;  // null: unbounded
  Factors<T> factors;
  Strips strips;
  T* parts;  // [blocks]
  uint32_t* ticket;
  T* y;
};

// The largest of the block, NaN if there is one, given to its first thread.
template <class T>
__device__ T blockLargest(T largest) {
  __shared__ T parts[kStripThreads / kWarp];
  const auto overWarp = [](T value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
      value = maxOrNaN(value, __shfl_xor_sync(kAllLanes, value, step));
    return value;
  };
  largest = overWarp(largest);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = largest;
  __syncthreads();
  return overWarp(parts[threadIdx.x % (kStripThreads / kWarp)]);
}

template <class S, bool kWide>
__global__ __launch_bounds__(kStripThreads) void findGlobal(
    const __grid_constant__ GlobalCall<S> a) {
  using T = Wide<S>;
  const StripPlace place(a.strips);
  awaitLastKernel();
  const Run<T> c = a.factors.template run<kWide>(a.strips, place);
  T largest = 0;
  for (unsigned index = blockIdx.x; index < a.strips.pieces; index += gridDim.x) {
    const StripPiece<kGlobalRows> piece(a.strips, place, index);
    StripRuns<S, kGlobalRows, kWide> x;
    T r[kGlobalRows], y[kGlobalRows][kRun], most[kGlobalRows];
    x.load(a.x, a.strips, place, piece);
    a.factors.load(a.strips, place, index, r);
    a.factors.any() ? scaleRuns<true>(x, r, c, y, most) : scaleRuns<false>(x, r, c, y, most);
#pragma unroll
    for (int j = 0; j < kGlobalRows; j++)
      if (piece.inside[j]) largest = maxOrNaN(largest, most[j]);
  }
  largest = blockLargest(largest);
  if (!isLastBlock(a.ticket, a.parts, largest)) return;
  largest = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x * gridDim.y; i += kStripThreads)
    largest = maxOrNaN(largest, a.parts[i]);
  largest = blockLargest(largest);
  if (threadIdx.x != 0) return;
  const T own = divRn(kE4m3Most<T> * kFp4Most<T>, largest);
  *a.y = a.g ? atMost(*a.g, own) : own;
  if (own != own) *a.y = own;
}

template <class S>
int32_t runGlobal(aq_queue* queue, const aq_view* in, const aq_view& out, aq_error* err) {
  using T = Wide<S>;
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  GlobalCall<S> a = {};
  a.x = static_cast<const S*>(in[0].data);
  a.g = input(1);
  a.factors = {input(2), input(3)};
  a.strips = Strips::of(numel(in[0]), lastDim(in[0]), kGlobalRows);
  const bool isWide =
      sizeof(T) == 4 && a.strips.columns % kRun == 0 && isAligned16(a.x) && isAligned16(input(3));
  a.ticket = queue->ticket;
  a.y = static_cast<T*>(out.data);
  const unsigned resident = unsigned(kGlobalBlocks * queue->multiprocessors);
  const dim3 grid = a.strips.grid(std::max(resident / a.strips.count, 1u));
  Scratch scratch(queue);
  if (scratch.allocate(uint64_t(grid.x) * grid.y * sizeof(T), "fp4_global", err) != AQ_OK)
    return err->code;
  a.parts = scratch.at<T>();
  const auto kernel = isWide ? findGlobal<S, sizeof(T) == 4> : findGlobal<S, false>;
  CUDA_CHECK(launchStrips(queue, kernel, grid, a));
  return AQ_OK;
}

// ---------------------------------------------------------------- fp4_operand

template <class S>
struct Fp4Call {
  using T = Wide<S>;
  const S* x;
  const T* g;  // null: 1
  const T* clip;
  bool isOneLogit;
  const T* v;  // null: none
  Factors<T> factors;
  Strips strips;
  T* scale;
  T* factor;
  void* y;
  int32_t dtype;  // of y
  bool isBeside;  // the pass in front (passes.h)
};

template <bool kWide, class T>
__device__ inline void storeCodes(uint8_t* y, const Run<T>& q) {
  Vec<uint8_t, kRun> codes;
#pragma unroll
  for (int e = 0; e < kRun; e++) codes.lane[e] = uint8_t(e2m1Code(static_cast<float>(q.lane[e])));
  if constexpr (kWide) {
    storeVec(y, 0, codes);
  } else {
#pragma unroll
    for (int e = 0; e < kRun; e++) y[e] = codes.lane[e];
  }
}

// Blocks on a multiprocessor that the registers are to leave room for.
template <class S, int kFormat, bool kOffset>
inline constexpr int kBlocksOf = sizeof(S) == 8      ? 2
                                 : kFormat == kNvFp4 ? (kOffset ? 7 : 9)
                                                     : (kOffset ? 4 : 6);

template <class S, int kFormat, bool kOffset, bool kWide>
__global__ __launch_bounds__(kStripThreads, kBlocksOf<S, kFormat, kOffset>) void quantizeStrips(
    const __grid_constant__ Fp4Call<S> a) {
  using T = Wide<S>;
  constexpr int kRows = kGroupLanes<kFormat>;
  const StripPlace place(a.strips);
  const StripPiece<kRows> piece(a.strips, place, blockIdx.x);
  startPass(a.isBeside);
  StripRuns<S, kRows, kWide> x;
  StripRuns<T, kOffset ? kRows : 1, kWide> v;
  T r[kRows], logit = 0;
  x.load(a.x, a.strips, place, piece);
  if constexpr (kOffset) {
    if (a.v) v.load(a.v, a.strips, place, piece);
  }
  const int64_t group = piece.ownGroup(a.strips, place, blockIdx.x);
  if (a.clip && group >= 0) logit = a.clip[a.isOneLogit ? 0 : group];
  a.factors.load(a.strips, place, blockIdx.x, r);
  const Run<T> c = a.factors.template run<kWide>(a.strips, place);
  const T g = fp4Global(a.g), f = a.clip ? fp4Clip(logit) : T(1);
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *a.factor = divRn(T(1), g);

  T y[kRows][kRun], largest[kRows];
  a.factors.any() ? scaleRuns<true>(x, r, c, y, largest) : scaleRuns<false>(x, r, c, y, largest);
  const T most = joinNeighbours<kRows>(largest, [](T p, T q) { return maxOrNaN(p, q); });
  const T scale = Fp4Scale<T, kFormat>(f, most, g).rounded(), inverse = fp4Inverse(g, scale);
  if (group >= 0) a.scale[group] = scale;
#pragma unroll
  for (int j = 0; j < kRows; j++) {
    const T k = ofNeighbour<kRows>(inverse, j), s = ofNeighbour<kRows>(scale, j);
    T offset[kRun];
    if constexpr (kOffset) {
      if (a.v) v.row[j].get(offset);
    }
    Run<T> q;
#pragma unroll
    for (int e = 0; e < kRun; e++) {
      T u = mulRn(y[j][e], k);
      if constexpr (kOffset) {
        if (a.v) u = addRn(u, mulRn(offset[e], e2m1Step(u)));
      }
      q.lane[e] = roundE2m1(atMost(atLeast(u, -kFp4Most<T>), kFp4Most<T>));
    }
    if (!piece.inside[j]) continue;
    if (a.dtype == AQ_U8) {
      storeCodes<kWide>(static_cast<uint8_t*>(a.y) + piece.at[j], q);
      continue;
    }
#pragma unroll
    for (int e = 0; e < kRun; e++) q.lane[e] = mulRn(q.lane[e], s);
    if (a.dtype == AQ_BF16)
      storeRun<kWide>(static_cast<__nv_bfloat16*>(a.y) + piece.at[j], q);
    else
      storeRun<kWide>(static_cast<T*>(a.y) + piece.at[j], q);
  }
  endPass(a.isBeside);
}

// What is in most calls: no factors and offsets, and a product behind it. Returns whether it is so.
template <class S, int kFormat>
bool startFlat(aq_queue* queue, const Fp4Call<S>& a, int64_t numel, bool isWide,
               cudaError_t* status) {
  if constexpr (sizeof(S) < 8) {
    if (!isWide || a.factors.any() || a.v || a.dtype != AQ_BF16 || !FlatShape::holds(numel))
      return false;
    const FlatOperand<S> flat = {a.x,
                                 a.g,
                                 a.clip,
                                 a.isOneLogit,
                                 FlatShape::of(numel, kGroupLanes<kFormat>),
                                 a.scale,
                                 a.factor,
                                 static_cast<__nv_bfloat16*>(a.y),
                                 a.isBeside};
    const dim3 grid = flat.shape.grid(kGroupLanes<kFormat>);
    const EarlyLaunch launch(queue, grid, kFlatThreads);
    *status = cudaLaunchKernelEx(&launch.config, quantizeFlat<S, kFormat>, flat);
    return true;
  }
  return false;
}

template <class S, int kFormat>
cudaError_t startOperand(aq_queue* queue, const Fp4Call<S>& a, int64_t numel, bool isWide) {
  if constexpr (sizeof(S) < 8) {
    cudaError_t status;
    if (startFlat<S, kFormat>(queue, a, numel, isWide, &status)) return status;
  }
  const dim3 grid = a.strips.grid(a.strips.pieces);
  const auto start = [&](auto kernel) { return launchStrips(queue, kernel, grid, a); };
  if constexpr (sizeof(S) < 8) {
    if (isWide) {
      return start(a.v ? quantizeStrips<S, kFormat, true, true>
                       : quantizeStrips<S, kFormat, false, true>);
    }
  }
  return start(quantizeStrips<S, kFormat, true, false>);
}

template <class S>
int32_t runOperand(aq_queue* queue, const aq_view* in, const aq_view* out,
                   const aq_fp4_operand_params& o, aq_error* err) {
  using T = Wide<S>;
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  Fp4Call<S> a = {};
  a.x = static_cast<const S*>(in[0].data);
  a.g = input(1);
  a.clip = input(2);
  a.isOneLogit = numel(in[2]) == 1;
  a.v = input(3);
  a.factors = {input(4), input(5)};
  a.strips = Strips::of(numel(in[0]), lastDim(in[0]),
                        o.format == kNvFp4 ? kGroupLanes<kNvFp4> : kGroupLanes<kMxFp4>);
  a.scale = static_cast<T*>(out[0].data);
  a.factor = static_cast<T*>(out[1].data);
  a.y = out[2].data;
  a.dtype = o.dtype;
  const bool isWide = a.strips.rows > 0 && a.strips.columns > 0 && isAligned16(a.x) &&
                      isAligned16(a.v) && isAligned16(input(5)) && isAligned16(a.y);
  constexpr int32_t kInputs = 6, kOutputs = 3;
  a.isBeside = queue->passes->join(queue->calls, in, kInputs, out, kOutputs);
  const cudaError_t status = o.format == kNvFp4
                                 ? startOperand<S, kNvFp4>(queue, a, numel(in[0]), isWide)
                                 : startOperand<S, kMxFp4>(queue, a, numel(in[0]), isWide);
  CUDA_CHECK(status);
  return AQ_OK;
}

}  // namespace

int32_t fp4_global(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                   const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  if (checkStrips("fp4_global", in[0], err) != AQ_OK) return err->code;
  return visitStored(in[0].dtype, err,
                     [&]<class S>() { return runGlobal<S>(queue, in, out[0], err); });
}

int32_t fp4_operand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_fp4_operand_params*>(params);
  if (checkStrips("fp4_operand", in[0], err) != AQ_OK) return err->code;
  return visitStored(in[0].dtype, err,
                     [&]<class S>() { return runOperand<S>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
