// grad_product: quant_product_grad, the gradient of a fake-quantized matrix whose own gradient is a
// product.
//
// Math      fake_quant_grad (native/cpu/kernels/fake_quant_grad.h) with the gradient op(a) b.
// Layout    two cases are worked off by the kernel that multiplies, which takes its tiles through the
//           quantizer while it goes on (grad_product_hopper.cu; where b is I8, grad_product_mixed.cu):
//           a short matrix without factors that wants no gradient itself (a weight), and rows of f32
//           that want one (activations). One more kernel adds up the parts of groups and finishes the
//           gradients of their clipping logits and extreme elements. All else has the product made in
//           scratch and goes through fake_quant_grad.
// Cost      2 m k n flop, beside which a and b are read, x and offsets once, gv or gx written.
// Numerics  the product is rounded to bf16 before the quantizer. Parts are added up in a fixed order.
#include <algorithm>

#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/grad_finish.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/stored.cuh"
#include "native/cuda/grad_product.h"
#include "native/cuda/kernels.h"
#include "native/cuda/kernels/fake_quant_grad.h"
#include "native/cuda/launch.h"
#include "native/cuda/quant_pack.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;

template <int kLanes, bool kWide>
__global__ __launch_bounds__(kThreads) void finishGroups(const __grid_constant__ GradFinish a) {
  letNextLaunch();
  awaitLast();
  const int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const bool isLive = index < a.groups;
  GroupFinish<kLanes> group(a, isLive ? index : a.groups - 1);  // warps stay whole
  group.add();
  const ExtremeGrads<float> grads = group.logits(isLive);
  if constexpr (kWide) {
    if (isLive) group.addAtExtremes(grads);
  }
}

int32_t finish(aq_queue* queue, const GradFinish& a, aq_error* err) {
  const auto start = [&](auto kernel, int64_t lanes) -> int32_t {
    const int64_t blocks = (a.groups * lanes + kThreads - 1) / kThreads;
    const EarlyLaunch launch(queue, dim3(unsigned(blocks)), kThreads);
    CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, a));
    return AQ_OK;
  };
  if (a.grad.isWide()) return start(finishGroups<kWarp, true>, kWarp);
  return a.groupParts > 4 ? start(finishGroups<kWarp, false>, kWarp)
                          : start(finishGroups<1, false>, 1);
}

// ---------------------------------------------------------------- the call

struct Call {
  const aq_view* in;
  const aq_view* out;
  const aq_quant_product_grad_params& o;

  const aq_view& a() const { return in[0]; }
  const aq_view& b() const { return in[1]; }
  const aq_view& x() const { return in[4]; }
  int64_t cols() const { return lastDim(b()); }
  int64_t terms() const { return cols() > 0 ? numel(b()) / cols() : 0; }
  int64_t rows() const { return cols() > 0 ? numel(x()) / cols() : 0; }
  const float* floats(int i) const { return static_cast<const float*>(in[i].data); }
  bool has(int i) const { return in[i].data != nullptr; }
  bool hasOneLogit() const { return has(7) && numel(in[7]) == 1; }
};

// Columns whose sums are kept together, 0 where groups do not consist of such.
int32_t partColumns(int64_t group, int64_t cols) {
  if (group >= cols || group % 128 == 0) return 128;
  return group == 64 || group == 32 ? int32_t(group) : 0;
}

// The product and the matrix as the kernels take them, without what is to be in scratch.
GradProduct productOf(const Call& call) {
  GradProduct p;
  p.terms = call.terms();
  p.a = call.a().data;
  p.b = call.b().data;
  p.transA = call.o.trans_a != 0;
  p.scales = call.b().dtype == AQ_I8 ? call.floats(2) : nullptr;
  MatrixGrad& g = p.grad;
  g.x = call.x().data;
  g.isHalf = call.x().dtype == AQ_F16;
  g.v = call.floats(8);
  g.added = call.floats(3);
  if (!isShortType(call.x().dtype)) {
    g.kind = g.added ? GradKind::kAdded : GradKind::kWide;
  } else {
    g.kind = g.v ? GradKind::kOffset : GradKind::kShort;
  }
  g.scale = call.floats(5);
  g.zero = call.floats(6);
  g.top = topCode<float>(call.o.bits);
  g.rows = call.rows();
  g.cols = call.cols();
  g.group = call.o.group > 0 ? std::min<int64_t>(call.o.group, g.cols) : g.cols;
  g.perRow = g.group > 0 ? (g.cols + g.group - 1) / g.group : 0;
  g.partCols = partColumns(g.group, g.cols);
  g.gv = g.v ? call.out[2].data : nullptr;
  g.gx = g.isWide() && call.o.need_gx ? static_cast<float*>(call.out[0].data) : nullptr;
  return p;
}

// Whether the product takes less time in one kernel with what follows it, as measured on an H100: a
// tile takes what its product or its way through the quantizer takes, of which the last one's is shared
// by three times the warps. Tiles that are few are worked on by as few multiprocessors, where a plain
// product cuts its terms as well.
bool isFaster(const aq_queue* queue, const GradProduct& p) {
  const MatrixGrad& g = p.grad;
  const double size = double(g.rows) * double(g.cols), terms = double(p.terms);
  const double tiles = double((g.rows + 255) / 256 * ((g.cols + 255) / 256) * 2);
  const double rounds = double(int64_t((tiles - 1) / queue->multiprocessors) + 1);
  const bool isOffset = g.kind == GradKind::kOffset;
  const double productUs = terms * 0.0112;
  const double gradUs = g.isWide() ? 60 : isOffset ? 36 : 31;
  const double oneUs = 6 + (rounds - 1) * std::max(productUs, gradUs) + productUs + gradUs / 3;
  const double plainUs = 8 + 2e-6 * size * terms / (p.scales ? 650 : 730);
  const double passUs = 5 + size * (g.isWide() || isOffset ? 5e-6 : 2.4e-6);
  return oneUs < plainUs + passUs;
}

// Whether the matrix is one that the kernels take, whatever the operands.
bool isFused(const aq_queue* queue, const Call& call, const GradProduct& p) {
  const bool hasFactors = call.has(9) || call.has(10);
  const bool hasFactor = call.has(2) && call.b().dtype != AQ_I8;  // one of all numbers
  // Operands that are bf16 already are multiplied exactly in any precision.
  const bool isExact = call.a().dtype == AQ_BF16 && call.b().dtype == AQ_BF16 && !p.grad.isWide();
  if ((queue->precision != Precision::kBf16 && !isExact) || numel(call.x()) == 0 ||
      p.grad.partCols == 0 || hasFactors || hasFactor || call.o.rule != 0 ||
      call.a().dtype == AQ_F64 || p.transA == p.grad.isWide())
    return false;
  if (!p.grad.isWide())
    return !call.o.need_gx && !call.hasOneLogit() && !call.has(3) && isFaster(queue, p);
  return call.x().dtype == AQ_F32 && call.o.need_gx && !call.has(8) && p.grad.perRow == 1 &&
         isFaster(queue, p);
}

// An operand that is not bf16 becomes it in scratch.
struct Rounding {
  RoundJob job;
  bool needed;

  explicit Rounding(const aq_view& x, const void* scales) : needed(x.dtype != AQ_BF16) {
    job.x.data = x.data;
    job.x.dtype = x.dtype;
    job.x.cols = lastDim(x);
    job.x.rows = job.x.cols > 0 ? numel(x) / job.x.cols : 0;
    job.x.group = job.x.cols;
    job.x.scale = scales;
    job.to = AQ_BF16;
    job.pitch = job.x.cols;
  }
  uint64_t bytes() const {
    return needed ? scratchBytes(uint64_t(job.x.rows * job.x.cols) * 2) : 0;
  }
};

// One kernel that multiplies and one that finishes; *done says whether there are such for the call.
int32_t runFused(aq_queue* queue, const Call& call, bool* done, aq_error* err) {
  GradProduct p = productOf(call);
  MatrixGrad& grad = p.grad;
  *done = false;
  if (!isFused(queue, call, p)) return AQ_OK;
  // Scratch is aligned: what is made there does not decide.
  Rounding a(call.a(), nullptr), b(call.b(), call.in[2].data);
  if (a.needed) p.a = nullptr;
  const bool isMixed = fitsMixedGradProduct(queue, p);
  b.needed = b.needed && !isMixed;
  if (b.needed) p.b = nullptr, p.scales = nullptr;
  if (!isMixed && !fitsGradProduct(queue, p)) return AQ_OK;
  *done = true;
  const bool hasParts = call.has(7) || grad.isWide();
  if (!hasParts && !grad.v) return AQ_OK;  // nothing is asked for

  GradFinish f = {};
  f.rowParts = (grad.cols + grad.partCols - 1) / grad.partCols;
  f.groupParts = grad.perRow == 1 ? f.rowParts : std::max<int64_t>(grad.group / grad.partCols, 1);
  f.groups = grad.rows * grad.perRow;
  const uint64_t parts =
      hasParts ? scratchBytes(uint64_t(grad.rows * f.rowParts) * sizeof(GradPart)) : 0;
  const uint64_t partials =
      call.hasOneLogit() ? scratchBytes(uint64_t(f.groups) * sizeof(double)) : 0;
  const uint64_t bytes = parts + partials + a.bytes() + b.bytes();
  Scratch scratch(queue);
  if (bytes > 0 && scratch.allocate(bytes, "quant_product_grad", err) != AQ_OK) return err->code;
  if (hasParts) grad.parts = scratch.at<GradPart>();
  RoundJob jobs[2];
  int count = 0;
  if (a.needed) p.a = a.job.out = scratch.at<char>(parts + partials), jobs[count++] = a.job;
  if (b.needed) {
    p.b = b.job.out = scratch.at<char>(parts + partials + a.bytes());
    jobs[count++] = b.job;
  }
  if (count > 0 && roundOperands(queue, jobs, count, err) != AQ_OK) return err->code;
  const int32_t code = isMixed ? mixedGradProduct(queue, p, err) : gradProduct(queue, p, err);
  if (code != AQ_OK || !hasParts) return code;

  f.grad = grad;
  f.clip = {call.floats(7), f.groups, call.hasOneLogit()};
  float* const clipGrad = call.has(7) ? static_cast<float*>(call.out[1].data) : nullptr;
  if (call.hasOneLogit()) {
    f.partials = scratch.at<double>(parts);
  } else {
    f.clipGrad = clipGrad;
  }
  f.rule = GridRule<float>::of(call.o, false);
  const int32_t ended = finish(queue, f, err);
  if (ended != AQ_OK || !f.partials) return ended;
  return addClipPartials(queue, f.partials, f.groups, f.clip.logits, clipGrad, err);
}

// The product in scratch, then fake_quant_grad.
int32_t runInSteps(aq_queue* queue, const Call& call, aq_error* err) {
  aq_view gradient = call.x();
  gradient.dtype = isShortType(gradient.dtype) ? int32_t(AQ_BF16) : gradient.dtype;
  gradient.rank = 2;
  gradient.dim[0] = call.rows();
  gradient.dim[1] = call.cols();
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(numel(gradient) * elementBytes(gradient.dtype));
  if (bytes > 0 && scratch.allocate(bytes, "quant_product_grad", err) != AQ_OK) return err->code;
  gradient.data = scratch.at<char>();
  if (call.has(3)) {
    CUDA_CHECK(cudaMemcpyAsync(gradient.data, call.in[3].data, bytes, cudaMemcpyDeviceToDevice,
                               queue->stream));
  }

  aq_view factors[10] = {call.a(), call.b()};
  factors[4] = call.in[2];
  aq_fake_quant_gemm_params product = {};
  product.trans_a = call.o.trans_a;
  product.bf16 = gradient.dtype == AQ_BF16;
  product.accumulate = call.has(3);
  if (fake_quant_gemm(queue, factors, 10, &gradient, 1, &product, err) != AQ_OK) return err->code;
  const aq_fake_quant_grad_params quantizer = {
      call.o.floor, call.o.bits, call.o.group, call.o.symmetric, call.o.need_gx, call.o.rule, 0};
  const aq_view of[] = {call.x(),   call.in[5], call.in[6], gradient,
                        call.in[7], call.in[8], call.in[9], call.in[10]};
  return fake_quant_grad(queue, of, 8, call.out, 5, &quantizer, err);
}

}  // namespace

int32_t quant_product_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const Call call = {in, out, *static_cast<const aq_quant_product_grad_params*>(params)};
  bool done = false;
  const int32_t code = runFused(queue, call, &done, err);
  return code != AQ_OK || done ? code : runInSteps(queue, call, err);
}

}  // namespace aq::cuda
