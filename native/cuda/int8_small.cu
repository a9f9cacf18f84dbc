// int8_small: the product of few rows of x with packed weights of at most 8 bits, and of codes of any
// number of rows.
//
// Math      y = sum over groups of s sum (c - z) x, or of s sum (c - zc)(q - zq) for codes q of x.
// Layout    a block has 16 or 32 outputs and 8 to 32 rows of x; its warps take the tiles of the columns in
//           turn. A thread holds 8 neighbouring columns of two outputs and of a row of x: so cut, weights
//           and x meet in the matrix instructions without a permutation, and 32 columns are a step.
// Cost      O I bytes a pass: bandwidth-bound. Codes of many rows pass over the weights, in L2, again and
//           again.
// Roofline  8192 x 8192: 20 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 (this).
// Numerics  c - z is exact in bf16 and f16; sums of a tile (of groups of 32: a step) are scaled and added in
//           f32. Codes: whole numbers throughout, of a tile below 2^24, and of a matrix with one scale for
//           each row up to the end. Warps are added in their order.
#include "native/cuda/check.h"
#include "native/cuda/device/int8.cuh"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/int8.h"

namespace aq::cuda::int8 {

namespace {

constexpr int64_t kMostWhole = 32768;  // columns whose sums of codes fit 32 bits

// What shares a scale: two parts of a tile, tiles, or a row.
enum class Groups { kShort, kLong, kOne };

// kTiles tile rows, kParts times 8 rows of x, as numbers of E.
template <class E, int kTiles, int kParts, bool kShort>
__global__ __launch_bounds__(kThreads) void multiplyNumbers(Task task) {
  const Weights& w = task.w;
  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
  const int tileRow = int(blockIdx.x) * kTiles;
  const E* x[kParts];
#pragma unroll
  for (int n = 0; n < kParts; n++) {
    const int64_t m = (int64_t(blockIdx.y) * kParts + n) * 8 + g;
    x[n] =
        static_cast<const E*>(task.x.data) + min(m, task.x.rows - 1) * task.x.ld + t * kOwnColumns;
  }
  float sum[kTiles][kParts][4] = {};
  TileCodes<kTiles> codes;
  if (warp < w.tiles) codes.load(w, tileRow, warp, g, t);
  for (int tile = warp; tile < w.tiles; tile += kWarps) {
    const TileCodes<kTiles> own = codes;
    if (tile + kWarps < w.tiles) codes.load(w, tileRow, tile + kWarps, g, t);
    uint4 values[2][kParts];
#pragma unroll
    for (int step = 0; step < 2; step++) {
#pragma unroll
      for (int n = 0; n < kParts; n++)
        values[step][n] =
            *reinterpret_cast<const uint4*>(x[n] + tile * kTileColumns + step * kStepColumns);
    }
#pragma unroll
    for (int i = 0; i < kTiles; i++) {
      float part[kParts][4] = {};
      RowGrids grids;
#pragma unroll
      for (int step = 0; step < 2; step++) {
        if (step == 0 || kShort)
          grids.load(w, tileRow + i, tile * kTileColumns + step * kStepColumns, g);
#pragma unroll
        for (int word = 0; word < 2; word++) {
          const uint2 first = own.row[i][step][0], second = own.row[i][step][1];
          const uint32_t low = word ? first.y : first.x, high = word ? second.y : second.x;
          const uint32_t a[4] = {
              twoNumbers<E>(low, 0, grids.zero[0]), twoNumbers<E>(high, 0, grids.zero[1]),
              twoNumbers<E>(low, 1, grids.zero[0]), twoNumbers<E>(high, 1, grids.zero[1])};
#pragma unroll
          for (int n = 0; n < kParts; n++) {
            const uint4 v = values[step][n];
            const uint32_t b[2] = {word ? v.z : v.x, word ? v.w : v.y};
            mma(part[n], a, b, E{});
          }
        }
        if (step == 0 && !kShort) continue;
#pragma unroll
        for (int n = 0; n < kParts; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            sum[i][n][e] += grids.scale[e / 2] * part[n][e];
            part[n][e] = 0.0f;
          }
        }
      }
    }
  }
  constexpr int kRows = kTiles * kTileRows, kColumns = 8 * kParts;
  __shared__ float all[kWarps][kRows][kColumns];
#pragma unroll
  for (int i = 0; i < kTiles; i++) {
#pragma unroll
    for (int n = 0; n < kParts; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++)
        all[warp][i * kTileRows + g + e / 2 * 8][n * 8 + 2 * t + e % 2] = sum[i][n][e];
    }
  }
  finishSums<kRows, kColumns>(task, [&](int r, int c, int64_t, int64_t) {
    float y = 0.0f;
    for (int i = 0; i < kWarps; i++) y += all[i][r][c];
    return y;
  });
}

// The same of codes. With codes c' = c - 128 and q' = q - 128 (0 beyond the columns), the sum over n
// columns is  sum q' c' - (z - 128) sum q' - (zq - 128) (sum c' - n (z - 128)).
template <int kTiles, int kParts, Groups kGroups>
__global__ __launch_bounds__(kThreads) void multiplyCodes(Task task) {
  constexpr bool kOne = kGroups == Groups::kOne, kShort = kGroups == Groups::kShort;
  using Sum = std::conditional_t<kOne, int32_t, float>;
  const Weights& w = task.w;
  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
  const int tileRow = int(blockIdx.x) * kTiles;
  const int64_t firstX = int64_t(blockIdx.y) * kParts * 8;
  const int8_t* x[kParts];
  float zero[kParts][2];  // zq - 128 of the rows of x that this thread's sums belong to
#pragma unroll
  for (int n = 0; n < kParts; n++) {
    const int64_t last = task.x.rows - 1;
    x[n] = static_cast<const int8_t*>(task.x.data) + min(firstX + n * 8 + g, last) * task.x.ld +
           t * kOwnColumns;
#pragma unroll
    for (int e = 0; e < 2; e++)
      zero[n][e] = task.x.zero[min(firstX + n * 8 + 2 * t + e, last)] - 128.0f;
  }
  Sum sum[kTiles][kParts][4] = {};
  int32_t weightSum[kTiles][2] = {};  // kOne: of c - z
  const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
  TileCodes<kTiles> codes;
  if (warp < w.tiles) codes.load(w, tileRow, warp, g, t);
  for (int tile = warp; tile < w.tiles; tile += kWarps) {
    const TileCodes<kTiles> own = codes;
    if (tile + kWarps < w.tiles) codes.load(w, tileRow, tile + kWarps, g, t);
    uint32_t values[2][kParts][2], live[2][2];
#pragma unroll
    for (int step = 0; step < 2; step++) {
      const int column = tile * kTileColumns + step * kStepColumns;
#pragma unroll
      for (int n = 0; n < kParts; n++) {
        const uint2 v = *reinterpret_cast<const uint2*>(x[n] + column);
        values[step][n][0] = v.x;
        values[step][n][1] = v.y;
      }
      live[step][0] = onesAt(column + t * kOwnColumns, w.inputs);
      live[step][1] = onesAt(column + t * kOwnColumns + 4, w.inputs);
    }
    int32_t tokens[kParts][4] = {};  // sums of q'
#pragma unroll
    for (int i = 0; i < kTiles; i++) {
      int32_t part[kParts][4] = {}, plain[4] = {};
      RowGrids grids;
#pragma unroll
      for (int step = 0; step < 2; step++) {
        const int column = tile * kTileColumns + step * kStepColumns;
        if (step == 0 || kShort) grids.load(w, tileRow + i, column, g);
        const uint2 first = own.row[i][step][0], second = own.row[i][step][1];
        constexpr uint32_t kFlip = 0x80808080u;
        const uint32_t a[4] = {first.x ^ kFlip, second.x ^ kFlip, first.y ^ kFlip,
                               second.y ^ kFlip};
        mma(plain, a, live[step], int8_t{});
#pragma unroll
        for (int n = 0; n < kParts; n++) {
          mma(part[n], a, values[step][n], int8_t{});
          if (i == 0 || kShort) {
            if (kShort || step == 0)
              for (int e = 0; e < 4; e++) tokens[n][e] = 0;
            mma(tokens[n], ones, values[step][n], int8_t{});
          }
        }
        if (step == 0 && !kShort) continue;
        const int start = kShort ? column : tile * kTileColumns;
        const int count = min(kShort ? kStepColumns : kTileColumns, max(w.inputs - start, 0));
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int32_t z = int32_t(grids.zero[half]) - 128;
          const int32_t weights = plain[2 * half] - count * z;
          if constexpr (kOne) weightSum[i][half] += weights;
#pragma unroll
          for (int n = 0; n < kParts; n++) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
              const int32_t whole = part[n][e] - z * tokens[n][e];
              if constexpr (kOne)
                sum[i][n][e] += whole;
              else
                sum[i][n][e] +=
                    grids.scale[half] * (float(whole) - zero[n][e % 2] * float(weights));
              part[n][e] = 0;
            }
          }
          plain[2 * half] = plain[2 * half + 1] = 0;
        }
      }
    }
  }
  constexpr int kRows = kTiles * kTileRows, kColumns = 8 * kParts;
  __shared__ Sum all[kWarps][kRows][kColumns];
  __shared__ int32_t allWeights[kWarps][kRows];
#pragma unroll
  for (int i = 0; i < kTiles; i++) {
#pragma unroll
    for (int n = 0; n < kParts; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++)
        all[warp][i * kTileRows + g + e / 2 * 8][n * 8 + 2 * t + e % 2] = sum[i][n][e];
    }
    if (kOne && t == 0) {
      allWeights[warp][i * kTileRows + g] = weightSum[i][0];
      allWeights[warp][i * kTileRows + g + 8] = weightSum[i][1];
    }
  }
  finishSums<kRows, kColumns>(task, [&](int r, int c, int64_t row, int64_t m) {
    Sum y = 0;
    for (int i = 0; i < kWarps; i++) y += all[i][r][c];
    if constexpr (kOne) {
      int32_t weights = 0;
      for (int i = 0; i < kWarps; i++) weights += allWeights[i][r];
      const double whole = double(y) - (double(task.x.zero[m]) - 128.0) * double(weights);
      const double scale = double(__half2float(
          __ushort_as_half(w.scale[row / kTileRows * w.groups * kTileRows + row % kTileRows])));
      return float(whole * scale) * task.x.scale[m];
    } else {
      return y * task.x.scale[m];
    }
  });
}

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int kTiles, int kParts>
int32_t launch(aq_queue* queue, Math math, const Task& task, aq_error* err) {
  const dim3 grid(unsigned(ceilDiv(task.w.tileRows, kTiles)),
                  unsigned(ceilDiv(task.x.rows, 8 * kParts)));
  const bool isShort = task.w.group == kStepColumns;
  const auto run = [&](auto kernel) { kernel<<<grid, kThreads, 0, queue->stream>>>(task); };
  using Bf = __nv_bfloat16;
  if (math == Math::kInteger) {
    if (task.w.groups == 1 && task.w.inputs <= kMostWhole)
      run(multiplyCodes<kTiles, kParts, Groups::kOne>);
    else if (isShort)
      run(multiplyCodes<kTiles, kParts, Groups::kShort>);
    else
      run(multiplyCodes<kTiles, kParts, Groups::kLong>);
  } else if constexpr (kParts <= 2) {
    if (math == Math::kBf16 && isShort) run(multiplyNumbers<Bf, kTiles, kParts, true>);
    if (math == Math::kBf16 && !isShort) run(multiplyNumbers<Bf, kTiles, kParts, false>);
    if (math == Math::kF16 && isShort) run(multiplyNumbers<__half, kTiles, kParts, true>);
    if (math == Math::kF16 && !isShort) run(multiplyNumbers<__half, kTiles, kParts, false>);
  }
  LAUNCH_CHECK("int8_matmul (few rows)");
  return AQ_OK;
}

}  // namespace

int32_t multiplySmall(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err) {
  const Task task = {w, x, y};
  if (x.rows <= 8) return launch<1, 1>(queue, math, task, err);
  if (x.rows <= 16 || math != Math::kInteger) return launch<2, 2>(queue, math, task, err);
  return launch<2, 4>(queue, math, task, err);
}

}  // namespace aq::cuda::int8
