// head_matmul, head_matmul_grad: the weights of attention heads times one D x D matrix per kv head,
// shared by the query heads of its group; all by the dense products of gemm.h.
//
// Math      side 0: w [heads D, I], y_h = op(m) w_h.  side 1: w [O, heads D], y_h = w_h op(m), with
//           m of kv head h / (heads / Hkv) and op the transpose if asked. Gradient: y = m w gives
//           gm = g wT, y = mT w gives w gT; y = w m gives wT g, y = w mT gives gT w; each summed
//           over the heads of the group.
// Layout    heads of 64 or 128 in f32, where less than f32 is asked for: one pass over w
//           (head_product.cu, head_product_grad.cu). Else dense products with strides into w: one
//           batch over the kv heads for every member of a group; the gradient one batch over all
//           heads, and where a group has several they are added up in order.
// Cost      2 heads D^2 I flop over 2 heads D I numbers: 2 D / 8 = 32 flop per byte for D = 128.
// Roofline  32 heads of 128 by 4096 f32: 134 MB -> 40 us at 3.35 TB/s (H100 SXM data sheet); 4.3
//           Gflop -> 64 us at 67 Tflop/s f32, 5 us on bf16 tensor cores.
// Versions  v1 dense products only, operands rounded in a pass of their own; v2 one pass (this).
// Numerics  a product of fewer than 64 columns (a bias has one) is computed in f32 whatever the
//           queue's precision: there is nothing to gain. In one pass operands keep 16 bits; else
//           the queue's precision.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/head_product.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int64_t kBigLength = 64;

inline Precision precisionFor(const aq_queue* queue, int64_t length) {
  return length >= kBigLength ? queue->precision : Precision::kF32;
}

// The matrix of one member of every group, as it lies in w.
GemmMatrix memberOf(const HeadLayout& heads, const aq_view& w, int64_t index) {
  const int64_t bytes = w.dtype == AQ_F64 ? 8 : 4;
  return {static_cast<const char*>(w.data) + index * heads.headStep * bytes, heads.ld,
          heads.perKv() * heads.headStep, false};
}

// Where less than f32 is asked for, one pass over the weights that keeps 16 bits is both faster and
// closer than rounding them for a product.
bool takesOnePass(const aq_queue* queue, int32_t dtype, const HeadLayout& heads) {
  return dtype == AQ_F32 && precisionFor(queue, heads.length) != Precision::kF32;
}

// gm [kvHeads, entries] = sum over the members of [kvHeads, members, entries].
template <class T>
__global__ __launch_bounds__(kElementThreads) void addMembers(const T* __restrict__ sums,
                                                              T* __restrict__ gm, int64_t count,
                                                              int64_t entries, int64_t members) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count; k += stride) {
    const int64_t kv = k / entries, entry = k - kv * entries;
    T total = 0;
    for (int64_t member = 0; member < members; member++) {
      total += sums[(kv * members + member) * entries + entry];
    }
    gm[k] = total;
  }
}

}  // namespace

int32_t head_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_head_matmul_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  const HeadLayout heads(numel(in[0]), p.side, p.heads, in[1].dim[0], in[1].dim[2]);
  if (takesOnePass(queue, in[0].dtype, heads)) {
    bool taken = false;
    const int32_t code = headProduct(queue, heads, static_cast<const float*>(in[0].data),
                                     static_cast<const float*>(in[1].data), p.transpose != 0,
                                     static_cast<float*>(out[0].data), &taken, err);
    if (code != AQ_OK || taken) return code;
  }
  const GemmMatrix m = {in[1].data, heads.size, heads.size * heads.size, p.transpose != 0};
  for (int64_t member = 0; member < heads.perKv(); member++) {
    const GemmMatrix w = memberOf(heads, in[0], member);
    Gemm product;
    product.m = p.side == 0 ? heads.size : heads.length;
    product.n = p.side == 0 ? heads.length : heads.size;
    product.k = heads.size;
    product.batch = heads.kvHeads;
    product.dtype = in[0].dtype;
    product.precision = precisionFor(queue, heads.length);
    product.a = p.side == 0 ? m : w;
    product.b = p.side == 0 ? w : m;
    product.c = const_cast<void*>(memberOf(heads, out[0], member).data);
    product.ldc = heads.ld;
    product.strideC = heads.perKv() * heads.headStep;
    if (gemm(queue, product, err) != AQ_OK) return err->code;
  }
  return AQ_OK;
}

int32_t head_matmul_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                         const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_head_matmul_grad_params*>(params);
  if (numel(out[0]) == 0) return AQ_OK;
  const HeadLayout heads(numel(in[0]), p.side, p.heads, p.kv_heads, out[0].dim[2]);
  // With a, b = g, w or w, g the sums are a bT on side 0 and aT b on side 1.
  const bool isGFirst = (p.side == 0) == (p.transpose == 0);
  const aq_view& a = in[isGFirst ? 1 : 0];
  const aq_view& b = in[isGFirst ? 0 : 1];
  if (takesOnePass(queue, in[0].dtype, heads)) {
    bool taken = false;
    const int32_t code = headProductGrad(queue, heads, static_cast<const float*>(a.data),
                                         static_cast<const float*>(b.data),
                                         static_cast<float*>(out[0].data), &taken, err);
    if (code != AQ_OK || taken) return code;
  }
  const int64_t entries = heads.size * heads.size;
  Scratch scratch(queue);
  Gemm product;
  product.c = out[0].data;
  if (heads.perKv() > 1) {
    const uint64_t bytes = (in[0].dtype == AQ_F64 ? 8 : 4) * uint64_t(heads.heads * entries);
    if (scratch.allocate(bytes, "head_matmul_grad", err) != AQ_OK) return err->code;
    product.c = scratch.at<void>();
  }
  product.m = product.n = heads.size;
  product.k = heads.length;
  product.batch = heads.heads;
  product.dtype = in[0].dtype;
  product.precision = precisionFor(queue, heads.length);
  product.a = {a.data, heads.ld, heads.headStep, p.side != 0};
  product.b = {b.data, heads.ld, heads.headStep, p.side == 0};
  product.ldc = heads.size;
  product.strideC = entries;
  if (gemm(queue, product, err) != AQ_OK) return err->code;
  if (heads.perKv() == 1) return AQ_OK;
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    addMembers<T><<<elementBlocks(numel(out[0])), kElementThreads, 0, queue->stream>>>(
        scratch.at<T>(), static_cast<T*>(out[0].data), numel(out[0]), entries, heads.perKv());
    LAUNCH_CHECK("head_matmul_grad (group sums)");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
