// head_matmul, head_matmul_grad: the weights of attention heads times one D x D matrix per kv head,
// shared by the query heads of its group; all by the dense products of gemm.h.
//
// Math      side 0: w [heads D, I], y_h = op(m) w_h.  side 1: w [O, heads D], y_h = w_h op(m), with
//           m of kv head h / (heads / Hkv) and op the transpose if asked. Gradient: y = m w gives
//           gm = g wT, y = mT w gives w gT; y = w m gives wT g, y = w mT gives gT w; each summed
//           over the heads of the group.
// Layout    heads of 64 or 128, where less than f32 is asked for: one pass over w
//           (head_product*.cu). Else dense products with strides into w: one batch over the kv
//           heads for every member of a group; the gradient one batch over all heads, and where a
//           group has several they are added up in order.
// Cost      2 heads D^2 I flop over 2 heads D I numbers: 2 D / 8 = 32 flop per byte of f32 for
//           D = 128. A short w is an operand as it lies; only m is rounded.
// Roofline  32 heads of 128 by 4096 f32: 134 MB -> 40 us at 3.35 TB/s (H100 SXM data sheet); 4.3
//           Gflop -> 64 us at 67 Tflop/s f32, 5 us on bf16 tensor cores.
// Versions  v1 dense products only, operands rounded in a pass of their own; v2 one pass; v3 short
//           weights and gradients (this).
// Numerics  a product of fewer than 64 columns (a bias has one) is computed in f32 whatever the
//           queue's precision: there is nothing to gain. In one pass f32 operands keep 16 bits;
//           else the queue's precision, and the type of a short w where that is less than f32. A
//           gradient of a short w is of bf16 products.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/stored.cuh"
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

// What the products are of: f32 where a short w is to be computed with in full.
inline int32_t operandType(const aq_queue* queue, const aq_view& w, int64_t length) {
  const bool isWidened = isShortType(w.dtype) && precisionFor(queue, length) == Precision::kF32;
  return isWidened ? int32_t(AQ_F32) : w.dtype;
}

// A view in another type, in scratch where it is not of that type anyway.
class TypedView {
 public:
  explicit TypedView(aq_queue* queue) : queue_(queue), scratch_(queue) {}

  // A copy of what x holds.
  int32_t read(const aq_view& x, int32_t dtype, aq_error* err) {
    if (make(x, dtype, err) != AQ_OK) return err->code;
    return dtype == x.dtype ? int32_t(AQ_OK) : convert(x, view_, err);
  }
  // Memory for what x is to hold, and then `finish`.
  int32_t make(const aq_view& x, int32_t dtype, aq_error* err) {
    view_ = x;
    if (dtype == x.dtype) return AQ_OK;
    view_.dtype = dtype;
    const uint64_t bytes = uint64_t(numel(x) * elementBytes(dtype));
    if (scratch_.allocate(bytes, "head_matmul", err) != AQ_OK) return err->code;
    view_.data = scratch_.at<void>();
    return AQ_OK;
  }
  int32_t finish(const aq_view& x, aq_error* err) {
    return view_.dtype == x.dtype ? int32_t(AQ_OK) : convert(view_, x, err);
  }
  const aq_view& view() const { return view_; }

 private:
  int32_t convert(const aq_view& from, const aq_view& to, aq_error* err) {
    const aq_cast_params params = {to.dtype, 0};
    return cast(queue_, &from, 1, &to, 1, &params, err);
  }

  aq_queue* queue_;
  Scratch scratch_;
  aq_view view_ = {};
};

// The matrix of one member of every group, as it lies in w.
GemmMatrix memberOf(const HeadLayout& heads, const aq_view& w, int64_t index) {
  return {static_cast<const char*>(w.data) + index * heads.headStep * elementBytes(w.dtype),
          heads.ld, heads.perKv() * heads.headStep, false};
}

// By dense products of operands of one type; y may be BF16 instead of f32.
int32_t multiplyDense(aq_queue* queue, const HeadLayout& heads, const aq_view& w, const aq_view& m,
                      bool transpose, const aq_view& y, aq_error* err) {
  const GemmMatrix matrix = {m.data, heads.size, heads.size * heads.size, transpose};
  for (int64_t member = 0; member < heads.perKv(); member++) {
    const GemmMatrix own = memberOf(heads, w, member);
    Gemm product;
    product.m = heads.side == 0 ? heads.size : heads.length;
    product.n = heads.side == 0 ? heads.length : heads.size;
    product.k = heads.size;
    product.batch = heads.kvHeads;
    product.dtype = w.dtype;
    product.resultDtype = y.dtype == AQ_BF16 ? int32_t(AQ_BF16) : int32_t(AQ_F32);
    product.precision = precisionFor(queue, heads.length);
    product.a = heads.side == 0 ? matrix : own;
    product.b = heads.side == 0 ? own : matrix;
    product.c = const_cast<void*>(memberOf(heads, y, member).data);
    product.ldc = heads.ld;
    product.strideC = heads.perKv() * heads.headStep;
    if (gemm(queue, product, err) != AQ_OK) return err->code;
  }
  return AQ_OK;
}

// In one pass over the weights, where they suit and less than f32 is asked for: both faster and,
// for f32, closer than rounding them for a product.
int32_t multiplyInOnePass(aq_queue* queue, const HeadLayout& heads, const aq_view& w,
                          const aq_view& m, bool transpose, const aq_view& y, bool* taken,
                          aq_error* err) {
  if (precisionFor(queue, heads.length) == Precision::kF32 || heads.size > 128) return AQ_OK;
  TypedView wide(queue);
  if (wide.read(m, AQ_F32, err) != AQ_OK) return err->code;
  const float* const matrix = static_cast<const float*>(wide.view().data);
  if (isShortType(w.dtype))
    return headProductShort(queue, heads, w.dtype, w.data, matrix, transpose, y.data, taken, err);
  return headProduct(queue, heads, static_cast<const float*>(w.data), matrix, transpose,
                     static_cast<float*>(y.data), taken, err);
}

// gm [kvHeads, entries] = (gm where `accumulate`) + the sum over the members of
// [kvHeads, members, entries].
template <class T>
__global__ __launch_bounds__(kElementThreads) void addMembers(const T* __restrict__ sums, T* gm,
                                                              int64_t count, int64_t entries,
                                                              int64_t members, bool accumulate) {
  const int64_t stride = int64_t(gridDim.x) * kElementThreads;
  for (int64_t k = int64_t(blockIdx.x) * kElementThreads + threadIdx.x; k < count; k += stride) {
    const int64_t kv = k / entries, entry = k - kv * entries;
    T total = accumulate ? gm[k] : T(0);
    for (int64_t member = 0; member < members; member++) {
      total += sums[(kv * members + member) * entries + entry];
    }
    gm[k] = total;
  }
}

// gm = sum over the group of a bT on side 0, aT b on side 1, of operands of one type.
int32_t sumDense(aq_queue* queue, const HeadLayout& heads, const aq_view& a, const aq_view& b,
                 const aq_view& gm, bool accumulate, aq_error* err) {
  const int64_t entries = heads.size * heads.size;
  const bool isGrouped = heads.perKv() > 1;
  Scratch scratch(queue);
  if (isGrouped) {
    const uint64_t bytes = uint64_t(heads.heads * entries * elementBytes(gm.dtype));
    if (scratch.allocate(bytes, "head_matmul_grad", err) != AQ_OK) return err->code;
  }
  Gemm product;
  product.m = product.n = heads.size;
  product.k = heads.length;
  product.batch = heads.heads;
  product.dtype = a.dtype;
  product.precision = precisionFor(queue, heads.length);
  product.a = {a.data, heads.ld, heads.headStep, heads.side != 0};
  product.b = {b.data, heads.ld, heads.headStep, heads.side == 0};
  product.c = isGrouped ? scratch.at<void>() : gm.data;
  product.ldc = heads.size;
  product.strideC = entries;
  product.beta = accumulate && !isGrouped ? 1 : 0;
  if (gemm(queue, product, err) != AQ_OK) return err->code;
  if (!isGrouped) return AQ_OK;
  return visitFloat(gm.dtype, err, [&]<class T>() -> int32_t {
    addMembers<T><<<elementBlocks(numel(gm)), kElementThreads, 0, queue->stream>>>(
        scratch.at<T>(), static_cast<T*>(gm.data), numel(gm), entries, heads.perKv(), accumulate);
    LAUNCH_CHECK("head_matmul_grad (group sums)");
    return AQ_OK;
  });
}

int32_t sumInOnePass(aq_queue* queue, const HeadLayout& heads, const aq_view& a, const aq_view& b,
                     const aq_view& gm, bool accumulate, bool* taken, aq_error* err) {
  if (precisionFor(queue, heads.length) == Precision::kF32 || gm.dtype != AQ_F32) return AQ_OK;
  float* const to = static_cast<float*>(gm.data);
  if (isShortType(a.dtype)) {
    return headProductGradShort(queue, heads, a.data, a.dtype, b.data, b.dtype, to, accumulate,
                                taken, err);
  }
  return headProductGrad(queue, heads, static_cast<const float*>(a.data),
                         static_cast<const float*>(b.data), to, accumulate, taken, err);
}

}  // namespace

int32_t head_matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_head_matmul_params*>(params);
  if (numel(in[0]) == 0) return AQ_OK;
  const HeadLayout heads(numel(in[0]), p.side, p.heads, in[1].dim[0], in[1].dim[2]);
  if (in[0].dtype != AQ_F64) {
    bool taken = false;
    const int32_t code =
        multiplyInOnePass(queue, heads, in[0], in[1], p.transpose != 0, out[0], &taken, err);
    if (code != AQ_OK || taken) return code;
  }
  const int32_t type = operandType(queue, in[0], heads.length);
  TypedView w(queue), m(queue), y(queue);
  if (w.read(in[0], type, err) != AQ_OK || m.read(in[1], type, err) != AQ_OK) return err->code;
  // A product's result is f32 or BF16.
  if (y.make(out[0], out[0].dtype == AQ_F16 ? int32_t(AQ_F32) : out[0].dtype, err) != AQ_OK)
    return err->code;
  if (multiplyDense(queue, heads, w.view(), m.view(), p.transpose != 0, y.view(), err) != AQ_OK)
    return err->code;
  return y.finish(out[0], err);
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
  const bool accumulate = p.accumulate != 0;
  bool taken = false;
  const int32_t code = sumInOnePass(queue, heads, a, b, out[0], accumulate, &taken, err);
  if (code != AQ_OK || taken) return code;
  // Beside a BF16 gradient an F16 weight is rounded to that.
  const int32_t own = operandType(queue, in[0], heads.length);
  const int32_t type = own == AQ_F16 ? int32_t(AQ_BF16) : own;
  TypedView left(queue), right(queue);
  if (left.read(a, type, err) != AQ_OK || right.read(b, type, err) != AQ_OK) return err->code;
  return sumDense(queue, heads, left.view(), right.view(), out[0], accumulate, err);
}

}  // namespace aq::cuda
