// quant_expand: operands of fake_quant_gemm that need no grid but another type.
//
// Math      y_mk = x_mk s_m (whole numbers times the scale of their row), or x_mk, times factors of
//           its row or column, rounded to nearest even.
// Layout    runs of 8 neighbouring columns a thread, kInFlight of them under way at once; the
//           result is written with the ordinary policy, because the product reads it next from L2.
// Cost      I8 to bf16: 1 B read and 2 B written an element.
// Roofline  bandwidth: 4096 x 4096 from I8 to bf16, 50 MB -> 15 us at 3.35 TB/s (H100 SXM data
//           sheet). Measured, H100 80GB HBM3, driver 580: 23 us, 11008 x 4096 53 us; the slope is a
//           plain copy's (2.97 TB/s) and 5 us are fixed.
// Versions  v1 (this).
// Numerics  products of f32 (f64 for an f64 result), rounded once at the end.
#include <algorithm>
#include <type_traits>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/quant_pack.h"

namespace aq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;

// T: what is computed in, the type of the scales.
template <class S, class T, class E>
struct Expansion {
  const S* x;
  E* y;
  const T* scale;         // of rows; null: none
  const float* rowScale;  // likewise
  const float* colScale;  // of columns; null: none
  uint32_t runsOfRow;
  int64_t cols, pitch, runs;
};

template <class S, class T, class E, int kRun>
__global__ __launch_bounds__(kThreads) void expandRows(
    const __grid_constant__ Expansion<S, T, E> job) {
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kInFlight) + threadIdx.x;
  Vec<S, kRun> x[kInFlight];
#pragma unroll
  for (int u = 0; u < kInFlight; u++) {
    const int64_t run = first + u * kThreads;
    // Rows have no gaps: a run's place is its number.
    if (run < job.runs) x[u] = loadVec<S, kRun>(job.x, run);
  }
#pragma unroll
  for (int u = 0; u < kInFlight; u++) {
    const int64_t run = first + u * kThreads;
    if (run >= job.runs) break;
    // A division of 32 bits costs a tenth of one of 64.
    const int64_t row =
        job.runs <= UINT32_MAX ? uint32_t(run) / job.runsOfRow : run / job.runsOfRow;
    const int64_t col = (run - row * job.runsOfRow) * kRun;
    T scale = job.scale ? job.scale[row] : T(1);
    if (job.rowScale) scale *= T(job.rowScale[row]);
    Vec<E, kRun> y;
#pragma unroll
    for (int e = 0; e < kRun; e++) {
      T value = T(x[u].lane[e]) * scale;
      if (job.colScale) value *= T(job.colScale[col + e]);
      y.lane[e] = E(value);
    }
    storeVec(job.y + row * job.pitch + col, 0, y);
  }
}

template <class S, class T, class E>
void expandTo(aq_queue* queue, const RoundJob& job) {
  constexpr int kWide = 8;
  const auto start = [&](auto kernel, int run) {
    const int64_t runs = job.x.rows * (job.x.cols / run);
    const Expansion<S, T, E> args = {static_cast<const S*>(job.x.data),
                                     static_cast<E*>(job.out),
                                     job.codesOnly ? nullptr : static_cast<const T*>(job.x.scale),
                                     job.rowScale,
                                     job.colScale,
                                     uint32_t(job.x.cols / run),
                                     job.x.cols,
                                     job.pitch,
                                     runs};
    constexpr int kEach = kThreads * kInFlight;
    kernel<<<unsigned((runs + kEach - 1) / kEach), kThreads, 0, queue->stream>>>(args);
  };
  // Results of four and eight bytes feed products that are slow enough to hide narrow accesses.
  if constexpr (sizeof(E) == 2) {
    if (job.x.cols % kWide == 0 && isAligned16(job.x.data) && job.pitch % kWide == 0)
      return start(expandRows<S, T, E, kWide>, kWide);
  }
  start(expandRows<S, T, E, 1>, 1);
}

template <class S>
void expandFrom(aq_queue* queue, const RoundJob& job) {
  switch (job.to) {
    case AQ_BF16:
      if constexpr (!std::is_same_v<S, __nv_bfloat16>)
        expandTo<S, float, __nv_bfloat16>(queue, job);
      break;
    case AQ_F16:
      if constexpr (!std::is_same_v<S, __half>) expandTo<S, float, __half>(queue, job);
      break;
    case AQ_F32:
      expandTo<S, float, float>(queue, job);
      break;
    case AQ_F64:
      expandTo<S, double, double>(queue, job);
      break;
  }
}

}  // namespace

int32_t expandOperand(aq_queue* queue, const RoundJob& job, aq_error* err) {
  switch (job.x.dtype) {
    case AQ_BF16:
      expandFrom<__nv_bfloat16>(queue, job);
      break;
    case AQ_F16:
      expandFrom<__half>(queue, job);
      break;
    default:
      expandFrom<int8_t>(queue, job);
  }
  LAUNCH_CHECK("fake_quant_gemm (expanding)");
  return AQ_OK;
}

}  // namespace aq::cuda
