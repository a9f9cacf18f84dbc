// rms_norm_operand_grad and layer_norm_operand_grad: from what was quantized, through the quantizer and
// the norm, in one pass.
//
// Math      fake_quant_grad of y = (x - mean) rstd w + b, which is made again, where rms_norm has no
//           mean; and the norm's gradient of that.
// Layout    norm_grad.cu's, with the quantizer's gradient taken of a row's g while it is in registers.
//           Rows of up to 8192 numbers; longer ones, f64 and what 16-byte accesses do not fit go through
//           scratch, op by op.
// Cost      reads 8 B and writes 4 B a number, where the two ops move 24 B and y has to be there.
// Roofline  2048 x 4096: 100 MB -> 30 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB
//           HBM3, CUDA 13.0, from Node.js: 62 us, one op after the other 89; layer_norm 62 and 90.
// Versions  v2 (this) has three barriers a row (v1: five, 66 us), two sums in one, and the logit's sum
//           in the last block. v1 with the next row on its way in registers, which spilled: 79 us.
// Numerics  codes and what passes are fake_quant_grad's; sums are taken in an order that the shape fixes.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/norm_grad.cuh"
#include "native/cuda/device/row_operand_grad.cuh"
#include "native/cuda/kernels/row_operand.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// What is done to a row's g before the norm sees it.
template <int kLanes, bool kCentered, bool kBias>
struct ThroughQuantizer {
  RowQuantizer quantizer;
  const float* w;
  const float* b;
  const float* mean;
  const float* rstd;
  int vectors;

  static constexpr bool kHasBarrier = true;
  using State = ClipFactors<float>;
  __device__ State start() const { return State(quantizer.clip, 0); }
  __device__ void finish() const { quantizer.finishLast<kNormGradBlock<kLanes>>(); }
  __device__ void operator()(const State& factors, int64_t row, int lane,
                             const RowVector (&x)[kNormKept], RowVector (&g)[kNormKept]) const {
    const float scale = rstd[row], middle = kCentered ? mean[row] : 0.0f;
    quantizer.pass<kLanes>(factors, row, lane, vectors, g, [&](int i) {
      const RowVector gain = loadVec<float, kRowVector>(w, lane + i * kLanes);
      RowVector y = {};
      if (kBias) y = loadVec<float, kRowVector>(b, lane + i * kLanes);
#pragma unroll
      for (int e = 0; e < kRowVector; e++)
        y.lane[e] = normed(x[i].lane[e], middle, scale, gain.lane[e], y.lane[e]);
      return y;
    });
  }
};

struct Call {
  const char* op;
  NormGrad<float> norm;
  RowQuantizer quantizer;
  const float* b;  // layer_norm has one always
  float* gw;
  float* gb;
};

template <int kLanes, bool kCentered, bool kBias>
int32_t launch(aq_queue* queue, const Call& call, int64_t parts, aq_error* err) {
  const NormGrad<float>& n = call.norm;
  using Before = ThroughQuantizer<kLanes, kCentered, kBias>;
  const Before before = {call.quantizer, n.w, call.b, n.mean, n.rstd, int(n.columns / kRowVector)};
  const auto kernel = normGradPart<float, kLanes, kCentered, kBias, Before>;
  constexpr int kBytes = kNormStages<kLanes>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<unsigned(parts), kNormGradBlock<kLanes>, kBytes, queue->stream>>>(n, before);
  LAUNCH_CHECK("the gradient of a norm with its quantizer");
  constexpr int kRows = kBias ? 2 : 1;
  ColumnSums<float, kRows> sums = {call.gw};
  if constexpr (kBias) sums.y[1] = call.gb;
  sumColumnParts<float, kRows>
      <<<dim3(columnBlocks(n.columns), kRows), kColumnThreads, 0, queue->stream>>>(n.parts, parts,
                                                                                   n.columns, sums);
  LAUNCH_CHECK("the gradient of a norm with its quantizer (sums)");
  return AQ_OK;
}

template <int kLanes>
int32_t launchFor(aq_queue* queue, const Call& call, int64_t parts, aq_error* err) {
  if (call.norm.mean) return launch<kLanes, true, true>(queue, call, parts, err);
  return call.b ? launch<kLanes, false, true>(queue, call, parts, err)
                : launch<kLanes, false, false>(queue, call, parts, err);
}

int32_t inOnePass(aq_queue* queue, Call call, aq_error* err) {
  NormGrad<float>& n = call.norm;
  const int64_t perLane = kNormKept * kRowVector;
  const bool isShort = n.columns <= kWarp * perLane;
  const int64_t parts = cutRows(n, isShort ? kNormThreads / kWarp : 1);
  n.stride = call.b ? 2 * n.columns : n.columns;
  Scratch scratch(queue);
  const uint64_t sums = scratchBytes(uint64_t(parts) * uint64_t(n.stride) * sizeof(float));
  const uint64_t partials = call.quantizer.clipGrad ? uint64_t(n.rows) * sizeof(double) : 0;
  if (const int32_t code = scratch.allocate(sums + partials, call.op, err)) return code;
  n.parts = scratch.at<float>();
  call.quantizer.partials = call.quantizer.clipGrad ? scratch.at<double>(sums) : nullptr;
  if (isShort) return launchFor<kWarp>(queue, call, parts, err);
  if (n.columns <= kNormThreads * perLane) return launchFor<kNormThreads>(queue, call, parts, err);
  return launchFor<2 * kNormThreads>(queue, call, parts, err);
}

// ---------------------------------------------------------------- any shape

// An op, and how many numbers the norm stored of every row: rstd, or mean and rstd.
struct Op {
  const char* name;
  int saved;
};

template <class T>
struct Rows {
  const T* x;
  const T* w;
  const T* b;     // may be null
  const T* mean;  // may be null
  const T* rstd;
  T* y;
  int64_t count, columns;
};

template <class T>
__global__ __launch_bounds__(kElementThreads) void normAgain(const __grid_constant__ Rows<T> a) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < a.count; k += stride) {
    const int64_t row = k / a.columns, c = k - row * a.columns;
    const T mean = a.mean ? a.mean[row] : T(0);
    a.y[k] = normed(a.x[k], mean, a.rstd[row], a.w[c], a.b ? a.b[c] : T(0));
  }
}

template <class T, class Params>
int32_t throughScratch(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out,
                       const Params& o, aq_error* err) {
  const int64_t count = numel(in[0]);
  const uint64_t bytes = scratchBytes(uint64_t(count) * sizeof(T));
  Scratch scratch(queue);
  if (const int32_t code = scratch.allocate(2 * bytes, op.name, err)) return code;
  const aq_view y = viewOf(in[0], scratch.at<T>()), gy = viewOf(in[0], scratch.at<T>(bytes));
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  const bool isCentered = op.saved > 1;
  const aq_view* const rstd = in + 3 + op.saved;  // scale, zero and g behind it
  if (count > 0) {
    const Rows<T> rows = {input(0),
                          input(1),
                          input(2),
                          isCentered ? input(4) : nullptr,
                          static_cast<const T*>(rstd->data),
                          scratch.at<T>(),
                          count,
                          lastDim(in[0])};
    normAgain<T><<<elementBlocks(count), kElementThreads, 0, queue->stream>>>(rows);
    LAUNCH_CHECK("a norm made again");
  }
  if (const int32_t code =
          quantizeRowsGrad(queue, y, in[3], rstd + 1, rstd[3], o.bits, o.floor, gy, out[3], err))
    return code;
  if (!isCentered) {
    const aq_rms_norm_grad_params norm = {o.need_gx, in[2].data ? 1 : 0};
    const aq_view inputs[] = {in[0], in[1], *rstd, gy};
    return rms_norm_grad(queue, inputs, 4, out, 3, &norm, err);
  }
  // layer_norm_grad always writes gx.
  const aq_view inputs[] = {in[0], in[1], in[4], *rstd, gy};
  const aq_view outputs[] = {o.need_gx ? out[0] : y, out[1], out[2]};
  return layer_norm_grad(queue, inputs, 5, outputs, 3, nullptr, err);
}

bool isOnePass(const aq_queue* queue, const aq_view* in, const aq_view& g, const aq_view* out) {
  constexpr int64_t kPerBlock = kNormThreads * kNormKept * kRowVector;
  const int64_t columns = lastDim(in[0]);
  if (columns % kRowVector != 0 || columns > 2 * kPerBlock || numel(in[0]) == 0) return false;
  if (columns > kPerBlock && !hasNormStages<2 * kNormThreads>(queue)) return false;
  return isAligned16(in[0].data) && isAligned16(in[1].data) && isAligned16(in[2].data) &&
         isAligned16(g.data) && isAligned16(out[0].data);
}

template <class Params>
int32_t run(aq_queue* queue, const Op& op, const aq_view* in, const aq_view* out, const Params& o,
            aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    if constexpr (sizeof(T) == 4) {
      const int rstd = 3 + op.saved;
      if (isOnePass(queue, in, in[rstd + 3], out)) {
        const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
        const auto output = [&](int i) { return static_cast<T*>(out[i].data); };
        Call call = {};
        call.op = op.name;
        call.norm.x = input(0);
        call.norm.w = input(1);
        call.norm.mean = op.saved > 1 ? input(4) : nullptr;
        call.norm.rstd = input(rstd);
        call.norm.g = input(rstd + 3);
        call.norm.gx = o.need_gx ? output(0) : nullptr;
        call.norm.columns = lastDim(in[0]);
        call.norm.rows = numel(in[0]) / call.norm.columns;
        call.quantizer.clip = {input(3), call.norm.rows, true};
        call.quantizer.rule = GridRule<T>::of(RowRule{o.floor, o.bits}, false);
        call.quantizer.scale = input(rstd + 1);
        call.quantizer.zero = input(rstd + 2);
        call.b = input(2);
        call.gw = output(1);
        call.gb = call.b ? output(2) : nullptr;
        call.quantizer.clipGrad = input(3) ? output(3) : nullptr;
        call.quantizer.ticket = queue->ticket;
        call.quantizer.rows = call.norm.rows;
        return inOnePass(queue, call, err);
      }
    }
    return throughScratch<T>(queue, op, in, out, o, err);
  });
}

}  // namespace

int32_t rms_norm_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                              int32_t, const void* params, aq_error* err) {
  return run(queue, {"rms_norm_operand_grad", 1}, in, out,
             *static_cast<const aq_rms_norm_operand_grad_params*>(params), err);
}

int32_t layer_norm_operand_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                                int32_t, const void* params, aq_error* err) {
  return run(queue, {"layer_norm_operand_grad", 2}, in, out,
             *static_cast<const aq_layer_norm_operand_grad_params*>(params), err);
}

}  // namespace aq::cuda
