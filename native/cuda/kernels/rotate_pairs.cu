// rotate_pairs, rotate_pairs_grad: rows of q and k weights in pairs, each turned and stretched by
// parameters of its kv head. Such maps commute with RoPE, so they leave the model as it is.
//
// Math      rows (i, i + D/2) of head h, f = e^(sign_r log_r), a = sign_theta theta of its kv head:
//           y_i = f (w_i cos a - w_{i+D/2} sin a), y_{i+D/2} = f (w_{i+D/2} cos a + w_i sin a).
//           Gradient, from the output alone: glog_r = sign_r sum g y over both rows of the pair in
//           all heads of the group, gtheta = sign_theta sum (g_{i+D/2} y_i - g_i y_{i+D/2}).
// Layout    w, y, g [heads D, I] row-major. One block per pair of rows; for the gradient one block
//           per parameter, over the group's pairs. 16-byte accesses where I and the addresses
//           allow.
// Cost      forward reads and writes heads D I numbers, the gradient reads twice that:
//           bandwidth-bound.
// Roofline  4096 x 4096 f32: 134 MB either way -> 40 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured on an H100 80GB HBM3: the gradient 47 us, 96 % of what a copy reaches.
// Versions  v1 factors first, then the rows: 52 us, 88 %; v2 the first loads before the factors
//           (this): 42 us of kernel time under ncu.
// Numerics  e, cos and sin with the full-range library functions. A thread sums in T, block sums
//           are in double, in a fixed order.
#include <type_traits>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
struct Rotation {
  const T* w;
  const T* logR;
  const T* theta;
  T* y;
  int64_t columns;
  int32_t half, perKv;  // D/2; heads of a kv head
  T signR, signTheta;
};

template <class T, int kVec>
__global__ __launch_bounds__(kThreads) void rotateRows(Rotation<T> r) {
  using V = Vec<T, kVec>;
  constexpr int kUnroll = 4;  // vectors of each row that a thread has in flight
  __shared__ T factors[2];    // f cos a, f sin a
  const int32_t head = int32_t(blockIdx.x) / r.half, i = int32_t(blockIdx.x) - head * r.half;
  const int64_t length = r.columns / kVec;
  const int64_t row0 = (int64_t(head) * 2 * r.half + i) * length, row1 = row0 + r.half * length;
  T c = 0, s = 0;
  for (int64_t first = 0; first < length; first += kUnroll * kThreads) {
    V a[kUnroll], b[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int64_t k = first + u * kThreads + threadIdx.x;
      if (k >= length) continue;
      a[u] = loadVec<T, kVec>(r.w, row0 + k);
      b[u] = loadVec<T, kVec>(r.w, row1 + k);
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
      V y0, y1;
#pragma unroll
      for (int e = 0; e < kVec; e++) {
        y0.lane[e] = a[u].lane[e] * c - b[u].lane[e] * s;
        y1.lane[e] = b[u].lane[e] * c + a[u].lane[e] * s;
      }
      storeVec(r.y, row0 + k, y0);
      storeVec(r.y, row1 + k, y1);
    }
  }
}

template <class T>
struct RotationGrad {
  const T* y;
  const T* g;
  T* gLogR;
  T* gTheta;
  int64_t columns;
  int32_t half, perKv;
  T signR, signTheta;
};

template <class T, int kVec>
__global__ __launch_bounds__(kThreads) void sumPairs(RotationGrad<T> r) {
  using V = Vec<T, kVec>;
  const int32_t kv = int32_t(blockIdx.x) / r.half, i = int32_t(blockIdx.x) - kv * r.half;
  const int64_t length = r.columns / kVec;
  double along = 0, across = 0;
  for (int32_t member = 0; member < r.perKv; member++) {
    const int64_t head = int64_t(kv) * r.perKv + member;
    const int64_t row0 = (head * 2 * r.half + i) * length, row1 = row0 + r.half * length;
    T headAlong = 0, headAcross = 0;
#pragma unroll 2
    for (int64_t k = threadIdx.x; k < length; k += kThreads) {
      const V y0 = loadVec<T, kVec>(r.y, row0 + k), y1 = loadVec<T, kVec>(r.y, row1 + k);
      const V g0 = loadVec<T, kVec>(r.g, row0 + k), g1 = loadVec<T, kVec>(r.g, row1 + k);
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

template <class T>
int32_t rotate(aq_queue* queue, const aq_view* in, const aq_view& out,
               const aq_rotate_pairs_params& p, aq_error* err) {
  const int64_t half = in[1].dim[1], kvHeads = in[1].dim[0];
  const Rotation<T> r = {static_cast<const T*>(in[0].data),
                         static_cast<const T*>(in[1].data),
                         static_cast<const T*>(in[2].data),
                         static_cast<T*>(out.data),
                         numel(in[0]) / (p.heads * 2 * half),
                         int32_t(half),
                         int32_t(p.heads / kvHeads),
                         T(p.sign_r),
                         T(p.sign_theta)};
  const unsigned blocks = unsigned(p.heads * half);
  const bool isWide = r.columns % kVecWidth<T> == 0 && isAligned16(r.w) && isAligned16(r.y);
  if (isWide) {
    rotateRows<T, kVecWidth<T>><<<blocks, kThreads, 0, queue->stream>>>(r);
  } else {
    rotateRows<T, 1><<<blocks, kThreads, 0, queue->stream>>>(r);
  }
  LAUNCH_CHECK("rotate_pairs");
  return AQ_OK;
}

template <class T>
int32_t rotateGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                   const aq_rotate_pairs_grad_params& p, aq_error* err) {
  const int64_t half = out[0].dim[1];
  const RotationGrad<T> r = {static_cast<const T*>(in[0].data),
                             static_cast<const T*>(in[1].data),
                             static_cast<T*>(out[0].data),
                             static_cast<T*>(out[1].data),
                             numel(in[0]) / (p.heads * 2 * half),
                             int32_t(half),
                             p.heads / p.kv_heads,
                             T(p.sign_r),
                             T(p.sign_theta)};
  const unsigned blocks = unsigned(p.kv_heads * half);
  const bool isWide = r.columns % kVecWidth<T> == 0 && isAligned16(r.y) && isAligned16(r.g);
  if (isWide) {
    sumPairs<T, kVecWidth<T>><<<blocks, kThreads, 0, queue->stream>>>(r);
  } else {
    sumPairs<T, 1><<<blocks, kThreads, 0, queue->stream>>>(r);
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
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return rotate<T>(queue, in, out[0], p, err); });
}

int32_t rotate_pairs_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                          const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_rotate_pairs_grad_params*>(params);
  if (numel(out[0]) == 0) return AQ_OK;
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return rotateGrad<T>(queue, in, out, p, err); });
}

}  // namespace aq::cuda
