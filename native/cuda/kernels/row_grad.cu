// row_grad: fake_quant_grad of a matrix with factors whose grids are of whole rows.
//
// Math      as in scaled_grad.cu.
// Layout    Nothing but the few extreme elements of a row has to wait for what the whole row says.
//           A warp takes a tile of 512 or 1024 columns and every n-th row, so that a lane's sums of
//           its columns stay in registers, and leaves for every row what it found in its tile; the
//           next two rows' x and g are on their way to shared memory while a row is worked on. The
//           warps of a block have the same tile and add their sums of columns up at their end. A
//           second kernel finishes rows, a warp each (device/row_grad.cuh), where it looks the
//           extreme elements up again and notes what they add to gc; a third adds gc up. Both are
//           launched early.
// Cost      reads x and g once: 4 B an element (f16 or bf16 x), 8 B (f32), and gx with 2 or 4 B; 36
//           instructions an element before v3 (ncu).
// Roofline  11008 x 4096 f16: 180 MB -> 54 us at 3.35 TB/s (H100 SXM data sheet), and as much for
//           its instructions. Measured on an H100 80GB HBM3: 98 us, 62 % of a copy; with gx 130
//           us, 70 %; f32 152 us, 79 %; 4096 x 11008 f32 with gx 212 us, 85 %.
// Versions  v3 has the next rows in shared memory instead of registers, twice as many columns a
//           lane of short numbers, and decides on codes before it adds (v2: 104, 135, 181 and 233
//           us). v1, a block a row whose warps finished rows between others: 127 us, f32 192 us.
//           Slower: 16 or 24 warps a multiprocessor instead of 20; a thread instead of a warp that
//           finishes a row (+26 us). In v2 finishing rows takes 16 us and adding gc up 11 beside 94
//           for the tiles (ncu, one by one).
// Numerics  y rounds as in quant_grid, so codes are the same. Sums in f32 in an order that the
//           shape and the device's number of multiprocessors fix.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/row_grad.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/device/short_vectors.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels/fake_quant_grad.h"
#include "native/cuda/launch.h"
#include "native/cuda/queue.h"
#include "native/cuda/scratch.h"

namespace aq::cuda {

namespace {

constexpr int kWarps = 4;  // of a block of gradTiles
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocksPerMulti = 5;  // that the registers leave room for
constexpr int kRowWarps = 8;        // of a block of finishRows
constexpr int kPart = 4;            // numbers that are worked on at once
constexpr int kAhead = 2;           // rows of a warp that are under way, or worked on

struct RowGrid {
  float scale, zero, r;

  template <class S>
  __device__ void load(const RowGrad<S>& a, int row) {
    scale = a.scale[row];
    zero = a.zero[row];
    r = a.r ? a.r[row] : 1.0f;
  }
};

// Shared memory of a block of gradTiles: rows on their way, later its warps' sums of columns.
template <class S>
struct TileMemory {
  static constexpr int kRowVectors = 2 * kTileVectors;  // of x and of g
  static constexpr int kRing = kAhead * kRowVectors * kThreads * 16;
  static constexpr int kSums = kWarps * kTileNumbers<S> * kWarp * 4;
  static constexpr int kBytes = kRing > kSums ? kRing : kSums;
};

template <class S>
__global__ __launch_bounds__(kThreads,
                             kBlocksPerMulti) void gradTiles(const __grid_constant__ RowGrad<S> a) {
  using G = GradientOf<S>;
  constexpr int kVec = kVecWidth<S>, kNumbers = kTileNumbers<S>;
  extern __shared__ uint4 memory[];
  __shared__ Vec<float, kPart> factors[kNumbers / kPart][kWarp];  // of the tile's columns
  letNextKernelStart();
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int tile = int(blockIdx.x) % a.tiles, rowBlock = int(blockIdx.x) / a.tiles;
  const int vectors = a.columns / kVec, own = tile * (kTileVectors * kWarp) + lane;
  const int rows = int(a.rows), stride = a.rowBlocks * kWarps;
  const auto slotOf = [&](int slot, int i) {
    return memory + (slot * 2 * kTileVectors + i) * kThreads + threadIdx.x;
  };
  const auto copy = [&](int row, int slot) {
    if (row < rows) {
#pragma unroll
      for (int i = 0; i < kTileVectors; i++) {
        const int k = own + i * kWarp;
        if (k >= vectors) break;
        const int64_t at = int64_t(row) * a.columns + k * kVec;
        copyAsync16(sharedAddress(slotOf(slot, i)), a.x + at);
        copyAsync16(sharedAddress(slotOf(slot, kTileVectors + i)), a.g + at);
      }
    }
    commitCopies();
  };
  const int begin = rowBlock * kWarps + warp;
  waitForKernelBefore();
#pragma unroll
  for (int n = 0; n < kAhead; n++) copy(begin + n * stride, n);
  for (int n = warp; n < kNumbers / kPart; n += kWarps) {
    const int k = (own + n / (kVec / kPart) * kWarp) * kVec + n % (kVec / kPart) * kPart;
    factors[n][lane] = a.c && k < a.columns ? loadVec<float, kPart>(a.c, k / kPart)
                                            : Vec<float, kPart>{1, 1, 1, 1};
  }
  __syncthreads();
  float sums[kTileVectors][kVec] = {};
  RowGrid ahead;
  if (begin < rows) ahead.load(a, begin);
  int slot = 0;
  for (int row = begin; row < rows; row += stride) {
    const GradGrid<float> grid(ahead.scale, ahead.zero, a.rule.top);
    const float r = ahead.r;
    ahead.load(a, row + stride < rows ? row + stride : row);
    GroupSums<float> found(a.rule.published ? a.scaled(row, 0, r) : 0.0f);
    float rowGrad = 0;
    waitCopies<kAhead - 1>();
#pragma unroll
    for (int i = 0; i < kTileVectors; i++) {
      const int k = own + i * kWarp;
      if (k >= vectors) break;
      const auto x = readVec<S, kVec>(slotOf(slot, i));
      auto g = readVec<G, kVec>(slotOf(slot, kTileVectors + i));
#pragma unroll
      for (int part = 0; part < kVec; part += kPart) {
        const Vec<float, kPart> c = factors[(i * kVec + part) / kPart][lane];
        Vec<S, kPart> partX;
        Vec<G, kPart> partG;
        memcpy(&partX, &x.lane[part], sizeof partX);
        memcpy(&partG, &g.lane[part], sizeof partG);
        const Vec<float, kPart> value = widenPairs(partX), given = widenPairs(partG);
        float y[kPart], error[kPart];
        bool inside[kPart];
#pragma unroll
        for (int e = 0; e < kPart; e++) {
          y[e] = mulRn(mulRn(r, value.lane[e]), c.lane[e]);
          found.low = fminf(found.low, y[e]);
          found.high = fmaxf(found.high, y[e]);
        }
        grid.template place<false>(y, y, error, inside);
#pragma unroll
        for (int e = 0; e < kPart; e++) {
          const float passing = inside[e] ? given.lane[e] : 0.0f;
          found.steps = __fmaf_rn(given.lane[e], error[e], found.steps);
          if (!inside[e]) found.outside += given.lane[e];
          const float product = passing * value.lane[e];
          rowGrad = __fmaf_rn(product, c.lane[e], rowGrad);
          sums[i][part + e] = __fmaf_rn(product, r, sums[i][part + e]);
          if (a.gx) g.lane[part + e] = static_cast<G>(passing * r * c.lane[e]);
        }
      }
      if (a.gx) storeVec(a.gx + int64_t(row) * a.columns, k, g);
    }
    copy(row + kAhead * stride, slot);
    slot = slot + 1 < kAhead ? slot + 1 : 0;
    storePart(a.parts[int64_t(row) * a.tiles + tile], found, rowGrad);
  }
  if (!a.partials) return;
  waitCopies<0>();
  __syncthreads();
  float* const all = reinterpret_cast<float*>(memory);  // [kWarps][kNumbers][kWarp]
#pragma unroll
  for (int i = 0; i < kTileVectors; i++) {
#pragma unroll
    for (int e = 0; e < kVec; e++)
      all[(warp * kNumbers + i * kVec + e) * kWarp + lane] = sums[i][e];
  }
  __syncthreads();
  float* const mine = a.partials + int64_t(rowBlock) * a.columns;
  for (int n = int(threadIdx.x); n < kTileColumns<S>; n += kThreads) {
    const int k = tile * kTileColumns<S> + n;
    if (k >= a.columns) break;
    const int vector = n / kVec, number = vector / kWarp * kVec + n % kVec;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) sum += all[(w * kNumbers + number) * kWarp + vector % kWarp];
    mine[k] = sum;
  }
}

template <class S>
__global__ __launch_bounds__(kRowWarps* kWarp) void finishRows(
    const __grid_constant__ RowGrad<S> a) {
  letNextKernelStart();
  waitForKernelBefore();
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + int(threadIdx.x) / kWarp;
  if (row < a.rows) RowFinish<S>(a, row).finish();
}

// ---------------------------------------------------------------- columns

constexpr int kColumnWarps = 32;  // that share 32 columns
constexpr int kNotesAhead = 4;

// Adds the blocks' sums of a column up, and what extreme elements add.
template <class S>
__global__ __launch_bounds__(kColumnWarps* kWarp) void addColumns(
    const __grid_constant__ RowGrad<S> a, float* gc) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int first = int(blockIdx.x) * kWarp, column = first + lane;
  const bool isInside = column < a.columns;
  waitForKernelBefore();
  float sum = 0;
  if (isInside) {
#pragma unroll 4
    for (int p = warp; p < a.rowBlocks; p += kColumnWarps)
      sum += a.partials[p * int64_t(a.columns) + column];
  }
  for (int64_t base = warp * kWarp; base < a.rows; base += kNotesAhead * kColumnWarps * kWarp) {
    RowExtremes notes[kNotesAhead];
#pragma unroll
    for (int n = 0; n < kNotesAhead; n++) {
      const int64_t row = base + n * (kColumnWarps * kWarp) + lane;
      notes[n] = row < a.rows ? a.extremes[row] : RowExtremes{kNoColumn, kNoColumn, 0, 0};
    }
#pragma unroll
    for (int n = 0; n < kNotesAhead; n++) {
#pragma unroll
      for (int high = 0; high < 2; high++) {
        const int own = high ? notes[n].highColumn : notes[n].lowColumn;
        const float value = high ? notes[n].highValue : notes[n].lowValue;
        for (uint32_t hits = __ballot_sync(~0u, own >= first && own < first + kWarp); hits != 0;
             hits &= hits - 1) {
          const int from = __ffs(int(hits)) - 1;
          const float added = __shfl_sync(~0u, value, from);
          if (__shfl_sync(~0u, own, from) == column) sum += added;
        }
        for (uint32_t many = __ballot_sync(~0u, own == kManyColumns); many != 0; many &= many - 1) {
          const int64_t row = base + n * (kColumnWarps * kWarp) + __ffs(int(many)) - 1;
          const float4 share = a.shares[row];
          if (!isInside) continue;
          const float r = a.r ? a.r[row] : 1.0f;
          if (a.scaled(row, column, r) != (high ? share.y : share.x)) continue;
          sum += (high ? share.w : share.z) * static_cast<float>(a.x[row * a.columns + column]) * r;
        }
      }
    }
  }
  __shared__ float sums[kColumnWarps][kWarp];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || !isInside) return;
#pragma unroll
  for (int w = 1; w < kColumnWarps; w++) sum += sums[w][lane];
  gc[column] = sum;
}

// ---------------------------------------------------------------- launch

template <class S>
int32_t launch(aq_queue* queue, RowGrad<S>& a, float* gc, aq_error* err) {
  a.tiles = (a.columns + kTileColumns<S> - 1) / kTileColumns<S>;
  const int64_t most = (a.rows + kWarps - 1) / kWarps;
  const int64_t resident = int64_t(kBlocksPerMulti) * queue->multiprocessors / a.tiles;
  a.rowBlocks = int(std::clamp<int64_t>(resident, 1, most));
  const uint64_t parts = scratchBytes(uint64_t(a.rows * a.tiles) * sizeof(RowPart));
  const uint64_t sums =
      gc ? scratchBytes(uint64_t(a.rowBlocks) * uint64_t(a.columns) * sizeof(float)) : 0;
  const uint64_t notes = gc ? scratchBytes(uint64_t(a.rows) * sizeof(RowExtremes)) : 0;
  const uint64_t shares = gc ? uint64_t(a.rows) * sizeof(float4) : 0;
  Scratch scratch(queue);
  if (scratch.allocate(parts + sums + notes + shares, "fake_quant_grad", err) != AQ_OK)
    return err->code;
  a.parts = scratch.at<RowPart>();
  if (gc) {
    a.partials = scratch.at<float>(parts);
    a.extremes = scratch.at<RowExtremes>(parts + sums);
    a.shares = scratch.at<float4>(parts + sums + notes);
  }
  constexpr int kBytes = TileMemory<S>::kBytes;
  CUDA_CHECK(
      cudaFuncSetAttribute(gradTiles<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const EarlyLaunch tiles(queue, dim3(unsigned(a.rowBlocks * a.tiles)), kThreads, kBytes);
  CUDA_CHECK(cudaLaunchKernelEx(&tiles.config, gradTiles<S>, a));
  const int64_t rowBlocks = (a.rows + kRowWarps - 1) / kRowWarps;
  const EarlyLaunch finish(queue, dim3(unsigned(rowBlocks)), kRowWarps * kWarp);
  CUDA_CHECK(cudaLaunchKernelEx(&finish.config, finishRows<S>, a));
  if (!gc) return AQ_OK;
  const int64_t columnBlocks = (a.columns + kWarp - 1) / kWarp;
  const EarlyLaunch columns(queue, dim3(unsigned(columnBlocks)), kColumnWarps * kWarp);
  CUDA_CHECK(cudaLaunchKernelEx(&columns.config, addColumns<S>, a, gc));
  return AQ_OK;
}

template <class S>
int32_t run(aq_queue* queue, const aq_view* in, const aq_view* out,
            const aq_fake_quant_grad_params& o, aq_error* err) {
  using G = GradientOf<S>;
  const auto input = [&](int i) { return static_cast<const float*>(in[i].data); };
  RowGrad<S> a = {};
  a.columns = int(in[0].dim[in[0].rank - 1]);
  a.rows = numel(in[0]) / a.columns;
  a.x = static_cast<const S*>(in[0].data);
  a.scale = input(1);
  a.zero = input(2);
  a.g = static_cast<const G*>(in[3].data);
  a.clip = {input(4), a.rows, false};
  a.r = input(6);
  a.c = input(7);
  a.rule = GridRule<float>::of(o, false);
  a.gx = o.need_gx ? static_cast<G*>(out[0].data) : nullptr;
  a.clipGrad = a.clip.logits ? static_cast<float*>(out[1].data) : nullptr;
  a.gr = a.r ? static_cast<float*>(out[3].data) : nullptr;
  float* const gc = a.c ? static_cast<float*>(out[4].data) : nullptr;
  return launch<S>(queue, a, gc, err);
}

}  // namespace

bool isRowFakeQuantGrad(const aq_view* in, const aq_view* out,
                        const aq_fake_quant_grad_params& params) {
  const int64_t columns = in[0].rank ? in[0].dim[in[0].rank - 1] : 1;
  const int64_t vec = in[0].dtype == AQ_F32 ? kVecWidth<float> : kVecWidth<__half>;
  if (in[0].dtype == AQ_F64 || columns % vec != 0 || columns > kMostTiles * kTileColumns<float> ||
      numel(in[0]) / columns > (INT32_MAX >> 1))
    return false;
  const bool isWhole = params.group == 0 || params.group >= columns;
  if (!isWhole || in[5].data || numel(in[0]) == 0) return false;
  if (in[4].data && numel(in[4]) == 1) return false;
  for (const void* data : {in[0].data, in[3].data, in[7].data}) {
    if (!isAligned16(data)) return false;
  }
  return !params.need_gx || isAligned16(out[0].data);
}

int32_t rowFakeQuantGrad(aq_queue* queue, const aq_view* in, const aq_view* out,
                         const aq_fake_quant_grad_params& params, aq_error* err) {
  switch (in[0].dtype) {
    case AQ_F32:
      return run<float>(queue, in, out, params, err);
    case AQ_F16:
      return run<__half>(queue, in, out, params, err);
    default:
      return run<__nv_bfloat16>(queue, in, out, params, err);
  }
}

}  // namespace aq::cuda
