// fake_quant_gemm: the linear layer of calibration, with either factor quantized on the way.
//
// Math      c = op(A^) op(B^) + bias (+ c), A^ = fake_quant(a), B^ = fake_quant(b) on the stored
//           matrices where they have a grid, b after its factors; whole numbers (I8) are times the
//           scale of their row, and the product times the numbers that matrices come with (params.h).
// Layout    row-major without gaps. Three ways:
//           codes: both factors are I8, or have grids of at most 8 bits, one per stored row, and k
//           runs along the rows: an exact integer product, scales where it is written. What is I8
//           is read as it is;
//           mixed: a is bf16 and b is I8 with k across its rows (the backward products): one kernel
//           expands and multiplies (mixed_product.cu), where that is faster than a pass;
//           rounded: each factor becomes quantized or expanded bf16 or f16 (in precision f32: f32)
//           in one pass and goes into the tensor-core product. In bf16 the scales of stored rows
//           that k runs across go to the other factor where that is rounded anyhow, and leave whole
//           numbers, which bf16 holds exactly. A factor that has the product's type already, and no
//           grid, is read as it is.
// Cost      2 m n k flop; a pass over a factor reads it once and writes 1 (codes) or 2 bytes each.
//           Numbers that the product is times go into it as they lie in device memory, which costs
//           nothing; where both factors have one they are multiplied first, 2.5 us.
// Roofline  the tensor cores: 2048 x 4096 x 4096, 69 Gflop, 69 us in bf16 and 35 us in int8 (H100
//           SXM data sheet). Measured, H100 80GB HBM3, driver 580, beside 93 us (gW in bf16: 92)
//           of the bare bf16 products: forward of I8 operands 52 us; gx from bf16 g and I8 weight
//           101 us; gW from bf16 g and I8 x, in bf16, 100 us. From f32 operands with grids: forward
//           W4A4 107 us, of which codes 48.
// Versions  v1 codes, i32 sums and a scaling pass: forward 147 us; v2 one kernel for product and
//           scaling, one pass for both operands: 107 us, gx 127, gW 120; v3 operands that were
//           quantized once, as I8, bf16 or f16, and expanded on their way (this).
// Numerics  codes: exact up to the scaling. Rounded: one rounding per element to bf16 or f16,
//           mixed: one more of the scale to bf16; f32 sums. No state is kept between calls.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/code_product.h"
#include "native/cuda/gemm.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/mixed_product.h"
#include "native/cuda/quant_pack.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

struct Call {
  QuantOperand a, b;
  bool transA, transB;
  int64_t m, n, k;
  const void* factors[2];  // one number each that a and b are times; null: 1
  void* c;
  int32_t cDtype;  // AQ_F64 where the call computes in it, else AQ_F32 or AQ_BF16
  const void* bias;
  bool accumulate;

  bool isF64() const { return cDtype == AQ_F64; }
  bool hasFactor() const { return factors[0] || factors[1]; }
};

// Whether a matrix's scale is one number, which the product is times.
bool isFactor(const aq_view& x, const aq_view& scale, const aq_view& zero) {
  return x.dtype != AQ_I8 && scale.data && !zero.data;
}

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
  operand.scale = isFactor(x, scale, zero) ? nullptr : scale.data;
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
  for (int i = 0; i < 2; i++) {
    const aq_view scale = optional(2 + 2 * i), zero = optional(3 + 2 * i);
    call.factors[i] = isFactor(in[i], scale, zero) ? scale.data : nullptr;
  }
  call.b.offset = optional(7).data;
  call.b.rowFactor = optional(8).data;
  call.b.colFactor = optional(9).data;
  call.transA = p.trans_a != 0;
  call.transB = p.trans_b != 0;
  call.m = call.transA ? call.a.cols : call.a.rows;
  call.k = call.transA ? call.a.rows : call.a.cols;
  call.n = call.transB ? call.b.rows : call.b.cols;
  call.c = out.data;
  call.cDtype = out.dtype;
  call.bias = optional(6).data;
  call.accumulate = p.accumulate != 0;
  return call;
}

// ---------------------------------------------------------------- codes

// Both of one kind: zero points that are left over in codes of a grid need the sums of the other
// side's rows, which I8 does not bring.
bool fitsCodes(const Call& call) {
  const auto hasCodes = [](const QuantOperand& x) {
    return x.dtype != AQ_F64 && x.hasRowGrid() && x.bits <= 8;
  };
  const bool fits =
      (call.a.isWhole() && call.b.isWhole()) || (hasCodes(call.a) && hasCodes(call.b));
  return fits && !call.isF64() && !call.transA && call.transB && call.k > 0 &&
         call.k <= CodeProduct::kMostTerms;
}

// An operand on its way into the product of codes: read as it is, or made by a job.
struct CodeSide {
  const QuantOperand& x;
  int64_t pitch;  // of what is made

  uint64_t codeBytes() const { return x.isWhole() ? 0 : scratchBytes(uint64_t(x.rows * pitch)); }
  uint64_t bytes() const {
    return x.isWhole() ? 0 : codeBytes() + scratchBytes(uint64_t(x.rows) * sizeof(CodeRow));
  }
  Codes codes(const Scratch& scratch, uint64_t at) const {
    return {scratch.at<int8_t>(at), scratch.at<CodeRow>(at + codeBytes())};
  }
  CodeMatrix matrix(const Scratch& scratch, uint64_t at) const {
    if (x.isWhole()) {
      return {static_cast<const int8_t*>(x.data), x.cols, nullptr,
              static_cast<const float*>(x.scale)};
    }
    const Codes made = codes(scratch, at);
    return {made.data, pitch, made.rows, nullptr};
  }
};

int32_t runCodes(aq_queue* queue, const Call& call, aq_error* err) {
  const int64_t pitch = (call.k + 15) / 16 * 16;
  const CodeSide a = {call.a, pitch}, b = {call.b, pitch};
  const uint64_t atB = a.bytes();
  Scratch scratch(queue);
  if (atB + b.bytes() > 0 && scratch.allocate(atB + b.bytes(), "fake_quant_gemm", err) != AQ_OK)
    return err->code;
  CodeJob jobs[2];
  int count = 0;
  if (!call.b.isWhole()) jobs[count++] = {call.b, b.codes(scratch, atB)};
  if (!call.a.isWhole()) jobs[count++] = {call.a, a.codes(scratch, 0)};
  if (packCodes(queue, jobs, count, pitch, err) != AQ_OK) return err->code;
  CodeProduct product;
  product.m = call.m, product.n = call.n, product.k = call.k;
  product.a = a.matrix(scratch, 0);
  product.b = b.matrix(scratch, atB);
  product.c = call.c;
  product.isShort = call.cDtype == AQ_BF16;
  product.bias = static_cast<const float*>(call.bias);
  product.accumulate = call.accumulate;
  return codeProduct(queue, product, err);
}

// ---------------------------------------------------------------- rounded

// The type that the product's operands have.
int32_t productType(const Call& call, Precision precision) {
  if (call.isF64()) return AQ_F64;
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
  const bool isFree = other.needsPass && !other.job.x.hasGrid() && !other.job.codesOnly;
  const bool hasScales = x.x.isWhole() || (x.x.hasRowGrid() && x.x.bits <= 8);
  if (!acrossX || !isFree || !hasScales) return;
  x.codesOnly = true;
  const float* const scales = static_cast<const float*>(x.x.scale);
  (acrossOther ? other.job.rowScale : other.job.colScale) = scales;
}

// The backward products of what lies as I8, where one kernel expands and multiplies.
int32_t runMixed(aq_queue* queue, const Call& call, Prepared& a, bool* done, aq_error* err) {
  *done = false;
  MixedProduct product;
  product.m = call.m, product.n = call.n, product.k = call.k;
  product.a = a.needsPass ? nullptr : call.a.data;
  product.pitchA = a.job.pitch;
  product.b = static_cast<const int8_t*>(call.b.data);
  product.scales = static_cast<const float*>(call.b.scale);
  product.c = call.c;
  product.transA = call.transA;
  product.accumulate = call.accumulate;
  product.isShort = call.cDtype == AQ_BF16;
  if (call.bias || call.hasFactor() || !fitsMixed(queue, product) || !isMixedFaster(queue, product))
    return AQ_OK;
  *done = true;
  Scratch scratch(queue);
  if (a.needsPass) {
    if (scratch.allocate(a.bytes(), "fake_quant_gemm", err) != AQ_OK) return err->code;
    a.job.out = scratch.at<char>();
    if (roundOperands(queue, &a.job, 1, err) != AQ_OK) return err->code;
    product.a = a.job.out;
  }
  return mixedProduct(queue, product, err);
}

template <class T>
__global__ void multiplyFactors(const T* a, const T* b, T* product) {
  *product = *a * *b;
}

// The number that the product is times, in `memory` where that is of two.
const void* factorOf(aq_queue* queue, const Call& call, void* memory) {
  const auto& [a, b] = call.factors;
  if (!a || !b) return a ? a : b;
  const auto multiply = [&]<class T>() {
    multiplyFactors<<<1, 1, 0, queue->stream>>>(static_cast<const T*>(a), static_cast<const T*>(b),
                                                static_cast<T*>(memory));
  };
  call.isF64() ? multiply.template operator()<double>() : multiply.template operator()<float>();
  return memory;
}

int32_t runRounded(aq_queue* queue, const Call& call, aq_error* err) {
  const int32_t type = productType(call, queue->precision);
  Prepared a(call.a, type), b(call.b, type);
  if (type == AQ_BF16 && call.b.isWhole() && !call.transB) {
    bool done = false;
    const int32_t code = runMixed(queue, call, a, &done, err);
    if (code != AQ_OK || done) return code;
  }
  if (type == AQ_BF16) {
    moveScales(a.job, call.transA, b, !call.transB);
    moveScales(b.job, !call.transB, a, call.transA);
  }
  Scratch scratch(queue);
  const uint64_t aBytes = a.bytes(), atFactor = aBytes + b.bytes();
  const uint64_t bytes = atFactor + (call.factors[0] && call.factors[1] ? sizeof(double) : 0);
  if (bytes > 0 && scratch.allocate(bytes, "fake_quant_gemm", err) != AQ_OK) return err->code;
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
  g.resultDtype = call.cDtype == AQ_BF16 ? AQ_BF16 : AQ_F32;
  g.a = a.matrix(call.transA);
  g.b = b.matrix(call.transB);
  g.c = call.c;
  g.ldc = call.n;
  g.beta = call.accumulate ? 1 : 0;
  g.factor = factorOf(queue, call, scratch.at<char>(atFactor));
  LAUNCH_CHECK("fake_quant_gemm (factors)");
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
