// fp4_grad: the gradient of quantization to 4-bit floats.
//
// Math      params.h: straight through the roundings, the scale's to the largest elements of its
//           group and to its logit.
// Layout    As fp4_operand: a thread has runs of 8 columns of a few rows; x and grad are read once, gx
//           and gv written once. Without factors and offsets: device/fp4_flat_grad.cuh. With gradients
//           of the columns' factors a block goes through many rows, the next ones on their way to shared
//           memory, and keeps their sums (device/fp4_factor_grad.cuh); a second kernel adds the blocks'
//           up, another one the parts of the rows' factors. All else here. One logit for all: a sum a
//           block, and whichever ends last adds them up.
// Cost      x and grad short: 4.5 B an element with scale and nothing but logits of groups to
//           write, 2 B more with gx, 6 B with offsets; in f32 twice that.
// Roofline  4096 x 4096 f16, logits of groups: 80 MB -> 24 us at 3.35 TB/s (H100 SXM data sheet).
//           Measured on an H100 80GB HBM3: 31 us, 86 % of a copy (24 us behind the product that makes
//           grad); with offsets 66 us, 92 %; with factors 51 us (47 instructions an element); gx of
//           2048 x 4096 bf16 23 us, f32 39 us, 88 %.
// Versions  v4 packed forms without offsets: 22 instructions an element instead of 33, with factors 47
//           instead of 63 (this); v3 begins with what was written last, rows in 32 bits; v2 a form for
//           each of what is wanted; v1 50 us, with factors 76. Tried: the product in parts of rows with
//           fp4_grad behind each (117 us together whole, 121 in 2 parts, 132 in 4).
// Numerics  y, codes and scales round as in fp4_operand. Sums in T in an order that the shape and the
//           device's number of multiprocessors fix; over all groups in f64.
#include "native/abi/params.h"
#include "native/cuda/check.h"
#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/fp4_factor_grad.cuh"
#include "native/cuda/device/fp4_flat_grad.cuh"
#include "native/cuda/device/fp4_grad.cuh"
#include "native/cuda/device/fp4_strips.cuh"
#include "native/cuda/kernels.h"
#include "native/cuda/launch.h"
#include "native/cuda/passes.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

// Blocks on a multiprocessor, where they go through many rows.
constexpr unsigned kResident = kFactorBlocks;

// Blocks on a multiprocessor that the registers are to leave room for.
template <class S, int kFormat, Fp4Wants kWants>
inline constexpr int kBlocksOf = sizeof(S) == 8                 ? 2
                                 : kFormat == kMxFp4            ? 3
                                 : kWants == Fp4Wants::kLearned ? 5
                                                                : 4;

template <class S, int kFormat, Fp4Wants kWants, bool kWide>
__global__ __launch_bounds__(kStripThreads, kBlocksOf<S, kFormat, kWants>) void gradStrips(
    const __grid_constant__ Fp4Grad<S> a) {
  using T = Wide<S>;
  using G = GradientOf<S>;
  constexpr int kRows = kGroupLanes<kFormat>;
  constexpr bool kScaled = kWants == Fp4Wants::kMatrix;
  constexpr bool kAhead = kScaled && kWide && kIsShort<S>;
  using Ahead = RunsAhead<S, kRows>;
  const auto add = [](T p, T q) { return p + q; };
  const StripPlace place(a.strips);
  awaitLastKernel();
  const T g = fp4Global(a.g);
  const unsigned pieces = a.strips.pieces;
  Run<T> c, columns = {};
  if constexpr (kScaled) c = a.factors.template run<kWide>(a.strips, place);
  double logitSum = 0;
  __shared__ alignas(16) uint4 memory[kAhead ? Ahead::kWords : 1];
  std::conditional_t<kAhead, Ahead, int> ahead = [&] {
    if constexpr (kAhead)
      return Ahead(a, place, memory);
    else
      return 0;
  }();
  GradGroup<S, kRows, kScaled> nextGroup;
  // What a product wrote last is still in L2: a grid without a second round begins there.
  const auto pieceOf = [&](unsigned turn) { return kScaled ? turn : pieces - 1 - turn; };
  nextGroup.load(a, place, pieceOf(blockIdx.x));

  for (unsigned turn = blockIdx.x; turn < pieces; turn += gridDim.x) {
    const unsigned index = pieceOf(turn);
    const StripPiece<kRows> piece(a.strips, place, index);
    const GradGroup<S, kRows, kScaled> group = nextGroup;
    StripRuns<S, kRows, kWide> x;
    StripRuns<G, kRows, kWide> grad;
    StripRuns<T, kRows, kWide> v;
    if constexpr (kAhead) {
      ahead.take(x, grad);
      nextGroup.load(a, place, index + gridDim.x);
    } else {
      x.load(a.x, a.strips, place, piece);
      grad.load(a.grad, a.strips, place, piece);
      if constexpr (kScaled) nextGroup.load(a, place, index + gridDim.x);
    }
    if (a.v) v.load(a.v, a.strips, place, piece);
    const T s = group.scale, f = a.clip ? fp4Clip(group.logit) : T(1);
    if (kScaled || a.parts) {  // sums of more than a group must not have what is outside
      x.clearOutside(piece);
      grad.clearOutside(piece);
    }

    T y[kRows][kRun], largest[kRows];
    scaleRuns<kScaled>(x, group.r, c, y, largest);
    const T most = joinNeighbours<kRows>(largest, [](T p, T q) { return maxOrNaN(p, q); });
    const T inverse = fp4Inverse(g, s);

    // sums: of what flows to the groups' scales; passing: what stays of the gradients.
    T sums[kRows], passing[kRows][kRun];
#pragma unroll
    for (int j = 0; j < kRows; j++) {
      const T k = ofNeighbour<kRows>(inverse, j);
      T offset[kRun];
      Run<T> offsetGrad;
      grad.row[j].get(passing[j]);
      if (a.v) v.row[j].get(offset);
      sums[j] = 0;
#pragma unroll
      for (int e = 0; e < kRun; e++) {
        const T u = mulRn(y[j][e], k);
        const T h = e2m1Step(u), w = a.v ? addRn(u, mulRn(offset[e], h)) : u;
        const T kept = atMost(atLeast(w, -kFp4Most<T>), kFp4Most<T>);
        const bool isInside = kept == w;
        sums[j] += passing[j][e] * (roundE2m1(kept) - (isInside ? u : T(0)));
        passing[j][e] = isInside ? passing[j][e] : T(0);
        offsetGrad.lane[e] = passing[j][e] * h;
      }
      const T step = ofNeighbour<kRows>(s, j) / g;
#pragma unroll
      for (int e = 0; e < kRun; e++) offsetGrad.lane[e] *= step;
      if (a.v && piece.inside[j]) storeRun<kWide>(a.gv + piece.at[j], offsetGrad);
    }
    if (kWants == Fp4Wants::kLearned && !a.clip) continue;  // gv is all that is wanted

    const Fp4Scale<T, kFormat> scale(f, most, g);
    const T toClipped = scale.toClipped(joinNeighbours<kRows>(sums, add), s);
    if (a.parts) {
      logitSum += double(toClipped) * double(most);
    } else if (a.groupClipGrad && group.index >= 0) {
      a.groupClipGrad[group.index] = toClipped * most * (f * (T(1) - f));
    }
    if constexpr (kScaled) {
      T counts[kRows], rowSums[kRows];
#pragma unroll
      for (int j = 0; j < kRows; j++) {
        const T top = ofNeighbour<kRows>(most, j);
        counts[j] = 0;
#pragma unroll
        for (int e = 0; e < kRun; e++) counts[j] += fabs(y[j][e]) == top ? T(1) : T(0);
      }
      const T ties = joinNeighbours<kRows>(counts, add);
      const T share = ties > T(0) ? toClipped * f / ties : T(0);
#pragma unroll
      for (int j = 0; j < kRows; j++) {
        const T top = ofNeighbour<kRows>(most, j), each = ofNeighbour<kRows>(share, j);
        Run<T> gx;
#pragma unroll
        for (int e = 0; e < kRun; e++) {
          gx.lane[e] = passing[j][e];
          if (fabs(y[j][e]) == top) gx.lane[e] += withSign(each, y[j][e]);
        }
        if constexpr (kScaled) {
          T from[kRun];
          x.row[j].get(from);
          rowSums[j] = 0;
#pragma unroll
          for (int e = 0; e < kRun; e++) {
            const T product = gx.lane[e] * from[e];
            rowSums[j] += product * c.lane[e];
            columns.lane[e] += product * group.r[j];
          }
        }
        if (!a.gx || !piece.inside[j]) continue;
        if constexpr (kScaled) {
#pragma unroll
          for (int e = 0; e < kRun; e++) gx.lane[e] *= group.r[j] * c.lane[e];
        }
        storeRun<kWide>(a.gx + piece.at[j], gx);
      }
      if (kScaled && a.rowParts) {
        const T sum = joinNeighbours<kRows>(rowSums, add);
        storeRowPart<S, kRows>(a, place, index, group.index, sum);
      }
    }
  }
  if (kScaled && a.columnParts) storeColumns(a, place, columns);
  if (a.parts) addLogitParts(a, logitSum);
}

// ---------------------------------------------------------------- launch

// Without factors, offsets and sums over all groups. Returns whether it is so.
template <class S, int kFormat>
bool startFlat(aq_queue* queue, const Fp4Grad<S>& a, int64_t numel, cudaError_t* status) {
  if (a.factors.any() || a.v || a.parts || !FlatShape::holds(numel)) return false;
  const FlatShape shape = FlatShape::of(numel, kGroupLanes<kFormat>);
  const FlatGrad<S> flat = {a.x,   a.scale,   a.g,  a.grad,          a.clip,
                            shape, a.isSpent, a.gx, a.groupClipGrad, a.isBeside};
  const EarlyLaunch launch(queue, shape.grid(kGroupLanes<kFormat>), kFlatThreads);
  *status = cudaLaunchKernelEx(
      &launch.config, a.gx ? gradFlat<S, kFormat, true> : gradFlat<S, kFormat, false>, flat);
  return true;
}

template <class S, int kFormat>
cudaError_t launch(aq_queue* queue, const Fp4Grad<S>& a, int64_t numel, dim3 grid, bool isWide) {
  const auto start = [&](auto kernel) { return launchStrips(queue, kernel, grid, a); };
  if constexpr (sizeof(S) < 8) {
    cudaError_t status;
    if (isWide && startFlat<S, kFormat>(queue, a, numel, &status)) return status;
    if constexpr (kIsShort<S>) {
      if (isWide && a.factors.any() && !a.v) return start(gradFactors<S, kFormat>);
    }
    if (isWide) {
      return start(a.factors.any() || a.gx ? gradStrips<S, kFormat, Fp4Wants::kMatrix, true>
                                           : gradStrips<S, kFormat, Fp4Wants::kLearned, true>);
    }
  }
  return start(gradStrips<S, kFormat, Fp4Wants::kMatrix, false>);
}

// Without elements, sums are zero.
template <class T>
int32_t clear(aq_queue* queue, const aq_view* in, const aq_view* out, aq_error* err) {
  for (const int32_t i : {1, 3, 4}) {
    const int32_t of = i == 1 ? 4 : i + 3;
    if (!in[of].data || numel(out[i]) == 0) continue;
    CUDA_CHECK(cudaMemsetAsync(out[i].data, 0, uint64_t(numel(out[i])) * sizeof(T), queue->stream));
  }
  return AQ_OK;
}

template <class S>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view* out, const aq_fp4_grad_params& o,
            aq_error* err) {
  using T = Wide<S>;
  using G = GradientOf<S>;
  if (numel(in[0]) == 0) return clear<T>(queue, in, out, err);
  const auto input = [&](int i) { return static_cast<const T*>(in[i].data); };
  Fp4Grad<S> a = {};
  a.x = static_cast<const S*>(in[0].data);
  a.scale = input(1);
  a.g = input(2);
  a.grad = static_cast<const G*>(in[3].data);
  a.clip = input(4);
  a.v = input(5);
  a.factors = {input(6), input(7)};
  a.gx = o.need_gx ? static_cast<G*>(out[0].data) : nullptr;
  a.gv = a.v ? static_cast<G*>(out[2].data) : nullptr;
  bool isWide = isAligned16(a.gx) && isAligned16(a.gv);
  for (const int i : {0, 3, 5, 7}) isWide = isWide && isAligned16(in[i].data);
  a.isSpent = o.spends_grad && reinterpret_cast<uintptr_t>(in[3].data) % kDiscardedLine == 0;
  a.ticket = queue->ticket;
  T* const clipGrad = a.clip ? static_cast<T*>(out[1].data) : nullptr;
  const bool isOneLogit = a.clip && numel(in[4]) == 1;
  T* const gr = a.factors.rows ? static_cast<T*>(out[3].data) : nullptr;
  T* const gc = a.factors.columns ? static_cast<T*>(out[4].data) : nullptr;
  if (!a.gx && !a.v && !a.clip && !gr && !gc) return AQ_OK;

  const bool isNv = o.format == kNvFp4;
  const unsigned groupRuns = isNv ? kGroupLanes<kNvFp4> : kGroupLanes<kMxFp4>;
  a.strips = Strips::of(numel(in[0]), lastDim(in[0]), groupRuns);
  // Sums of columns stay in registers for as many rows as leaves the device full.
  const unsigned resident = std::max(kResident * queue->multiprocessors / a.strips.count, 1u);
  const dim3 grid = a.strips.grid(gr || gc ? resident : a.strips.pieces);
  a.partsOfRow =
      int(a.hasWarpParts() ? a.strips.count * a.strips.lanes / kWarp : a.strips.runs / groupRuns);
  const auto bytesOf = [](bool isWanted, int64_t count, uint64_t size) {
    return isWanted ? scratchBytes(uint64_t(count) * size) : 0;
  };
  const uint64_t ofLogit = bytesOf(isOneLogit, int64_t(grid.x) * grid.y, sizeof(double));
  const uint64_t ofRows = bytesOf(gr, int64_t(a.strips.rows) * a.partsOfRow, sizeof(T));
  const uint64_t ofColumns = bytesOf(gc, int64_t(grid.x) * a.strips.columns, sizeof(T));
  Scratch scratch(queue);
  if (ofLogit + ofRows + ofColumns > 0 &&
      scratch.allocate(ofLogit + ofRows + ofColumns, "fp4_grad", err) != AQ_OK)
    return err->code;
  if (isOneLogit) {
    a.parts = scratch.at<double>();
    a.oneClipGrad = clipGrad;
  } else {
    a.groupClipGrad = clipGrad;
  }
  if (gr) a.rowParts = scratch.at<T>(ofLogit);
  if (gc) a.columnParts = scratch.at<T>(ofLogit + ofRows);

  // What goes on without factors, offsets and sums over all groups is one kernel.
  if (isWide && sizeof(S) < 8 && !a.factors.any() && !a.v && !a.parts) {
    constexpr int32_t kInputs = 8, kOutputs = 5;
    // What is given up of grad is written over.
    const Span spent = a.isSpent ? Span::of(in[3]) : Span{};
    a.isBeside = queue->passes->join(queue->calls, in, kInputs, out, kOutputs, {spent});
  }
  const cudaError_t status = isNv ? launch<S, kNvFp4>(queue, a, numel(in[0]), grid, isWide)
                                  : launch<S, kMxFp4>(queue, a, numel(in[0]), grid, isWide);
  CUDA_CHECK(status);
  if (gr) {
    constexpr int kRows = kStripThreads / kWarp;
    addRowParts<T>
        <<<unsigned((a.strips.rows + kRows - 1) / kRows), kStripThreads, 0, queue->stream>>>(
            a.rowParts, a.partsOfRow, a.strips.rows, gr);
    LAUNCH_CHECK("fp4_grad (rows)");
  }
  if (gc) {
    sumColumnParts<T, 1><<<columnBlocks(a.strips.columns), kColumnThreads, 0, queue->stream>>>(
        a.columnParts, grid.x, a.strips.columns, {{gc}});
    LAUNCH_CHECK("fp4_grad (columns)");
  }
  return AQ_OK;
}

}  // namespace

int32_t fp4_grad(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out, int32_t,
                 const void* params, aq_error* err) {
  CUDA_CHECK(cudaSetDevice(queue->device));
  const auto& o = *static_cast<const aq_fp4_grad_params*>(params);
  if (checkStrips("fp4_grad", in[0], err) != AQ_OK) return err->code;
  return visitStored(in[0].dtype, err, [&]<class S>() { return run<S>(queue, in, out, o, err); });
}

}  // namespace aq::cuda
