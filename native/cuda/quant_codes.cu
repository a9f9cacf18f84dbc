// quant_codes: both operands of an exact integer product made int8 codes.
//
// Math      q = clamp(round(x / s + v) + z, 0, 2^bits - 1). Codes: q - z as int8 where every such
//           difference fits (at most 7 bits, z among the codes), else q - 2^(bits-1), and with it
//           the zero point that is left over.
// Layout    a row is worked on by a warp where it is short, else by a block; 16-byte loads where
//           the addresses allow. Both operands are one launch where they can be.
// Cost      4 B read, 1 B written an element (4 more read with offsets).
// Roofline  bandwidth: 4096 x 4096 and 2048 x 4096, 126 MB -> 38 us at 3.35 TB/s (H100 SXM data
//           sheet). Measured there, H100 80GB HBM3, driver 580: 48 us; over several sizes the slope
//           is a plain copy's (2.96 TB/s) and 5 us are fixed.
// Versions  v1 division and conversions per element, one launch each: 60 us; v2 the short division,
//           rounding by addition, loads before anything waits, one launch (this). Tried without
//           gain: 2 and 8 loads in flight, 256 threads, no loads ahead.
// Numerics  quotients and roundings are f32's, as on the CPU: the same codes, bit for bit.
#include <cmath>

#include "native/cuda/check.h"
#include "native/cuda/device/dtype.cuh"
#include "native/cuda/device/grid_value.cuh"
#include "native/cuda/device/quant_rows.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/quant_pack.h"

namespace aq::cuda {

namespace {

template <class S>
struct PackJob {
  QuantMatrix<S, float> x;
  int8_t* codes;
  CodeRow* meta;
};

// The low bytes of four numbers that were rounded by kRounder.
__device__ inline uint32_t lowBytes(const float (&x)[4]) {
  const uint32_t low = __byte_perm(__float_as_uint(x[0]), __float_as_uint(x[1]), 0x0040);
  const uint32_t high = __byte_perm(__float_as_uint(x[2]), __float_as_uint(x[3]), 0x0040);
  return __byte_perm(low, high, 0x5410);
}

template <class S, int kWide, int kLanes, Extras kExtras>
__device__ void packRow(const PackJob<S>& job, int64_t row, int64_t pitch) {
  using Round = QuantRound<S, float, kWide, kLanes, kExtras>;
  const QuantMatrix<S, float>& x = job.x;
  const int lane = threadIdx.x % kLanes;
  Round round;
  round.load(x, row, lane * kWide);
  const GridValue<float> grid(x.scale[row], x.zero[row], x.top);
  const float rowFactor = kExtras != Extras::kNone && x.rowFactor ? x.rowFactor[row] : 1.0f;
  const bool fits = x.top <= 127 && grid.zero >= 0 && grid.zero <= x.top;
  const float base = fits ? grid.zero : (x.top + 1) / 2;
  // The code less base is left in the low bits of whole + shift.
  const float shift = kRounder + grid.zero - base;
  const float low = kRounder - base, high = kRounder + (x.top - base);
  int8_t* const codes = job.codes + row * pitch;
  int32_t sum = 0;
  bool isNan = false;
  for (int64_t first = lane * kWide; first < pitch; first += Round::kSpan) {
    Round next;
    if (first + Round::kSpan < x.cols) next.load(x, row, first + Round::kSpan);
#pragma unroll
    for (int u = 0; u < kInFlight; u++) {
      const int64_t col = first + u * kLanes * kWide;
      if (col >= pitch) break;
      uint32_t packed = 0;
      if (col < x.cols) {
        float value[kWide], offset[kWide], whole[kWide], moved[4] = {};
        round.get(x, rowFactor, u, col, value, offset);
        if (grid.template round<kWide, Round::kOffset>(value, offset, whole)) {
#pragma unroll
          for (int e = 0; e < kWide; e++) isNan |= isnan(whole[e]);
        }
#pragma unroll
        for (int e = 0; e < kWide; e++) moved[e] = fminf(fmaxf(whole[e] + shift, low), high);
        packed = lowBytes(moved) & (kWide == 4 ? ~0u : 0xFFu);
        sum = __dp4a(int32_t(packed), 0x01010101, sum);
      }
      if constexpr (kWide == 4) {
        *reinterpret_cast<uint32_t*>(codes + col) = packed;
      } else {
        codes[col] = int8_t(packed);
      }
    }
    round = next;
  }
  const int32_t total = rowSum<kLanes>(sum), nans = rowSum<kLanes>(int32_t(isNan));
  if (lane > 0) return;
  const int32_t zero = __float2int_rn(grid.zero - base);
  job.meta[row] = {nans || isnan(grid.zero) ? NAN : grid.scale, zero, total, 0};
}

template <class S, int kWide, int kLanes, Extras kExtras>
__global__ __launch_bounds__(kRowThreads) void packRows(PackJob<S> job, int64_t pitch) {
  const int64_t row = int64_t(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  // Whole groups of kLanes leave, so that the sums of the others are complete.
  if (row < job.x.rows) packRow<S, kWide, kLanes, kExtras>(job, row, pitch);
}

struct PackPair {
  PackJob<float> job[2];
};

// Two operands of f32 in one launch; only the first may have extras.
template <int kLanes, Extras kExtras>
__global__ __launch_bounds__(kRowThreads) void packRowsOfBoth(const __grid_constant__ PackPair pair,
                                                              int64_t pitch) {
#if __CUDA_ARCH__ >= 900
  // The product may set itself up where blocks have left; it waits for all of them by itself.
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  int64_t row = int64_t(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const PackJob<float>& first = pair.job[0];
  if (row < first.x.rows) {
    packRow<float, kRowVec, kLanes, kExtras>(first, row, pitch);
  } else {
    row -= first.x.rows;
    const PackJob<float>& second = pair.job[1];
    if (row < second.x.rows) packRow<float, kRowVec, kLanes, Extras::kNone>(second, row, pitch);
  }
}

template <class S>
int32_t packOne(aq_queue* queue, const QuantOperand& x, const Codes& codes, int64_t pitch,
                aq_error* err) {
  if (x.rows == 0) return AQ_OK;
  const PackJob<S> job = {quantMatrix<S, float>(x), codes.data, codes.rows};
  visitRowLanes(x.rows, x.cols, [&]<int kLanes>(unsigned blocks) {
    const auto start = [&](auto kernel) {
      kernel<<<blocks, kRowThreads, 0, queue->stream>>>(job, pitch);
    };
    const bool isPlain = extrasOf(x) == Extras::kNone;
    if (hasVectors(x)) {
      isPlain ? start(packRows<S, kRowVec, kLanes, Extras::kNone>)
              : start(packRows<S, kRowVec, kLanes, Extras::kAll>);
    } else {
      isPlain ? start(packRows<S, 1, kLanes, Extras::kNone>)
              : start(packRows<S, 1, kLanes, Extras::kAll>);
    }
  });
  LAUNCH_CHECK("fake_quant_gemm (codes)");
  return AQ_OK;
}

int32_t packOneAny(aq_queue* queue, const CodeJob& job, int64_t pitch, aq_error* err) {
  switch (job.x.dtype) {
    case AQ_BF16:
      return packOne<__nv_bfloat16>(queue, job.x, job.out, pitch, err);
    case AQ_F16:
      return packOne<__half>(queue, job.x, job.out, pitch, err);
    default:
      return packOne<float>(queue, job.x, job.out, pitch, err);
  }
}

}  // namespace

int32_t packCodes(aq_queue* queue, const CodeJob* jobs, int count, int64_t pitch, aq_error* err) {
  const auto fits = [](const QuantOperand& x) {
    return x.dtype == AQ_F32 && hasVectors(x) && x.rows > 0;
  };
  bool isPair = count == 2 && extrasOf(jobs[1].x) == Extras::kNone;
  for (int i = 0; i < count; i++) {
    if (checkOperand(jobs[i].x, err) != AQ_OK) return err->code;
    isPair = isPair && fits(jobs[i].x);
  }
  if (!isPair) {
    for (int i = 0; i < count; i++) {
      if (packOneAny(queue, jobs[i], pitch, err) != AQ_OK) return err->code;
    }
    return AQ_OK;
  }
  const auto packOf = [](const CodeJob& job) -> PackJob<float> {
    return {quantMatrix<float, float>(job.x), job.out.data, job.out.rows};
  };
  const PackPair pair = {{packOf(jobs[0]), packOf(jobs[1])}};
  visitRowLanes(jobs[0].x.rows + jobs[1].x.rows, jobs[0].x.cols, [&]<int kLanes>(unsigned blocks) {
    const auto start = [&](auto kernel) {
      kernel<<<blocks, kRowThreads, 0, queue->stream>>>(pair, pitch);
    };
    switch (extrasOf(jobs[0].x)) {
      case Extras::kNone:
        return start(packRowsOfBoth<kLanes, Extras::kNone>);
      case Extras::kFactors:
        return start(packRowsOfBoth<kLanes, Extras::kFactors>);
      case Extras::kAll:
        return start(packRowsOfBoth<kLanes, Extras::kAll>);
    }
  });
  LAUNCH_CHECK("fake_quant_gemm (codes)");
  return AQ_OK;
}

}  // namespace aq::cuda
