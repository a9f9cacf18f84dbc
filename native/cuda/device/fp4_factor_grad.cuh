// fp4_factor_grad.cuh: fp4_grad of short numbers with factors of rows and columns, without offsets.
//
// Blocks go through many rows, so that sums of columns stay in registers. Everything is done with
// magnitudes: gradients take the signs of the numbers that they belong to, two at a time, and sums of
// rows and columns get the signs of their factors at the end.
#pragma once
#include <cstdint>

#include "native/cuda/device/fp4_flat.cuh"
#include "native/cuda/device/fp4_grad.cuh"

namespace aq::cuda {

inline constexpr int kFactorBlocks = 5;  // on a multiprocessor, of groups of two runs

// The factors of a thread's columns: magnitudes, and signs as FlatRun has them.
struct ColumnFactors {
  float size[kRun];
  uint32_t signs[kRun / 2];

  __device__ explicit ColumnFactors(const Run<float>& c) {
    FlatRun<float> run;
#pragma unroll
    for (int e = 0; e < kRun; e++) {
      size[e] = fabsf(c.lane[e]);
      run.number[e] = c.lane[e];
    }
#pragma unroll
    for (int w = 0; w < kRun / 2; w++) signs[w] = run.signs(w) & kSigns;
  }
};

template <class S>
__device__ inline FlatRun<S> flatRun(const uint4& words, bool isKept) {
  FlatRun<S> run;
  if (isKept)
    run.word[0] = words.x, run.word[1] = words.y, run.word[2] = words.z, run.word[3] = words.w;
  return run;
}

// Gives up the lines of gradients that a warp has read, of rows that consist of lines.
template <class S, int kRows>
__device__ inline void discardPiece(const Fp4Grad<S>& a, const StripPiece<kRows>& piece) {
  __syncwarp();
  if (threadIdx.x % kLineRuns<GradientOf<S>> != 0) return;
#pragma unroll
  for (int j = 0; j < kRows; j++) {
    if (piece.inside[j]) discardLine(a.grad + piece.at[j]);
  }
}

template <class S, int kFormat>
__global__ __launch_bounds__(kStripThreads, kFormat == kNvFp4 ? kFactorBlocks : 3) void gradFactors(
    const __grid_constant__ Fp4Grad<S> a) {
  using G = GradientOf<S>;
  constexpr int kRows = kGroupLanes<kFormat>;
  using Ahead = RunsAhead<S, kRows>;
  const auto add = [](float p, float q) { return p + q; };
  const StripPlace place(a.strips);
  awaitLastKernel();
  __shared__ alignas(16) uint4 memory[Ahead::kWords];
  Ahead ahead(a, place, memory);
  GradGroup<S, kRows, true> nextGroup;
  nextGroup.load(a, place, blockIdx.x);
  const float g = fp4Global(a.g);
  const Run<float> given = a.factors.template run<true>(a.strips, place);
  const ColumnFactors c(given);
  Run<float> columns = {};
  double logitSum = 0;
  const bool isSpent = a.isSpent && a.hasWarpParts() && a.strips.runs % kLineRuns<G> == 0;

#pragma unroll 1
  for (unsigned index = blockIdx.x; index < a.strips.pieces; index += gridDim.x) {
    const StripPiece<kRows> piece(a.strips, place, index);
    const GradGroup<S, kRows, true> group = nextGroup;
    StripRuns<S, kRows, true> storedX;
    StripRuns<G, kRows, true> storedGrad;
    ahead.take(storedX, storedGrad);
    nextGroup.load(a, place, index + gridDim.x);
    FlatRun<S> x[kRows];
    FlatRun<G> grad[kRows];
    float y[kRows][kRun], flow[kRows][kRun], largest[kRows], sums[kRows];
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      x[j] = flatRun<S>(storedX.row[j].data, piece.inside[j]);
      grad[j] = flatRun<G>(storedGrad.row[j].data, piece.inside[j]);
      const float r = fabsf(group.r[j]);
      largest[j] = 0;
#pragma unroll
      for (int w = 0; w < kRun / 2; w++) {
        const float2 from = x[j].pair(w);
        y[j][2 * w] = mulRn(mulRn(r, fabsf(from.x)), c.size[2 * w]);
        y[j][2 * w + 1] = mulRn(mulRn(r, fabsf(from.y)), c.size[2 * w + 1]);
        largest[j] = maxOrNaN(largest[j], maxOrNaN(y[j][2 * w], y[j][2 * w + 1]));
      }
    }
    const float most =
        joinNeighbours<kRows>(largest, [](float p, float q) { return maxOrNaN(p, q); });
    const float divisor = a.clip ? clipDivisor(group.logit) : 1.0f;
    const FlatGroup<kFormat, true> scaled(divisor, most, g, group.scale);

#pragma unroll
    for (int j = 0; j < kRows; j++) {
      const float k = ofNeighbour<kRows>(scaled.inverse, j);
      const uint32_t rowSign = group.r[j] < 0.0f ? kSigns : 0u;
      sums[j] = 0;
#pragma unroll
      for (int w = 0; w < kRun / 2; w++) {
        grad[j].turn(w, x[j].signs(w) ^ c.signs[w] ^ rowSign);
        const float2 both = grad[j].pair(w);
        flow[j][2 * w] = passing(both.x, mulRn(y[j][2 * w], k), sums[j]);
        flow[j][2 * w + 1] = passing(both.y, mulRn(y[j][2 * w + 1], k), sums[j]);
      }
    }
    if (isSpent) discardPiece(a, piece);
    const float toClipped = scaled.toClipped(joinNeighbours<kRows>(sums, add), group.scale);
    if (a.parts) {
      logitSum += double(toClipped) * double(most);
    } else if (a.groupClipGrad && group.index >= 0) {
      a.groupClipGrad[group.index] = toClipped * most * (scaled.factor * (1.0f - scaled.factor));
    }

    float counts[kRows], rowSums[kRows];
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      const float top = ofNeighbour<kRows>(most, j);
      counts[j] = 0;
#pragma unroll
      for (int e = 0; e < kRun; e++) {
        // From here on what says whether it is the largest.
        y[j][e] = y[j][e] == top ? 1.0f : 0.0f;
        counts[j] += y[j][e];
      }
    }
    const float share = sharedBy(toClipped * scaled.factor, joinNeighbours<kRows>(counts, add));
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      const float each = ofNeighbour<kRows>(share, j), r = fabsf(group.r[j]);
      FlatRun<G> gx;
      rowSums[j] = 0;
#pragma unroll
      for (int w = 0; w < kRun / 2; w++) {
        const float2 from = x[j].pair(w);
        const float sizes[2] = {fabsf(from.x), fabsf(from.y)};
        float out[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int e = 2 * w + i;
          const float gy = __fmaf_rn(y[j][e], each, flow[j][e]), product = gy * sizes[i];
          rowSums[j] += product * c.size[e];
          columns.lane[e] += product * r;
          out[i] = gy * (r * c.size[e]);
        }
        gx.set(w, {out[0], out[1]});
        gx.turn(w, x[j].signs(w));
      }
      if (a.gx && piece.inside[j]) gx.store(a.gx + piece.at[j], 0);
    }
    if (a.rowParts) {
      float r = group.r[0];
#pragma unroll
      for (int j = 1; j < kRows; j++) r = threadIdx.x % kRows == unsigned(j) ? group.r[j] : r;
      const float sum = withSign(joinNeighbours<kRows>(rowSums, add), r);
      storeRowPart<S, kRows>(a, place, index, group.index, sum);
    }
  }
  if (a.columnParts) {
#pragma unroll
    for (int e = 0; e < kRun; e++) columns.lane[e] = withSign(columns.lane[e], given.lane[e]);
    storeColumns(a, place, columns);
  }
  if (a.parts) addLogitParts(a, logitSum);
}

}  // namespace aq::cuda
