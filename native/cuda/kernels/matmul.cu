// matmul: y = alpha op(a) op(b) for a batch of matrices.
//
// Math      y_b = alpha op(a_b) op(b_b), op = transpose where asked for.
// Layout    row-major without gaps; one strided batch.
// Cost      2 B M N K flop; each operand read and the result written once.
// Roofline  the tensor cores in bf16 and f16, the plain cores in f32 and f64; bandwidth below some
//           hundred flop a byte.
// Versions  v1 (this): gemm.
// Numerics  f32 tensors in the queue's precision with f32 sums (gemm.h).
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/gemm.h"
#include "native/cuda/kernels.h"

namespace aq::cuda {

int32_t matmul(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
               const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& p = *static_cast<const aq_matmul_params*>(params);
  const int64_t aRows = in[0].dim[1], aCols = in[0].dim[2];
  const int64_t bRows = in[1].dim[1], bCols = in[1].dim[2];
  Gemm g;
  g.m = p.trans_a ? aCols : aRows;
  g.k = p.trans_a ? aRows : aCols;
  g.n = p.trans_b ? bRows : bCols;
  g.batch = in[0].dim[0];
  g.dtype = in[0].dtype;
  g.precision = queue->precision;
  g.a = {in[0].data, aCols, aRows * aCols, p.trans_a != 0};
  g.b = {in[1].data, bCols, bRows * bCols, p.trans_b != 0};
  g.c = out[0].data;
  g.ldc = g.n;
  g.strideC = g.m * g.n;
  g.alpha = p.alpha;
  return gemm(queue, g, err);
}

}  // namespace aq::cuda
