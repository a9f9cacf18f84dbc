// fake_quant_gemm: the linear layer of calibration, with either factor quantized on the way.
//
// Math      c = op(A^) op(B^) + bias (+ c), A^ = fake_quant(a), B^ = fake_quant(b) on the stored
//           matrices where they have a grid, b after its factors (params.h).
// Layout    row-major without gaps. Two ways:
//           codes: both factors have grids of at most 8 bits, one per stored row, and k runs along
//           the rows: int8 codes, an exact integer product, scales where it is written;
//           rounded: each factor becomes quantized bf16 or f16 (in precision f32: f32) in one pass
//           and goes into the tensor-core product. In bf16 a grid per stored row that k runs across
//           (the backward products) leaves whole numbers, which bf16 holds exactly, and its scales
//           go to the other factor where that is rounded anyhow. A factor that has the product's
//           type already, and no grid, is read as it is.
// Cost      2 m n k flop; a pass over an f32 factor reads 4 and writes 1 (codes) or 2 bytes each.
// Roofline  the tensor cores: 2048 x 4096 x 4096, 69 Gflop, 69 us in bf16 and 35 us in int8 (H100
//           SXM data sheet); the passes over x and w 38 us more to codes, 45 us to bf16. Measured,
//           H100 80GB HBM3, driver 580, beside 93 us (gW: 99 us) of the bare bf16 product: forward
//           W4A4 107 us, of which codes 48 and product 53; gx 143 us, 127 us with g already in
//           bf16; gW 134 us, 120 us with g in bf16; forward W4A16 145 us.
// Versions  v1 codes, i32 sums and a scaling pass: forward 147 us; v2 one kernel for product and
//           scaling, one pass for both operands (this).
// Numerics  codes: exact up to the scaling. Rounded: one rounding per element to bf16 or f16, f32
//           sums. No state is kept between calls.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/code_product.h"
#include "native/cuda/gemm.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/quant_pack.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

struct Call {
  QuantOperand a, b;
  bool transA, transB;
  int64_t m, n, k;
  void* c;  // f64 where the operands are, else f32
  const void* bias;
  bool accumulate;
};

QuantOperand operandOf(const aq_view& x, const aq_view& scale, const aq_view& zero, int32_t bits,
                       int32_t group) {
  QuantOperand operand;
  operand.data = x.data;
  operand.dtype = x.dtype;
  operand.cols = x.rank > 0 ? x.dim[x.rank - 1] : 1;
  operand.rows = operand.cols > 0 ? numel(x) / operand.cols : 0;
  // A matrix without columns still has its rows.
  if (operand.cols == 0) {
    operand.rows = 1;
    for (int32_t i = 0; i + 1 < x.rank; i++) operand.rows *= x.dim[i];
  }
  operand.scale = scale.data;
  operand.zero = zero.data;
  operand.bits = bits;
  operand.group =
      std::max<int64_t>(group > 0 ? std::min<int64_t>(group, operand.cols) : operand.cols, 1);
  return operand;
}

Call callOf(const aq_view* in, int32_t n_in, const aq_view& out,
            const aq_fake_quant_gemm_params& p) {
  // Optional inputs at the end may have been left out.
  const auto optional = [&](int32_t i) { return i < n_in ? in[i] : aq_view{}; };
  Call call;
  call.a = operandOf(in[0], optional(2), optional(3), p.a_bits, p.a_group);
  call.b = operandOf(in[1], optional(4), optional(5), p.b_bits, p.b_group);
  call.b.offset = optional(7).data;
  call.b.rowFactor = optional(8).data;
  call.b.colFactor = optional(9).data;
  call.transA = p.trans_a != 0;
  call.transB = p.trans_b != 0;
  call.m = call.transA ? call.a.cols : call.a.rows;
  call.k = call.transA ? call.a.rows : call.a.cols;
  call.n = call.transB ? call.b.rows : call.b.cols;
  call.c = out.data;
  call.bias = optional(6).data;
  call.accumulate = p.accumulate != 0;
  return call;
}

// ---------------------------------------------------------------- codes

bool fitsCodes(const Call& call) {
  const auto fits = [](const QuantOperand& x) {
    return x.dtype != AQ_F64 && x.hasRowGrid() && x.bits <= 8;
  };
  return fits(call.a) && fits(call.b) && !call.transA && call.transB && call.k > 0 &&
         call.k <= CodeProduct::kMostTerms;
}

int32_t runCodes(aq_queue* queue, const Call& call, aq_error* err) {
  const int64_t pitch = (call.k + 15) / 16 * 16;
  const uint64_t aBytes = scratchBytes(uint64_t(call.m * pitch));
  const uint64_t bBytes = scratchBytes(uint64_t(call.n * pitch));
  const uint64_t aRowBytes = scratchBytes(uint64_t(call.m) * sizeof(CodeRow));
  const uint64_t bRowBytes = scratchBytes(uint64_t(call.n) * sizeof(CodeRow));
  Scratch scratch(queue);
  if (scratch.allocate(aBytes + bBytes + aRowBytes + bRowBytes, "fake_quant_gemm", err) != AQ_OK)
    return err->code;
  int8_t* const a = scratch.at<int8_t>();
  int8_t* const b = scratch.at<int8_t>(aBytes);
  CodeRow* const aRows = scratch.at<CodeRow>(aBytes + bBytes);
  CodeRow* const bRows = scratch.at<CodeRow>(aBytes + bBytes + aRowBytes);
  if (packCodes(queue, call.b, {b, bRows}, call.a, {a, aRows}, pitch, err) != AQ_OK)
    return err->code;
  CodeProduct product;
  product.m = call.m, product.n = call.n, product.k = call.k;
  product.pitch = pitch;
  product.a = a;
  product.b = b;
  product.aRows = aRows;
  product.bRows = bRows;
  product.c = static_cast<float*>(call.c);
  product.bias = static_cast<const float*>(call.bias);
  product.accumulate = call.accumulate;
  return codeProduct(queue, product, err);
}

// ---------------------------------------------------------------- rounded

// The type that the product's operands have.
int32_t productType(const Call& call, Precision precision) {
  if (call.a.dtype == AQ_F64) return AQ_F64;
  return precision == Precision::kBf16 ? AQ_BF16 : precision == Precision::kF16 ? AQ_F16 : AQ_F32;
}

// An operand on its way into the product: read as it is, or made by a job.
struct Prepared {
  RoundJob job;
  bool needsPass;

  Prepared(const QuantOperand& x, int32_t to) : needsPass(x.hasGrid() || x.dtype != to) {
    job.x = x;
    job.to = to;
    job.pitch = needsPass ? (x.cols + 7) / 8 * 8 : x.cols;
  }

  uint64_t bytes() const {
    const int64_t size = job.to == AQ_F64 ? 8 : job.to == AQ_F32 ? 4 : 2;
    return needsPass ? scratchBytes(uint64_t(job.x.rows * job.pitch * size)) : 0;
  }

  GemmMatrix matrix(bool transpose) const {
    return {needsPass ? job.out : job.x.data, job.pitch, 0, transpose};
  }
};

// The scales of `x`, where k runs across its rows, are moved to `other`. Not in f16: its range is
// too short for gradients times scales.
void moveScales(RoundJob& x, bool acrossX, Prepared& other, bool acrossOther) {
  const bool isFree = other.needsPass && !other.job.x.hasGrid();
  if (!acrossX || !isFree || !x.x.hasRowGrid() || x.x.bits > 8) return;
  x.codesOnly = true;
  const float* const scales = static_cast<const float*>(x.x.scale);
  (acrossOther ? other.job.rowScale : other.job.colScale) = scales;
}

int32_t runRounded(aq_queue* queue, const Call& call, aq_error* err) {
  const int32_t type = productType(call, queue->precision);
  Prepared a(call.a, type), b(call.b, type);
  if (type == AQ_BF16) {
    moveScales(a.job, call.transA, b, !call.transB);
    moveScales(b.job, !call.transB, a, call.transA);
  }
  Scratch scratch(queue);
  const uint64_t aBytes = a.bytes();
  if (scratch.allocate(aBytes + b.bytes(), "fake_quant_gemm", err) != AQ_OK) return err->code;
  a.job.out = scratch.at<char>();
  b.job.out = scratch.at<char>(aBytes);
  RoundJob jobs[2];
  int count = 0;
  if (b.needsPass) jobs[count++] = b.job;
  if (a.needsPass) jobs[count++] = a.job;
  if (roundOperands(queue, jobs, count, err) != AQ_OK) return err->code;
  Gemm g;
  g.m = call.m, g.n = call.n, g.k = call.k;
  g.dtype = type;
  g.a = a.matrix(call.transA);
  g.b = b.matrix(call.transB);
  g.c = call.c;
  g.ldc = call.n;
  g.beta = call.accumulate ? 1 : 0;
  g.bias = call.bias;
  return gemm(queue, g, err);
}

}  // namespace

int32_t fake_quant_gemm(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out,
                        int32_t, const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const Call call =
      callOf(in, n_in, out[0], *static_cast<const aq_fake_quant_gemm_params*>(params));
  if (call.m == 0 || call.n == 0) return AQ_OK;
  return fitsCodes(call) ? runCodes(queue, call, err) : runRounded(queue, call, err);
}

}  // namespace aq::cuda
