// code_product: exact products of int8 codes with their scales.
//
// Math      c_ij = (sum over k of (a_ik - za_i) (b_jk - zb_j)) sa_i sb_j + bias_j (+ c_ij).
// Layout    codes with k along their rows; i32 sums in scratch, then one pass that scales them.
// Cost      2 m n k integer operations; the sums cost 4 bytes written and read each.
// Roofline  the int8 tensor cores: twice the rate of bf16.
// Versions  v1 (this): gemm in i8, then the scaling; on sm_90 one kernel does both
//           (code_product_hopper.cu).
// Numerics  exact up to the scaling in f32: the same bits on every device.
#include "native/cuda/code_product.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/code_scale.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/gemm.h"
#include "native/cuda/launch.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;

// One block a run of kThreads * kVec columns of one row. R: what c holds.
template <class R, int kVec>
__global__ __launch_bounds__(kThreads) void scaleSums(CodeProduct p,
                                                      const int32_t* __restrict__ sums,
                                                      int64_t runs) {
  const int64_t i = blockIdx.x / runs;
  const int64_t j = ((blockIdx.x % runs) * kThreads + threadIdx.x) * kVec;
  if (j >= p.n) return;
  const CodeRow a = codeRowOf(p.a, i);
  R* const at = static_cast<R*>(p.c) + i * p.n + j;
  const Vec<int32_t, kVec> sum = loadVec<int32_t, kVec>(sums + i * p.n + j, 0);
  Vec<R, kVec> value = {};
  if (p.accumulate) value = loadVec<R, kVec>(at, 0);
#pragma unroll
  for (int e = 0; e < kVec; e++) {
    float term = scaledSum(sum.lane[e], a, codeRowOf(p.b, j + e), p.k);
    if (p.bias) term += p.bias[j + e];
    if (p.accumulate) term += float(value.lane[e]);
    value.lane[e] = R(term);
  }
  storeVec(at, 0, value);
}

}  // namespace

int32_t codeProductInPasses(aq_queue* queue, const CodeProduct& product, aq_error* err) {
  const int64_t m = product.m, n = product.n;
  Scratch sums(queue);
  if (sums.allocate(uint64_t(m * n) * 4, "fake_quant_gemm", err) != AQ_OK) return err->code;
  Gemm g;
  // With zeros beyond k where both have them, in the size that the library likes best.
  g.m = m, g.n = n, g.k = std::min(product.a.pitch, product.b.pitch);
  g.dtype = AQ_I8;
  g.a = {product.a.codes, product.a.pitch, 0, false};
  g.b = {product.b.codes, product.b.pitch, 0, true};
  g.c = sums.at<int32_t>();
  g.ldc = n;
  if (gemm(queue, g, err) != AQ_OK) return err->code;
  const int vec = n % 4 == 0 && isAligned16(product.c) ? 4 : 1;
  const int64_t runs = (n + kThreads * vec - 1) / (kThreads * vec);
  const auto start = [&](auto kernel) {
    kernel<<<unsigned(m * runs), kThreads, 0, queue->stream>>>(product, sums.at<int32_t>(), runs);
  };
  if (product.isShort) {
    vec == 4 ? start(scaleSums<__nv_bfloat16, 4>) : start(scaleSums<__nv_bfloat16, 1>);
  } else {
    vec == 4 ? start(scaleSums<float, 4>) : start(scaleSums<float, 1>);
  }
  LAUNCH_CHECK("fake_quant_gemm (scaling)");
  return AQ_OK;
}

int32_t codeProduct(aq_queue* queue, const CodeProduct& product, aq_error* err) {
  return fitsHopper(queue, product) ? codeProductHopper(queue, product, err)
                                    : codeProductInPasses(queue, product, err);
}

}  // namespace aq::cuda
