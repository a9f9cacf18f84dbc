// quant_round: operands of fake_quant_gemm quantized and rounded to the type of the product.
//
// Math      y = (clamp(round(x / s + v) + z, 0, 2^bits - 1) - z) s, times factors of its row or
//           column, rounded to nearest even; without a grid y = x.
// Layout    a row is worked on by a warp where it is short, else by a block; 16-byte loads where
//           the addresses allow. Both operands of a product are one launch where they can be.
// Cost      bf16: 4 B read and 2 B written an element (4 more read with offsets).
// Roofline  bandwidth: 4096 x 4096 to bf16 101 MB -> 30 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured there, H100 80GB HBM3, driver 580: 39 us; with a gradient of 2048 x 4096, 151
//           MB: 56 us. The slope is a plain copy's (2.96 TB/s) and 5 us are fixed.
// Versions  v1 division and conversions per element: 42 us; v2 the short division, loads before
//           anything waits, both operands in one launch (this).
// Numerics  quotients and roundings are f32's, as on the CPU.
#include "native/cuda/quant_pack.h"

#include <type_traits>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid_value.cuh"
#include "native/cuda/device/quant_rows.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

namespace {

// What the kernels know of a RoundJob.
template <class S, class T, class E>
struct RoundArgs {
  QuantMatrix<S, T> x;
  E* out;
  int64_t pitch;
  const T* rowScale;
  const T* colScale;
  bool codesOnly;
  unsigned blocks;

  RoundArgs(const RoundJob& job, unsigned blockCount)
      : x(quantMatrix<S, T>(job.x)),
        out(static_cast<E*>(job.out)),
        pitch(job.pitch),
        rowScale(nullptr),
        colScale(nullptr),
        codesOnly(job.codesOnly),
        blocks(blockCount) {
    if constexpr (std::is_same_v<T, float>) {
      rowScale = job.rowScale;
      colScale = job.colScale;
    }
  }
};

template <class S, class T, class E, int kWide, int kLanes, bool kGrid, Extras kExtras>
__device__ void roundRow(const RoundArgs<S, T, E>& job, unsigned block) {
  using Round = QuantRound<S, T, kWide, kLanes, kExtras>;
  const QuantMatrix<S, T>& x = job.x;
  const int64_t row = int64_t(block) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= x.rows) return;
  const int lane = threadIdx.x % kLanes;
  Round round;
  round.load(x, row, lane * kWide);
  E* const out = job.out + row * job.pitch;
  const bool isWhole = x.group >= x.cols;
  const T rowScale = job.rowScale ? job.rowScale[row] : T(1);
  const T rowFactor = kExtras != Extras::kNone && x.rowFactor ? x.rowFactor[row] : T(1);
  const auto gridAt = [&](int64_t col) {
    const int64_t at = row * x.gridLd + (isWhole ? 0 : uint32_t(col) / uint32_t(x.group));
    return GridValue<T>(x.scale[at], x.zero[at], x.top);
  };
  GridValue<T> grid = kGrid && isWhole ? gridAt(0) : GridValue<T>(T(1), T(0), x.top);
  for (int64_t first = lane * kWide; first < x.cols; first += Round::kSpan) {
    Round next;
    if (first + Round::kSpan < x.cols) next.load(x, row, first + Round::kSpan);
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t col = first + u * kLanes * kWide;
      if (col >= x.cols) break;
      T value[kWide], offset[kWide];
      round.get(x, rowFactor, u, col, value, offset);
      if constexpr (kGrid) {
        if (!isWhole) grid = gridAt(col);  // kWide > 1 only where a vector has one group
        T whole[kWide];
        const bool isRare = grid.template round<kWide, Round::kOffset>(value, offset, whole);
        const T scale = job.codesOnly ? T(1) : grid.scale;
#pragma unroll
        for (int e = 0; e < kWide; e++) {
          value[e] = fmin(fmax(whole[e], -grid.zero), x.top - grid.zero) * scale;
        }
        if (isRare) {
#pragma unroll
          for (int e = 0; e < kWide; e++) {
            if (isnan(whole[e])) value[e] = whole[e];
          }
        }
      }
      Vec<E, kWide> rounded;
#pragma unroll
      for (int e = 0; e < kWide; e++) {
        value[e] *= rowScale;
        if (job.colScale) value[e] *= job.colScale[col + e];
        rounded.lane[e] = E(value[e]);
      }
      storeVec(out + col, 0, rounded);
    }
    round = next;
  }
}

template <class S, class T, class E, int kWide, int kLanes, bool kGrid, Extras kExtras>
__global__ __launch_bounds__(kRowThreads) void roundRows(
    const __grid_constant__ RoundArgs<S, T, E> job) {
  roundRow<S, T, E, kWide, kLanes, kGrid, kExtras>(job, blockIdx.x);
}

template <class E>
struct RoundPair {
  RoundArgs<float, float, E> job[2];
};

// Two operands of f32 with long rows in one launch; only the first may have extras.
template <class E, Extras kExtras>
__global__ __launch_bounds__(kRowThreads) void roundRowsOfBoth(
    const __grid_constant__ RoundPair<E> pair) {
  const RoundArgs<float, float, E>&first = pair.job[0], &second = pair.job[1];
  if (blockIdx.x < first.blocks) {
    if (kExtras != Extras::kNone || first.x.scale) {
      roundRow<float, float, E, kRowVec, kRowThreads, true, kExtras>(first, blockIdx.x);
    } else {
      roundRow<float, float, E, kRowVec, kRowThreads, false, kExtras>(first, blockIdx.x);
    }
  } else if (second.x.scale) {
    roundRow<float, float, E, kRowVec, kRowThreads, true, Extras::kNone>(second,
                                                                         blockIdx.x - first.blocks);
  } else {
    roundRow<float, float, E, kRowVec, kRowThreads, false, Extras::kNone>(
        second, blockIdx.x - first.blocks);
  }
}

// ---------------------------------------------------------------- launch

template <class S, class T, class E, bool kGrid, Extras kExtras>
void roundTo(aq_queue* queue, const RoundJob& job) {
  visitRowLanes(job.x.rows, job.x.cols, [&]<int kLanes>(unsigned blocks) {
    const auto start = [&](auto kernel) {
      kernel<<<blocks, kRowThreads, 0, queue->stream>>>(RoundArgs<S, T, E>(job, blocks));
    };
    // Products in f32 and f64 are slow enough to hide narrow accesses.
    constexpr int kWide = sizeof(E) == 2 ? kRowVec : 1;
    if (kWide > 1 && hasVectors(job.x)) {
      start(roundRows<S, T, E, kWide, kLanes, kGrid, kExtras>);
    } else {
      start(roundRows<S, T, E, 1, kLanes, kGrid, kExtras>);
    }
  });
}

int32_t roundOne(aq_queue* queue, const RoundJob& job, aq_error* err) {
  const auto run = [&]<class S, class E>() {
    using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
    if (!job.x.hasGrid()) {
      // What is not f64 or f32 goes through expandOperand.
      if constexpr (sizeof(S) > 2) roundTo<S, T, E, false, Extras::kNone>(queue, job);
    } else if (extrasOf(job.x) == Extras::kNone) {
      roundTo<S, T, E, true, Extras::kNone>(queue, job);
    } else {
      roundTo<S, T, E, true, Extras::kAll>(queue, job);
    }
  };
  const auto runTo = [&]<class S>() {
    job.to == AQ_BF16  ? run.template operator()<S, __nv_bfloat16>()
    : job.to == AQ_F16 ? run.template operator()<S, __half>()
                       : run.template operator()<S, float>();
  };
  if (job.x.rows == 0 || job.x.cols == 0) return AQ_OK;
  if (!job.x.hasGrid() && job.x.dtype != AQ_F64 && job.x.dtype != AQ_F32)
    return expandOperand(queue, job, err);
  switch (job.x.dtype) {
    case AQ_F64:
      run.template operator()<double, double>();
      break;
    case AQ_BF16:
      runTo.template operator()<__nv_bfloat16>();
      break;
    case AQ_F16:
      runTo.template operator()<__half>();
      break;
    default:
      runTo.template operator()<float>();
  }
  LAUNCH_CHECK("fake_quant_gemm (rounding)");
  return AQ_OK;
}

template <class E>
int32_t roundBoth(aq_queue* queue, const RoundJob* jobs, aq_error* err) {
  const RoundPair<E> pair = {
      {{jobs[0], unsigned(jobs[0].x.rows)}, {jobs[1], unsigned(jobs[1].x.rows)}}};
  const unsigned blocks = pair.job[0].blocks + pair.job[1].blocks;
  const auto start = [&](auto kernel) { kernel<<<blocks, kRowThreads, 0, queue->stream>>>(pair); };
  switch (extrasOf(jobs[0].x)) {
    case Extras::kNone:
      start(roundRowsOfBoth<E, Extras::kNone>);
      break;
    case Extras::kFactors:
      start(roundRowsOfBoth<E, Extras::kFactors>);
      break;
    case Extras::kAll:
      start(roundRowsOfBoth<E, Extras::kAll>);
      break;
  }
  LAUNCH_CHECK("fake_quant_gemm (rounding)");
  return AQ_OK;
}

// Whether roundRowsOfBoth can take the operand.
bool fitsPair(const RoundJob& job) {
  return job.x.dtype == AQ_F32 && hasVectors(job.x) && job.x.rows > 0 &&
         job.x.cols > kWarpRowLength;
}

}  // namespace

int32_t roundOperands(aq_queue* queue, const RoundJob* jobs, int count, aq_error* err) {
  for (int i = 0; i < count; i++) {
    if (checkOperand(jobs[i].x, err) != AQ_OK) return err->code;
  }
  const bool isPair = count == 2 && fitsPair(jobs[0]) && fitsPair(jobs[1]) &&
                      jobs[0].to == jobs[1].to && extrasOf(jobs[1].x) == Extras::kNone;
  if (isPair) {
    if (jobs[0].to == AQ_BF16) return roundBoth<__nv_bfloat16>(queue, jobs, err);
    if (jobs[0].to == AQ_F16) return roundBoth<__half>(queue, jobs, err);
  }
  for (int i = 0; i < count; i++) {
    if (roundOne(queue, jobs[i], err) != AQ_OK) return err->code;
  }
  return AQ_OK;
}

}  // namespace aq::cuda
