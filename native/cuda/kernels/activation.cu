// silu_mul, silu_mul_grad, relu, relu_grad, rope: what a block does to activations beside norms,
// products and attention.
//
// Math      silu_mul: y = gate s up, s = sigmoid(gate); gradient: ggate = g up s (1 + gate (1 -
//           s)), gup = g gate s.  relu: y = max(x, 0) and NaN stays; gradient: g where y > 0. rope:
//           the pair (x_i, x_{i+D/2}) of every head is turned by the angle of (position, i); the
//           turn back is its inverse and its gradient.
// Layout    flat streams (map.cuh). rope: a thread takes up to 4 heads of one row at the same place
//           i, so that a vector of cosines and sines is loaded once for four pairs of vectors.
// Cost      silu_mul reads 2 and writes 1, its gradient 3 and 2 (or two of bf16), relu 1 and 1,
//           relu_grad 2 and 1, rope 1 and 1 numbers per element: bandwidth-bound.
// Roofline  silu_mul of 2048 x 11008 f32: 270 MB -> 81 us at 3.35 TB/s (H100 SXM data sheet); its
//           gradient 451 MB -> 135 us. Measured on an H100 80GB HBM3: 93 us and 153 us, 99 % and
//           100 % of what a copy reaches (2.95 TB/s), and 120 us with its results in bf16; relu
//           96 %, relu_grad 99 %; rope of 2048 x 4096 27 us, 85 %, of 8192 x 4096 95 %.
// Versions  v1; v2 silu_mul_grad in bf16 (this).
// Numerics  f32: expf is within 2 ulp, the quotient of the sigmoid within 2 more.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/map.cuh"
#include "native/cuda/device/relu.cuh"
#include "native/cuda/device/rope.cuh"
#include "native/cuda/device/silu.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

// ---------------------------------------------------------------- silu_mul, relu

// The gradient in bf16, runs of 4 numbers a thread where the addresses allow, else (runs 0) one by
// one.
__global__ __launch_bounds__(kElementThreads) void siluMulGradShort(
    const float* __restrict__ gate, const float* __restrict__ up, const float* __restrict__ g,
    __nv_bfloat16* __restrict__ gGate, __nv_bfloat16* __restrict__ gUp, int64_t runs,
    int64_t count) {
  constexpr int kRun = kVecWidth<float>;
  const SiluMulGrad<float> gradient;
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  const int64_t first = int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
  for (int64_t k = first; k < runs; k += stride) {
    const auto a = loadRun<float, kRun>(gate, k), b = loadRun<float, kRun>(up, k);
    const auto c = loadRun<float, kRun>(g, k);
    Vec<float, kRun> y0, y1;
#pragma unroll
    for (int e = 0; e < kRun; e++) {
      const float x[3] = {a.lane[e], b.lane[e], c.lane[e]};
      float y[2];
      gradient(x, y);
      y0.lane[e] = y[0];
      y1.lane[e] = y[1];
    }
    storeVec(gGate, k, narrow<__nv_bfloat16>(y0));
    storeVec(gUp, k, narrow<__nv_bfloat16>(y1));
  }
  for (int64_t k = runs * kRun + first; k < count; k += stride) {
    const float x[3] = {gate[k], up[k], g[k]};
    float y[2];
    gradient(x, y);
    gGate[k] = __float2bfloat16_rn(y[0]);
    gUp[k] = __float2bfloat16_rn(y[1]);
  }
}

int32_t runSiluMulGradShort(aq_queue* queue, const aq_view* in, const aq_view* out, aq_error* err) {
  const int64_t count = numel(in[0]);
  if (count == 0) return AQ_OK;
  const bool isWide = isAligned16(in[0].data) && isAligned16(in[1].data) &&
                      isAligned16(in[2].data) && isAligned16(out[0].data) &&
                      isAligned16(out[1].data);
  const int64_t runs = isWide ? count / kVecWidth<float> : 0;
  const unsigned blocks =
      runs > 0 ? unsigned((runs + kElementThreads - 1) / kElementThreads) : elementBlocks(count);
  siluMulGradShort<<<blocks, kElementThreads, 0, queue->stream>>>(
      static_cast<const float*>(in[0].data), static_cast<const float*>(in[1].data),
      static_cast<const float*>(in[2].data), static_cast<__nv_bfloat16*>(out[0].data),
      static_cast<__nv_bfloat16*>(out[1].data), runs, count);
  LAUNCH_CHECK("silu_mul_grad");
  return AQ_OK;
}

// ---------------------------------------------------------------- rope

// Heads of a row that one thread turns.
constexpr int kRopeHeads = 4;

template <class T, class Y>
struct Rope {
  const T* x;
  const T* cosines;
  const T* sines;
  Y* y;
  int64_t rows;
  int32_t positions, heads, half;  // half = D/2
  T sign;
};

template <class T, class Y, int kVec>
__global__ __launch_bounds__(kElementThreads) void turnPairs(Rope<T, Y> r) {
  using V = Vec<T, kVec>;
  const int32_t perHead = r.half / kVec;                              // vectors of a half
  const int32_t headTiles = (r.heads + kRopeHeads - 1) / kRopeHeads;  // threads beside each other
  const int64_t item = int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
  const int64_t tile = item / perHead;
  const int64_t row = tile / headTiles;
  if (row >= r.rows) return;
  const int32_t i = int32_t(item - tile * perHead);
  const int32_t firstHead = int32_t(tile - row * headTiles) * kRopeHeads;

  const int64_t angle = row % r.positions * perHead + i;
  const int64_t at = (row * r.heads + firstHead) * (2 * perHead) + i;
  V a[kRopeHeads], b[kRopeHeads];
#pragma unroll
  for (int h = 0; h < kRopeHeads; h++) {
    if (firstHead + h >= r.heads) continue;
    a[h] = loadVec<T, kVec>(r.x, at + h * 2 * perHead);
    b[h] = loadVec<T, kVec>(r.x, at + h * 2 * perHead + perHead);
  }
  const V c = loadVec<T, kVec>(r.cosines, angle);
  V s = loadVec<T, kVec>(r.sines, angle);
#pragma unroll
  for (int e = 0; e < kVec; e++) s.lane[e] *= r.sign;
#pragma unroll
  for (int h = 0; h < kRopeHeads; h++) {
    if (firstHead + h >= r.heads) continue;
    V u, v;
#pragma unroll
    for (int e = 0; e < kVec; e++) {
      turnPair(a[h].lane[e], b[h].lane[e], c.lane[e], s.lane[e], u.lane[e], v.lane[e]);
    }
    if constexpr (kIsShort<Y>) {
      storeVec(r.y, at + h * 2 * perHead, narrow<Y>(u));
      storeVec(r.y, at + h * 2 * perHead + perHead, narrow<Y>(v));
    } else {
      storeVec(r.y, at + h * 2 * perHead, u);
      storeVec(r.y, at + h * 2 * perHead + perHead, v);
    }
  }
}

template <class T, class Y, int kVec>
int32_t launchRope(aq_queue* queue, const Rope<T, Y>& r, aq_error* err) {
  const int64_t headTiles = (r.heads + kRopeHeads - 1) / kRopeHeads;
  const int64_t items = r.rows * headTiles * (r.half / kVec);
  const unsigned blocks = unsigned((items + kElementThreads - 1) / kElementThreads);
  turnPairs<T, Y, kVec><<<blocks, kElementThreads, 0, queue->stream>>>(r);
  LAUNCH_CHECK("rope");
  return AQ_OK;
}

template <class T, class Y>
int32_t runRope(aq_queue* queue, const aq_view* in, const aq_view& out, const aq_rope_params& p,
                aq_error* err) {
  const int64_t half = in[1].dim[in[1].rank - 1];
  const int64_t width = int64_t(p.heads) * half * 2;
  const int64_t count = numel(in[0]);
  if (count == 0) return AQ_OK;
  const Rope<T, Y> r = {static_cast<const T*>(in[0].data),
                        static_cast<const T*>(in[1].data),
                        static_cast<const T*>(in[2].data),
                        static_cast<Y*>(out.data),
                        count / width,
                        int32_t(numel(in[1]) / half),
                        p.heads,
                        int32_t(half),
                        p.inverse ? T(-1) : T(1)};
  const bool isWide = half % kVecWidth<T> == 0 && isAligned16(r.x) && isAligned16(r.cosines) &&
                      isAligned16(r.sines) && isAligned16(r.y);
  return isWide ? launchRope<T, Y, kVecWidth<T>>(queue, r, err)
                : launchRope<T, Y, 1>(queue, r, err);
}

}  // namespace

int32_t silu_mul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "silu_mul", numel(in[0]), streamsOf<T, 2, 1>(in, out), SiluMul<T>{},
                       err);
  });
}

int32_t silu_mul_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                      const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  if (static_cast<const aq_silu_mul_grad_params*>(params)->bf16)
    return runSiluMulGradShort(queue, in, out, err);
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "silu_mul_grad", numel(in[0]), streamsOf<T, 3, 2>(in, out),
                       SiluMulGrad<T>{}, err);
  });
}

int32_t relu(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t, const void*,
             aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "relu", numel(in[0]), streamsOf<T, 1, 1>(in, out), Relu<T>{}, err);
  });
}

int32_t relu_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                  const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() {
    return mapElements(queue, "relu_grad", numel(in[0]), streamsOf<T, 2, 1>(in, out), ReluGrad<T>{},
                       err);
  });
}

int32_t rope(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
             const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_rope_params*>(params);
  if (p.bf16) return runRope<float, __nv_bfloat16>(queue, in, out[0], p, err);
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return runRope<T, T>(queue, in, out[0], p, err); });
}

}  // namespace aq::cuda
