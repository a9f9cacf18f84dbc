// rotate_pairs, rotate_pairs_grad: rows of q and k weights in pairs, each turned and stretched by
// parameters of its kv head. Such maps commute with RoPE, so they leave the model as it is.
//
// Math      rows (i, i + D/2) of head h, f = e^(sign_r log_r), a = sign_theta theta of its kv head:
//           y_i = f (w_i cos a - w_{i+D/2} sin a), y_{i+D/2} = f (w_{i+D/2} cos a + w_i sin a).
//           Gradient, from the output alone: glog_r = sign_r sum g y over both rows of the pair in
//           all heads of the group, gtheta = sign_theta sum (g_{i+D/2} y_i - g_i y_{i+D/2}).
// Layout    w, y, g [heads D, I] row-major, w and y f64, f32, bf16 or f16. One block per pair of
//           rows; for the gradient one block per parameter, over the group's pairs. 16-byte
//           accesses where I and the addresses allow.
// Cost      forward reads and writes heads D I numbers, the gradient reads twice that:
//           bandwidth-bound.
// Roofline  4096 x 4096 f32: 134 MB either way -> 40 us at 3.35 TB/s (H100 SXM data sheet), bf16
//           half of that. Measured on an H100 80GB HBM3: 48 us and, for the gradient, 47 us in f32,
//           26 us and 25 us in f16 and bf16, where a copy of as many bytes takes 47 us and 26 us.
// Versions  v1 factors first, then the rows: 52 us, 88 %; v2 the first loads before the factors; v3
//           short types (this).
// Numerics  e, cos and sin with the full-range library functions. A thread sums in T, block sums
//           are in double, in a fixed order.
#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;

template <class S>
struct Rotation {
  using T = Wide<S>;
  const S* w;
  const T* logR;
  const T* theta;
  S* y;
  int64_t columns;
  int32_t half, perKv;  // D/2; heads of a kv head
  T signR, signTheta;
};

template <class S, int kVec>
__global__ __launch_bounds__(kThreads) void rotateRows(Rotation<S> r) {
  using T = Wide<S>;
  // Vectors of each row that a thread has in flight; short ones double when they are widened.
  constexpr int kUnroll = kIsShort<S> ? 2 : 4;
  __shared__ T factors[2];  // f cos a, f sin a
  const int32_t head = int32_t(blockIdx.x) / r.half, i = int32_t(blockIdx.x) - head * r.half;
  const int64_t length = r.columns / kVec;
  const int64_t row0 = (int64_t(head) * 2 * r.half + i) * length, row1 = row0 + r.half * length;
  T c = 0, s = 0;
  for (int64_t first = 0; first < length; first += kUnroll * kThreads) {
    Vec<S, kVec> a[kUnroll], b[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int64_t k = first + u * kThreads + threadIdx.x;
      if (k >= length) continue;
      a[u] = loadVec<S, kVec>(r.w, row0 + k);
      b[u] = loadVec<S, kVec>(r.w, row1 + k);
    }
    if (first == 0) {  // while the first loads are under way
      if (threadIdx.x == 0) {
        const int64_t parameter = int64_t(head / r.perKv) * r.half + i;
        T sine, cosine, factor;
        if constexpr (std::is_same_v<T, float>) {
          sincosf(r.signTheta * r.theta[parameter], &sine, &cosine);
          factor = expf(r.signR * r.logR[parameter]);
        } else {
          sincos(r.signTheta * r.theta[parameter], &sine, &cosine);
          factor = ::exp(r.signR * r.logR[parameter]);
        }
        factors[0] = factor * cosine;
        factors[1] = factor * sine;
      }
      __syncthreads();
      c = factors[0];
      s = factors[1];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int64_t k = first + u * kThreads + threadIdx.x;
      if (k >= length) continue;
      const Vec<T, kVec> x0 = widen(a[u]), x1 = widen(b[u]);
      Vec<T, kVec> y0, y1;
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        y0.lane[e] = x0.lane[e] * c - x1.lane[e] * s;
        y1.lane[e] = x1.lane[e] * c + x0.lane[e] * s;
      }
      storeVec(r.y, row0 + k, narrow<S>(y0));
      storeVec(r.y, row1 + k, narrow<S>(y1));
    }
  }
}

template <class S>
struct RotationGrad {
  using T = Wide<S>;
  const S* y;
  const GradientOf<S>* g;
  T* gLogR;
  T* gTheta;
  int64_t columns;
  int32_t half, perKv;
  T signR, signTheta;
};

template <class S, int kVec>
__global__ __launch_bounds__(kThreads) void sumPairs(RotationGrad<S> r) {
  using T = Wide<S>;
  using G = GradientOf<S>;
  const int32_t kv = int32_t(blockIdx.x) / r.half, i = int32_t(blockIdx.x) - kv * r.half;
  const int64_t length = r.columns / kVec;
  double along = 0, across = 0;
  for (int32_t member = 0; member < r.perKv; member++) {
    const int64_t head = int64_t(kv) * r.perKv + member;
    const int64_t row0 = (head * 2 * r.half + i) * length, row1 = row0 + r.half * length;
    T headAlong = 0, headAcross = 0;
#pragma unroll 2
    for (int64_t k = threadIdx.x; k < length; k += kThreads) {
      const Vec<S, kVec> yLow = loadVec<S, kVec>(r.y, row0 + k);
      const Vec<S, kVec> yHigh = loadVec<S, kVec>(r.y, row1 + k);
      const Vec<G, kVec> gLow = loadVec<G, kVec>(r.g, row0 + k);
      const Vec<G, kVec> gHigh = loadVec<G, kVec>(r.g, row1 + k);
      const Vec<T, kVec> y0 = widen(yLow), y1 = widen(yHigh), g0 = widen(gLow), g1 = widen(gHigh);
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        headAlong += g0.lane[e] * y0.lane[e] + g1.lane[e] * y1.lane[e];
        headAcross += g1.lane[e] * y0.lane[e] - g0.lane[e] * y1.lane[e];
      }
    }
    along += double(headAlong);
    across += double(headAcross);
  }
  along = rowSum<kThreads>(along);
  across = rowSum<kThreads>(across);
  if (threadIdx.x == 0) {
    r.gLogR[blockIdx.x] = r.signR * T(along);
    r.gTheta[blockIdx.x] = r.signTheta * T(across);
  }
}

template <class S>
int32_t rotate(aq_queue* queue, const aq_view* in, const aq_view& out,
               const aq_rotate_pairs_params& p, aq_error* err) {
  using T = Wide<S>;
  const int64_t half = in[1].dim[1], kvHeads = in[1].dim[0];
  const Rotation<S> r = {static_cast<const S*>(in[0].data),
                         static_cast<const T*>(in[1].data),
                         static_cast<const T*>(in[2].data),
                         static_cast<S*>(out.data),
                         numel(in[0]) / (p.heads * 2 * half),
                         int32_t(half),
                         int32_t(p.heads / kvHeads),
                         T(p.sign_r),
                         T(p.sign_theta)};
  const unsigned blocks = unsigned(p.heads * half);
  const bool isWide = r.columns % kVecWidth<S> == 0 && isAligned16(r.w) && isAligned16(r.y);
  if (isWide) {
    rotateRows<S, kVecWidth<S>><<<blocks, kThreads, 0, queue->stream>>>(r);
  } else {
    rotateRows<S, 1><<<blocks, kThreads, 0, queue->stream>>>(r);
  }
  LAUNCH_CHECK("rotate_pairs");
  return AQ_OK;
}

template <class S>
int32_t rotateGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                   const aq_rotate_pairs_grad_params& p, aq_error* err) {
  using T = Wide<S>;
  const int64_t half = out[0].dim[1];
  const RotationGrad<S> r = {static_cast<const S*>(in[0].data),
                             static_cast<const GradientOf<S>*>(in[1].data),
                             static_cast<T*>(out[0].data),
                             static_cast<T*>(out[1].data),
                             numel(in[0]) / (p.heads * 2 * half),
                             int32_t(half),
                             p.heads / p.kv_heads,
                             T(p.sign_r),
                             T(p.sign_theta)};
  const unsigned blocks = unsigned(p.kv_heads * half);
  const bool isWide = r.columns % kVecWidth<S> == 0 && isAligned16(r.y) && isAligned16(r.g);
  if (isWide) {
    sumPairs<S, kVecWidth<S>><<<blocks, kThreads, 0, queue->stream>>>(r);
  } else {
    sumPairs<S, 1><<<blocks, kThreads, 0, queue->stream>>>(r);
  }
  LAUNCH_CHECK("rotate_pairs_grad");
  return AQ_OK;
}

}  // namespace

int32_t rotate_pairs(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                     const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_rotate_pairs_params*>(params);
  if (p.heads == 0 || numel(in[1]) == 0) return AQ_OK;
  return visitStored(in[0].dtype, err,
                     [&]<class S>() { return rotate<S>(queue, in, out[0], p, err); });
}

int32_t rotate_pairs_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_rotate_pairs_grad_params*>(params);
  if (numel(out[0]) == 0) return AQ_OK;
  return visitStored(in[0].dtype, err,
                     [&]<class S>() { return rotateGrad<S>(queue, in, out, p, err); });
}

}  // namespace aq::cuda
