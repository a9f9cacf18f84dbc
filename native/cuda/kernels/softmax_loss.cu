// kl_div, kl_div_grad, cross_entropy: losses over the softmax of rows of logits.
//
// Math      with mt, ml the maxima of a row of targets t and logits l, e = e^(t - mt), E = sum e,
//           S = sum e^(l - ml):
//           kl_div = mean over rows of sum(e ((t - mt) - (l - ml))) / E - log E + log S,
//           kl_div_grad = (e^(l - ml) / S - e / E) g / M,   cross_entropy = log S - (l_id - ml).
// Layout    logits, targets [M, V]; a block of 256 (the gradient: 1024) threads per row, 16-byte
//           accesses where V and the addresses allow. Sums are taken in the pass that finds the
//           maximum: a thread that meets a larger value rescales what it has.
// Cost      reads 2 numbers and takes 2 exponentials per element (cross_entropy: 1 and 1): bound by
//           bandwidth. The gradient reads its row twice, the second time from L2, and writes it
//           once.
// Roofline  512 x 32000 f32: kl_div 131 MB -> 39 us, kl_div_grad 197 MB -> 59 us, cross_entropy
//           66 MB -> 20 us at 3.35 TB/s (H100 SXM data sheet). Measured on an H100 80GB HBM3, CUDA
//           13.0: kl_div 51.2 us = 89 % of what a plain copy reaches there (2.89 TB/s),
//           cross_entropy 27.6 us = 82 %.
// Versions  v1, whose gradient summed the two rows one after the other: 145 us. v2, both at once
//           (this).
// Numerics  a thread adds a few terms in T and those sums in f64; a row's and the rows' sums are
//           f64 in a fixed order. Equal rows diverge by 0 exactly. An id outside the row is a fault
//           (fault.h), and its loss is NaN.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/exp_sum.cuh"
#include "native/cuda/device/mean.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/fault.h"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kGradThreads = 1024;

template <class T, int kVec>
__global__ __launch_bounds__(kThreads) void rowDivergence(const T* __restrict__ logits,
                                                          const T* __restrict__ targets,
                                                          int64_t columns,
                                                          double* __restrict__ divergence) {
  using P = Pieces<T, kVec, kThreads>;
  const T* const l = logits + int64_t(blockIdx.x) * columns;
  const T* const t = targets + int64_t(blockIdx.x) * columns;
  ExpSum<T> student, teacher;
  double cross = 0;  // sum e ((t - teacher.high) - (l - student.high))
  P::each(columns, [&](int64_t base, int count) {
    T ls[kPiece], ts[kPiece];
    P::load(l, base, count, ls);
    P::load(t, base, count, ts);
    const double riseL = student.raise(largestOf(ls, count));
    const double before = teacher.sum;
    const double riseT = teacher.raise(largestOf(ts, count));
    if (riseT != 0 || riseL != 0) {
      cross = (cross + before * (riseL - riseT)) * ::exp(-riseT);
    }
    T sumL = 0, sumT = 0, sumCross = 0;
#pragma unroll
    for (int i = 0; i < kPiece; i++) {
      if (i >= count) continue;
      const T dl = ls[i] - student.high, dt = ts[i] - teacher.high;
      const T e = ::exp(dt);
      sumL += ::exp(dl);
      sumT += e;
      sumCross += e * (dt - dl);
    }
    student.sum += double(sumL);
    teacher.sum += double(sumT);
    cross += double(sumCross);
  });
  const ExpSum<T> allL = combine<kThreads>(student), allT = combine<kThreads>(teacher);
  double mine = 0;
  if (teacher.sum != 0) {
    const double fallT = double(teacher.high) - double(allT.high);
    const double fallL = double(student.high) - double(allL.high);
    mine = (cross + teacher.sum * (fallT - fallL)) * ::exp(fallT);
  }
  mine = rowSum<kThreads>(mine);
  if (threadIdx.x == 0) divergence[blockIdx.x] = mine / allT.sum - log(allT.sum) + log(allL.sum);
}

template <class T, int kVec>
__global__ __launch_bounds__(kGradThreads) void divergenceGrad(const T* __restrict__ logits,
                                                               const T* __restrict__ targets,
                                                               const T* __restrict__ g,
                                                               T* __restrict__ gx,
                                                               int64_t columns) {
  const T* const l = logits + int64_t(blockIdx.x) * columns;
  const T* const t = targets + int64_t(blockIdx.x) * columns;
  using P = Pieces<T, kVec, kGradThreads>;
  ExpSum<T> student, teacher;
  P::each(columns, [&](int64_t base, int count) {
    T ls[kPiece], ts[kPiece];
    P::load(l, base, count, ls);
    P::load(t, base, count, ts);
    takePiece(student, ls, count);
    takePiece(teacher, ts, count);
  });
  student = combine<kGradThreads>(student);
  teacher = combine<kGradThreads>(teacher);
  const double factor = double(*g) / double(gridDim.x);
  const T ofStudent = static_cast<T>(factor / student.sum);
  const T ofTeacher = static_cast<T>(factor / teacher.sum);
  T* const y = gx + int64_t(blockIdx.x) * columns;
#pragma unroll 2
  for (int64_t k = threadIdx.x; k < columns / kVec; k += kGradThreads) {
    Vec<T, kVec> x = loadVec<T, kVec>(l, k);
    const Vec<T, kVec> e = loadVec<T, kVec>(t, k);
#pragma unroll
    for (int i = 0; i < kVec; i++) {
      x.lane[i] =
          ::exp(x.lane[i] - student.high) * ofStudent - ::exp(e.lane[i] - teacher.high) * ofTeacher;
    }
    storeVec(y, k, x);
  }
}

template <class T, int kVec>
__global__ __launch_bounds__(kThreads) void rowCrossEntropy(const T* __restrict__ logits,
                                                            const int32_t* __restrict__ ids,
                                                            int64_t columns, T* __restrict__ loss,
                                                            Fault* fault) {
  const int64_t row = blockIdx.x;
  const T* const l = logits + row * columns;
  const ExpSum<T> sum = expSumOf<T, kVec, kThreads>(l, columns);
  if (threadIdx.x != 0) return;
  const int32_t id = ids[row];
  if (id < 0 || id >= columns) {
    raiseFault(fault, FaultKind::kTokenId, row, id);
    loss[row] = static_cast<T>(NAN);
    return;
  }
  loss[row] = static_cast<T>(log(sum.sum) + (double(sum.high) - double(l[id])));
}

// rows and columns of logits [M, V], and whether rows can be read by 16 bytes.
struct LogitRows {
  int64_t rows, columns;
  bool isWide;
};

template <class T>
LogitRows rowsOf(const aq_view& logits, const void* second, const void* third) {
  const int64_t columns = logits.rank ? logits.dim[logits.rank - 1] : 1;
  const int64_t rows = columns ? numel(logits) / columns : 0;
  return {rows, columns,
          columns % kVecWidth<T> == 0 && isAligned16(logits.data) && isAligned16(second) &&
              isAligned16(third)};
}

template <class T>
const T* input(const aq_view& view) {
  return static_cast<const T*>(view.data);
}

template <class T>
int32_t runDivergence(aq_queue* queue, const aq_view* in, const aq_view& out, aq_error* err) {
  const LogitRows of = rowsOf<T>(in[0], in[1].data, nullptr);
  Scratch scratch(queue);
  const uint64_t bytes = uint64_t(of.rows) * sizeof(double);
  if (const int32_t code = scratch.allocate(bytes, "kl_div", err)) return code;
  double* const rows = scratch.at<double>();
  const auto kernel = of.isWide ? rowDivergence<T, kVecWidth<T>> : rowDivergence<T, 1>;
  kernel<<<unsigned(of.rows), kThreads, 0, queue->stream>>>(input<T>(in[0]), input<T>(in[1]),
                                                            of.columns, rows);
  LAUNCH_CHECK("kl_div");
  totalOf<T><<<1, kTotalThreads, 0, queue->stream>>>(rows, of.rows, double(of.rows),
                                                     static_cast<T*>(out.data));
  LAUNCH_CHECK("kl_div (mean)");
  return AQ_OK;
}

}  // namespace

int32_t kl_div(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
               const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err,
                    [&]<class T>() { return runDivergence<T>(queue, in, out[0], err); });
}

int32_t kl_div_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                    const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    const LogitRows of = rowsOf<T>(in[0], in[1].data, out[0].data);
    if (of.rows == 0) return AQ_OK;
    const auto kernel = of.isWide ? divergenceGrad<T, kVecWidth<T>> : divergenceGrad<T, 1>;
    kernel<<<unsigned(of.rows), kGradThreads, 0, queue->stream>>>(
        input<T>(in[0]), input<T>(in[1]), input<T>(in[2]), static_cast<T*>(out[0].data),
        of.columns);
    LAUNCH_CHECK("kl_div_grad");
    return AQ_OK;
  });
}

int32_t cross_entropy(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                      const void*, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  return visitFloat(in[0].dtype, err, [&]<class T>() -> int32_t {
    const LogitRows of = rowsOf<T>(in[0], nullptr, nullptr);
    if (of.rows == 0) return AQ_OK;
    const auto kernel = of.isWide ? rowCrossEntropy<T, kVecWidth<T>> : rowCrossEntropy<T, 1>;
    kernel<<<unsigned(of.rows), kThreads, 0, queue->stream>>>(
        input<T>(in[0]), input<int32_t>(in[1]), of.columns, static_cast<T*>(out[0].data),
        queue->fault);
    LAUNCH_CHECK("cross_entropy");
    return AQ_OK;
  });
}

}  // namespace aq::cuda
