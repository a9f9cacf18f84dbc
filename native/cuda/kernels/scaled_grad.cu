// scaled_grad: fake_quant_grad of y = r x c, a matrix with factors of its rows and columns.
//
// Math      gy as in fake_quant_grad.cu for y; gr_m = sum_k gy x c, gc_k = sum_m gy x r,
//           gx = r gy c.
// Layout    One block a row at a time, its x and g in registers, several rows a block in turns: the
//           sums over rows for gc stay in shared memory, where each thread owns its columns, and
//           leave as one partial row a block, which a second kernel adds up.
//           Where that does not fit (groups within a row, offsets, one logit for all, odd widths,
//           f64) y and gy are made in scratch by the ops that this one fuses.
// Cost      reads x and g once: 8 B an element (f32), 12 B with gx, against 36 B of scale_weight,
//           fake_quant_grad and scale_weight_grad one after another. Bandwidth-bound.
// Roofline  11008 x 4096 f32: 361 MB -> 108 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  y rounds as in scale_weight, so codes are the same; sums over a row in f32, a few dozen
//           terms a thread and then a tree, over rows in f32 by block and then in order. The order is
//           fixed by the shape and the device's number of multiprocessors.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid_grad.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/fake_quant_grad.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = kGroupThreads;
constexpr int kVec = kVecWidth<float>;
constexpr int kMostBatch = 11;      // vectors a thread: rows of up to 11264 numbers
constexpr int kBlocksPerMulti = 2;  // as many as the registers of kMostBatch leave room for

struct ScaledGrad {
  const float* x;
  const float* g;
  const float* r;  // null: ones
  const float* c;
  const float* scale;
  const float* zero;
  ClipLogits<float> clip;
  GridRule<float> rule;
  float* gx;        // or null
  float* clipGrad;  // [2, M], or null
  float* gr;        // [M], or null
  float* partials;  // [gridDim.x, K] of gc, or null
  int64_t rows;
  int vectors;  // of a row
};

using Quad = Vec<float, kVec>;

__device__ inline Quad factors(const float* c, int k) {
  if (c) return loadVec<float, kVec>(c, k);
  return {{1, 1, 1, 1}};
}

template <int kBatch>
__global__ __launch_bounds__(kThreads, kBlocksPerMulti) void gradRows(ScaledGrad a) {
  extern __shared__ float4 columnSums[];
  Quad* const sums = reinterpret_cast<Quad*>(columnSums);
  if (a.partials) {
    for (int k = threadIdx.x; k < a.vectors; k += kThreads) sums[k] = {};
  }
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int64_t begin = row * a.vectors * kVec;
    const float r = a.r ? a.r[row] : 1.0f;
    const GridCode<float> grid(a.scale[row], a.zero[row], a.rule.top);
    Quad x[kBatch], g[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int k = int(threadIdx.x) + i * kThreads;
      if (k >= a.vectors) break;
      x[i] = loadVec<float, kVec>(a.x + begin, k);
      g[i] = loadVec<float, kVec>(a.g + begin, k);
    }
    const float seed = a.rule.published ? mulRn(mulRn(r, a.x[begin]), a.c ? a.c[0] : 1.0f) : 0.0f;
    GroupSums<float> found(seed);
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int k = int(threadIdx.x) + i * kThreads;
      if (k >= a.vectors) break;
      const Quad c = factors(a.c, k);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const float y = mulRn(mulRn(r, x[i].lane[e]), c.lane[e]);
        g[i].lane[e] = gradStep<true, false>(grid, y, g[i].lane[e], 0.0f, found);
      }
    }
    groupSums<kThreads, true>(found);
    const float f1 = a.clip.factor(a.clip.high(row)), f2 = a.clip.factor(a.clip.low(row));
    const ExtremeGrads<float> grads = extremeGrads(found, a.rule, grid.s, f1, f2);
    const ExtremeShares<float> shares(found, grads.low * f2, grads.high * f1);

    float rowGrad = 0;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int k = int(threadIdx.x) + i * kThreads;
      if (k >= a.vectors) break;
      const Quad c = factors(a.c, k);
      Quad sum = {};
      if (a.partials) sum = sums[k];
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        const float y = mulRn(mulRn(r, x[i].lane[e]), c.lane[e]);
        const float gy = g[i].lane[e] + shares.of(y);
        const float product = gy * x[i].lane[e];
        rowGrad += product * c.lane[e];
        sum.lane[e] += product * r;
        g[i].lane[e] = gy * r * c.lane[e];
      }
      if (a.partials) sums[k] = sum;
      if (a.gx) storeVec(a.gx + begin, k, g[i]);
    }
    rowGrad = rowSum<kThreads>(rowGrad);  // its barriers also end the use of groupSums' memory
    if (threadIdx.x == 0) {
      if (a.gr) a.gr[row] = rowGrad;
      if (a.clipGrad) {
        a.clipGrad[row] = grads.high * found.high * (f1 * (1 - f1));
        a.clipGrad[a.rows + row] = grads.low * found.low * (f2 * (1 - f2));
      }
    }
  }
  if (!a.partials) return;
  float* const mine = a.partials + int64_t(blockIdx.x) * a.vectors * kVec;
  for (int k = threadIdx.x; k < a.vectors; k += kThreads) storeVec(mine, k, sums[k]);
}

__global__ __launch_bounds__(kThreads) void addColumns(const float* partials, int parts,
                                                       int64_t columns, float* gc) {
  constexpr int kLanes = 8;  // threads that share a column
  const int lane = int(threadIdx.x) / (kThreads / kLanes);
  const int own = int(threadIdx.x) % (kThreads / kLanes);
  const int64_t column = int64_t(blockIdx.x) * (kThreads / kLanes) + own;
  float sum = 0;
  if (column < columns) {
    for (int p = lane; p < parts; p += kLanes) sum += partials[p * columns + column];
  }
  __shared__ float sums[kLanes][kThreads / kLanes];
  sums[lane][own] = sum;
  __syncthreads();
  if (lane != 0 || column >= columns) return;
  for (int l = 1; l < kLanes; l++) sum += sums[l][own];
  gc[column] = sum;
}

// Whether the fused kernel takes the call.
bool fits(const aq_view* in, const aq_view* out, const aq_fake_quant_grad_params& o) {
  const int64_t cols = in[0].rank ? in[0].dim[in[0].rank - 1] : 1;
  if (in[0].dtype != AQ_F32 || cols % kVec != 0 || cols > kMostBatch * kThreads * kVec)
    return false;
  if ((o.group != 0 && o.group < cols) || in[5].data || numel(in[0]) == 0) return false;
  if (in[4].data && numel(in[4]) == 1) return false;
  for (const void* data : {in[0].data, in[3].data, in[7].data}) {
    if (!isAligned16(data)) return false;
  }
  return !o.need_gx || isAligned16(out[0].data);
}

int32_t runFused(aq_queue* queue, const aq_view* in, const aq_view* out,
                 const aq_fake_quant_grad_params& o, aq_error* err) {
  const int64_t cols = in[0].dim[in[0].rank - 1];
  ScaledGrad a = {};
  const auto input = [&](int i) { return static_cast<const float*>(in[i].data); };
  a.rows = numel(in[0]) / cols;
  a.vectors = int(cols / kVec);
  a.x = input(0);
  a.scale = input(1);
  a.zero = input(2);
  a.g = input(3);
  a.clip = {input(4), a.rows, false};
  a.r = input(6);
  a.c = input(7);
  a.rule = GridRule<float>::of(o, false);
  a.gx = o.need_gx ? static_cast<float*>(out[0].data) : nullptr;
  a.clipGrad = in[4].data ? static_cast<float*>(out[1].data) : nullptr;
  a.gr = a.r ? static_cast<float*>(out[3].data) : nullptr;

  const int64_t blocks =
      std::min<int64_t>(a.rows, int64_t(kBlocksPerMulti) * queue->multiprocessors);
  Scratch scratch(queue);
  if (a.c) {
    const uint64_t bytes = uint64_t(blocks) * uint64_t(cols) * sizeof(float);
    if (scratch.allocate(bytes, "fake_quant_grad", err) != AQ_OK) return err->code;
    a.partials = scratch.at<float>();
  }
  const size_t shared = a.partials ? size_t(cols) * sizeof(float) : 0;
  const int batch = (a.vectors + kThreads - 1) / kThreads;
  const auto kernel = batch <= 1   ? gradRows<1>
                      : batch <= 4 ? gradRows<4>
                      : batch <= 6 ? gradRows<6>
                                   : gradRows<kMostBatch>;
  kernel<<<unsigned(blocks), kThreads, shared, queue->stream>>>(a);
  LAUNCH_CHECK("fake_quant_grad");
  if (a.partials) {
    constexpr int kColumns = kThreads / 8;
    addColumns<<<unsigned((cols + kColumns - 1) / kColumns), kThreads, 0, queue->stream>>>(
        a.partials, int(blocks), cols, static_cast<float*>(out[4].data));
    LAUNCH_CHECK("fake_quant_grad (columns)");
  }
  return AQ_OK;
}

// y and gy in scratch, by the ops themselves.
int32_t runInSteps(aq_queue* queue, const aq_view* in, const aq_view* out,
                   aq_fake_quant_grad_params o, aq_error* err) {
  const bool needGx = o.need_gx != 0;
  const uint64_t size = in[0].dtype == AQ_F64 ? 8 : 4;
  const int64_t n = numel(in[0]), cols = in[0].rank ? in[0].dim[in[0].rank - 1] : 1;
  const int64_t rows = cols ? n / cols : 0;
  const uint64_t matrix = scratchBytes(uint64_t(n) * size);
  const uint64_t row = scratchBytes(uint64_t(rows) * size);
  Scratch scratch(queue);
  const uint64_t bytes = 2 * matrix + row + scratchBytes(uint64_t(cols) * size);
  if (scratch.allocate(bytes, "fake_quant_grad", err) != AQ_OK) return err->code;
  aq_view y = in[0], gy = in[0];
  y.data = scratch.at<char>();
  gy.data = scratch.at<char>(matrix);

  const aq_view given[] = {in[0], in[6], in[7]};
  if (scale_weight(queue, given, 3, &y, 1, nullptr, err) != AQ_OK) return err->code;
  o.need_gx = 1;
  const aq_view of[] = {y, in[1], in[2], in[3], in[4], in[5]};
  const aq_view to[] = {gy, out[1], out[2]};
  if (plainFakeQuantGrad(queue, of, to, o, err) != AQ_OK) return err->code;
  const aq_view scaling[] = {in[0], in[6], in[7], gy};
  aq_view sums[] = {out[3], out[4]};
  if (!in[6].data) sums[0] = {scratch.at<char>(2 * matrix), in[0].dtype, 1, {rows}};
  if (!in[7].data) sums[1] = {scratch.at<char>(2 * matrix + row), in[0].dtype, 1, {cols}};
  if (scale_weight_grad(queue, scaling, 4, sums, 2, nullptr, err) != AQ_OK) return err->code;
  const aq_view chain[] = {gy, in[6], in[7]};
  return needGx ? scale_weight(queue, chain, 3, out, 1, nullptr, err) : int32_t(AQ_OK);
}

}  // namespace

int32_t scaledFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                            const aq_fake_quant_grad_params& params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return fits(in, out, params) ? runFused(queue, in, out, params, err)
                               : runInSteps(queue, in, out, params, err);
}

}  // namespace aq::cuda
