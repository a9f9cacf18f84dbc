// rope_grid, rope_grid_grad: rope with the grids of the heads that it turns, as attention reads them, and the
// gradient through both.
//
// Math      y as rope's, and quant_grid's scale and zero of each of its heads; back, fake_quant_grad of y in
//           groups of a head, and the turn back of that.
// Layout    D/8 neighbours of a warp have a head, each with the same 4 channels of both halves: the turn
//           needs no other thread and the grid a few shuffles. A thread takes 4 heads of a row (2 on the way
//           back), with one vector of cosines and sines for all. Heads of 32, 64, 128 or 256 channels; other
//           sizes, f64 and what 16-byte accesses do not fit go op by op.
// Cost      reads and writes 4 B a number, where the two ops move 12 B; back reads 8 B and writes 2 B (bf16)
//           or 4 B, where they move 18 B or 20 B.
// Roofline  2048 x 4096: 67 MB -> 20 us at 3.35 TB/s (H100 SXM data sheet); back, bf16, 84 MB -> 25 us.
//           Measured on an H100 80GB HBM3, from Node.js: 25 us, the two ops 36.5; back 38 us, the two
//           62.7. A W4A4 step of 32 heads of 128: 5.72 ms, with the separate ops 5.81.
// Versions  v1 (this).
// Numerics  y, scale and zero have the bits of the separate ops; the gradient's sums over a head are taken in
//           f32, of the logit over all heads in f64, in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/logit_sum.cuh"
#include "native/cuda/device/rope.cuh"
#include "native/cuda/device/row_operand.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kTurnThreads = 256, kTurnHeads = 4, kTurnBackHeads = 2;

struct Tables {
  const float *cosines, *sines;
  int32_t positions;
};

// A thread's place: vector `lane` of both halves of some heads of a row, beginning with `head`.
template <int kLanes, int kHeads>
struct TurnPlace {
  int64_t row;
  int head, heads, lane;
  bool isLive;  // threads beyond the last row stay for the shuffles of their warp

  __device__ TurnPlace(int64_t rows, int allHeads) : heads(allHeads) {
    const int64_t item = int64_t(blockIdx.x) * kTurnThreads + threadIdx.x, tile = item / kLanes;
    const int tiles = (heads + kHeads - 1) / kHeads;
    lane = int(item % kLanes);
    row = tile / tiles;
    head = int(tile - row * tiles) * kHeads;
    isLive = row < rows;
  }
  __device__ bool has(int h) const { return isLive && head + h < heads; }
  // Vector of the first half; that of the second is kLanes further.
  __device__ int64_t at(int h) const { return (row * heads + head + h) * (2 * kLanes) + lane; }
  __device__ int64_t grid(int h) const { return row * heads + head + h; }
  __device__ RowVector angle(const float* table, int32_t positions) const {
    return isLive ? loadVec<float, kRowVector>(table, row % positions * kLanes + lane)
                  : RowVector{};
  }
};

// ---------------------------------------------------------------- forward

struct RopeGrid {
  const float* x;
  Tables tables;
  float* y;
  int64_t rows;
  int32_t heads;
  ClipLogits<float> clip;
  GridRule<float> rule;
  float *scale, *zero;
};

template <int kLanes>
__global__ __launch_bounds__(kTurnThreads) void turnHeads(const __grid_constant__ RopeGrid a) {
  waitForKernelBefore();
  const TurnPlace<kLanes, kTurnHeads> place(a.rows, a.heads);
  RowVector first[kTurnHeads] = {}, second[kTurnHeads] = {};
#pragma unroll
  for (int h = 0; h < kTurnHeads; h++) {
    if (!place.has(h)) continue;
    first[h] = loadVec<float, kRowVector>(a.x, place.at(h));
    second[h] = loadVec<float, kRowVector>(a.x, place.at(h) + kLanes);
  }
  const RowVector c = place.angle(a.tables.cosines, a.tables.positions);
  const RowVector s = place.angle(a.tables.sines, a.tables.positions);
  letNextKernelStart();
  const ClipFactors<float> clip(a.clip, 0);
#pragma unroll
  for (int h = 0; h < kTurnHeads; h++) {
    RowVector u, v;
    float low = 0, high = 0;
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      turnPair(first[h].lane[e], second[h].lane[e], c.lane[e], s.lane[e], u.lane[e], v.lane[e]);
      low = fminf(low, fminf(u.lane[e], v.lane[e]));
      high = fmaxf(high, fmaxf(u.lane[e], v.lane[e]));
    }
    neighbourExtremes<kLanes>(low, high);
    if (!place.has(h)) continue;
    storeVec(a.y, place.at(h), u);
    storeVec(a.y, place.at(h) + kLanes, v);
    if (place.lane != 0) continue;
    low = mulRn(low, clip.low);
    const float scale = a.rule.scale(low, mulRn(high, clip.high));
    a.scale[place.grid(h)] = scale;
    a.zero[place.grid(h)] = a.rule.zeroPoint(low, scale);
  }
}

// ---------------------------------------------------------------- backward

template <class G>
struct RopeGridGrad {
  const float *y, *g;
  Tables tables;
  G* gx;
  int64_t rows;
  int32_t heads;
  RowQuantizer quantizer;  // whose partial sums are those of blocks
};

template <class G, int kLanes>
__global__ __launch_bounds__(kTurnThreads,
                             3) void turnHeadsBack(const __grid_constant__ RopeGridGrad<G> a) {
  constexpr int kHeads = kTurnBackHeads, kOwn = 2 * kRowVector;
  waitForKernelBefore();
  const TurnPlace<kLanes, kHeads> place(a.rows, a.heads);
  float y[kHeads][kOwn] = {}, g[kHeads][kOwn] = {}, scale[kHeads], zero[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; h++) {
    scale[h] = 1;
    zero[h] = 0;
    if (!place.has(h)) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const RowVector own = loadVec<float, kRowVector>(a.y, place.at(h) + half * kLanes);
      const RowVector back = loadVec<float, kRowVector>(a.g, place.at(h) + half * kLanes);
#pragma unroll
      for (int e = 0; e < kRowVector; e++) {
        y[h][half * kRowVector + e] = own.lane[e];
        g[h][half * kRowVector + e] = back.lane[e];
      }
    }
    scale[h] = a.quantizer.scale[place.grid(h)];
    zero[h] = a.quantizer.zero[place.grid(h)];
  }
  const RowVector c = place.angle(a.tables.cosines, a.tables.positions);
  const RowVector s = place.angle(a.tables.sines, a.tables.positions);
  letNextKernelStart();
  const ClipFactors<float> clip(a.quantizer.clip, 0);
  const float none[kOwn] = {};
  double sum = 0;
#pragma unroll
  for (int h = 0; h < kHeads; h++) {
    const GradGrid<float> grid(scale[h], zero[h], a.quantizer.rule.top);
    GroupSums<float> sums(0.0f);
    grid.template take<false>(y[h], g[h], none, sums);
    addNeighbours<kLanes>(sums);
    ExtremeCounts counts;
#pragma unroll
    for (int e = 0; e < kOwn; e++) counts.take(y[h][e], sums);
    groupCounts<kLanes>(counts);
    const ExtremeGrads<float> grads =
        extremeGrads(sums, a.quantizer.rule, scale[h], clip.high, clip.low);
    const ExtremeShares<float> shares(sums, counts, grads.low * clip.low, grads.high * clip.high);
    RowVector u, v;
#pragma unroll
    for (int e = 0; e < kRowVector; e++) {
      const float first = g[h][e] + shares.of(y[h][e]);
      const float second = g[h][kRowVector + e] + shares.of(y[h][kRowVector + e]);
      turnPair(first, second, c.lane[e], -s.lane[e], u.lane[e], v.lane[e]);
    }
    if (!place.has(h)) continue;
    if constexpr (kIsShort<G>) {
      storeVec(a.gx, place.at(h), narrow<G>(u));
      storeVec(a.gx, place.at(h) + kLanes, narrow<G>(v));
    } else {
      storeVec(a.gx, place.at(h), u);
      storeVec(a.gx, place.at(h) + kLanes, v);
    }
    if (place.lane == 0)
      sum += double(grads.high) * double(sums.high) + double(grads.low) * double(sums.low);
  }
  if (!a.quantizer.partials) return;
  sum = rowSum<kTurnThreads>(sum);
  if (threadIdx.x == 0) a.quantizer.partials[blockIdx.x] = sum;
}

// ---------------------------------------------------------------- host

int32_t headSize(const aq_view* in) { return int32_t(2 * lastDim(in[1])); }

// Whether heads are of a size, and addresses as the kernels want them.
bool isInOnePass(const aq_view* in, const aq_view& g, const aq_view& out) {
  const int32_t size = headSize(in);
  return in[0].dtype == AQ_F32 && numel(in[0]) > 0 &&
         (size == 32 || size == 64 || size == 128 || size == 256) && isAligned16(in[0].data) &&
         isAligned16(in[1].data) && isAligned16(in[2].data) && isAligned16(g.data) &&
         isAligned16(out.data);
}

unsigned turnBlocks(int64_t rows, int32_t heads, int32_t size, int headsOfThread) {
  const int64_t items = rows * ((heads + headsOfThread - 1) / headsOfThread) * (size / 8);
  return unsigned((items + kTurnThreads - 1) / kTurnThreads);
}

Tables tablesOf(const aq_view* in) {
  return {static_cast<const float*>(in[1].data), static_cast<const float*>(in[2].data),
          int32_t(in[1].dim[0])};
}

// Calls f.operator()<kLanes>() for the threads of a head.
template <class F>
int32_t visitTurnLanes(int32_t size, F&& f) {
  if (size == 32) return f.template operator()<4>();
  if (size == 64) return f.template operator()<8>();
  if (size == 128) return f.template operator()<16>();
  return f.template operator()<32>();
}

int32_t runForward(aq_queue* queue, const aq_view* in, const aq_view* out,
                   const aq_rope_grid_params& o, aq_error* err) {
  const int64_t rows = numel(in[0]) / lastDim(in[0]), groups = rows * o.heads;
  const RopeGrid a = {static_cast<const float*>(in[0].data),
                      tablesOf(in),
                      static_cast<float*>(out[0].data),
                      rows,
                      o.heads,
                      {static_cast<const float*>(in[3].data), groups, true},
                      GridRule<float>::of(RowRule{o.floor, o.bits}, false),
                      static_cast<float*>(out[1].data),
                      static_cast<float*>(out[2].data)};
  const unsigned blocks = turnBlocks(rows, o.heads, headSize(in), kTurnHeads);
  const EarlyLaunch launch(queue, dim3(blocks), kTurnThreads);
  return visitTurnLanes(headSize(in), [&]<int kLanes>() -> int32_t {
    CUDA_CHECK(cudaLaunchKernelEx(&launch.config, turnHeads<kLanes>, a));
    return AQ_OK;
  });
}

template <class G>
int32_t runBackward(aq_queue* queue, const aq_view* in, const aq_view* out,
                    const aq_rope_grid_grad_params& o, aq_error* err) {
  const int64_t rows = numel(in[0]) / lastDim(in[0]);
  const unsigned blocks = turnBlocks(rows, o.heads, headSize(in), kTurnBackHeads);
  Scratch scratch(queue);
  if (in[3].data) {
    const uint64_t bytes = logitSumBytes(in[3], blocks);
    if (const int32_t code = scratch.allocate(bytes, "rope_grid_grad", err)) return code;
  }
  const RopeGridGrad<G> a = {
      static_cast<const float*>(in[0].data),
      static_cast<const float*>(in[6].data),
      tablesOf(in),
      static_cast<G*>(out[0].data),
      rows,
      o.heads,
      rowQuantizer(queue, in[3], in + 4, {o.floor, o.bits}, blocks, scratch.at<double>(), out[1])};
  const EarlyLaunch launch(queue, dim3(blocks), kTurnThreads);
  const int32_t code = visitTurnLanes(headSize(in), [&]<int kLanes>() -> int32_t {
    CUDA_CHECK(cudaLaunchKernelEx(&launch.config, turnHeadsBack<G, kLanes>, a));
    return AQ_OK;
  });
  return code != AQ_OK ? code : launchLogitSum(queue, a.quantizer, err);
}

template <class T>
int32_t backThroughScratch(aq_queue* queue, const aq_view* in, const aq_view* out,
                           const aq_rope_grid_grad_params& o, aq_error* err) {
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(in[0])) * sizeof(T);
  if (bytes > 0) {
    if (const int32_t code = scratch.allocate(bytes, "rope_grid_grad", err)) return code;
  }
  const aq_view gy = viewOf(in[0], scratch.at<T>());
  const aq_fake_quant_grad_params quantizer = {o.floor, o.bits, headSize(in), 0, 1, 0, 0};
  const aq_view inputs[] = {in[0], in[4], in[5], in[6], in[3], {}, {}, {}};
  const aq_view outputs[] = {gy, out[1], {}, {}, {}};
  if (const int32_t code = fake_quant_grad(queue, inputs, 8, outputs, 5, &quantizer, err))
    return code;
  const aq_rope_params turn = {o.heads, 1, o.bf16, 0};
  const aq_view turned[] = {gy, in[1], in[2]};
  return rope(queue, turned, 3, out, 1, &turn, err);
}

}  // namespace

int32_t rope_grid(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                  const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_rope_grid_params*>(params);
  if (isInOnePass(in, in[0], out[0])) return runForward(queue, in, out, o, err);
  const aq_rope_params turn = {o.heads, 0, 0, 0};
  if (const int32_t code = rope(queue, in, 3, out, 1, &turn, err)) return code;
  const aq_quant_grid_params grid = {o.floor, o.bits, headSize(in), 0, 0, 0, 0};
  const aq_view inputs[] = {out[0], in[3], {}, {}};
  return quant_grid(queue, inputs, 4, out + 1, 2, &grid, err);
}

int32_t rope_grid_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                       const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_rope_grid_grad_params*>(params);
  if (isInOnePass(in, in[6], out[0])) {
    return o.bf16 ? runBackward<__nv_bfloat16>(queue, in, out, o, err)
                  : runBackward<float>(queue, in, out, o, err);
  }
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return backThroughScratch<T>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
