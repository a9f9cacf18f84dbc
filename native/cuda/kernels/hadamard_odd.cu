// hadamardOdd: runs of 2^k m f32 numbers, m odd and at most 63, times H (x) Q.
//
// Math      y = (x o signs) (H (x) Q) / sqrt(2^k), H Sylvester's of 2^k; the inverse is the
//           transpose, with the signs on y.
// Layout    a run is a matrix [2^k, m] in shared memory; short runs share a block. First its rows
//           times Q / sqrt(2^k): a warp takes 32 rows in place, on tensor cores, and at once does
//           the butterflies of the 5 lowest bits of the row, where they lie in registers (2 bits)
//           and between lanes (3). The remaining bits follow in passes over shared memory, up to 16
//           rows each; the last pass writes y. Neighbouring threads have neighbouring columns.
// Cost      reads and writes every number once; k flop a number, and on tensor cores 6 m with m
//           rounded up to 8.
// Roofline  2048 x 11008 (m = 43): 180 MB -> 54 us at 3.35 TB/s; 6.5 Gflop -> 13 us at 495 Tflop/s
//           of tf32 (H100 SXM data sheet).
// Versions  on an H100 80GB HBM3, 2048 x 11008: v1 f32 without tensor cores, 171 us, 36 % of what a
//           copy reaches; v2 tensor cores, 98 us under ncu; v3 a run's loads all under way at once,
//           the signs of the last pass read before its stores (this).
// Numerics  a factor is the sum of two tf32 numbers, 21 bits, and of their four products the three
//           largest are added in f32: errors as of f32 sums. The butterflies add in f32.
#include <algorithm>

#include "native/cuda/check.h"
#include "native/cuda/device/mma.cuh"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/split_tf32.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels/hadamard.h"

namespace aq::cuda {

namespace {

using Vec4 = Vec<float, 4>;

constexpr int kMostOdd = 63;
constexpr int kTilePower = 5;
constexpr int kTileRows = 1 << kTilePower;  // of a warp
// Threads of a block: the many where a run leaves no room for a second block on a multiprocessor.
constexpr int kFewThreads = 256, kManyThreads = 512;
constexpr int64_t kSharedForTwo = 112 << 10;

struct OddRuns {
  HadamardRuns<float> h;
  int perBlock;  // runs of a block
  bool isWide;   // runs may be read and written in 16-byte vectors
};

// Q, scaled, as the lanes of a warp hold its 8 x 8 tiles: entries (t, g) and (t + 4, g), high and
// low, of lane 4 g + t.
using Fragment = Vec<uint32_t, 4>;

template <int kTiles, int kThreads>
__device__ inline void loadMatrix(const OddRuns& o, Fragment* q) {
  const int m = int(o.h.odd);
  const auto entry = [&](int i, int j) {
    if (i >= m || j >= m) return 0.0f;
    return __ldg(o.h.q + (o.h.inverse ? j * m + i : i * m + j)) * o.h.scale;
  };
  for (int k = threadIdx.x; k < kTiles * kTiles * kWarp; k += kThreads) {
    const int lane = k % kWarp, tile = k / kWarp;
    const int i = tile / kTiles * 8 + lane % 4, j = tile % kTiles * 8 + lane / 4;
    const SplitTf32 first = splitTf32(entry(i, j)), second = splitTf32(entry(i + 4, j));
    q[k] = {first.high, second.high, first.low, second.low};
  }
}

__device__ inline Vec4 timesSigns(Vec4 x, const float* signs, int vector) {
  const float4 sign = __ldg(reinterpret_cast<const float4*>(signs) + vector);
  return {{x.lane[0] * sign.x, x.lane[1] * sign.y, x.lane[2] * sign.z, x.lane[3] * sign.w}};
}

// Starts to bring whole runs into shared memory, all of them at once.
template <int kThreads>
__device__ inline void startLoad(const OddRuns& o, const float* x, int count, float* s) {
  if (o.isWide) {
    for (int k = threadIdx.x; k < count / 4; k += kThreads) {
      copyAsync16(sharedAddress(s + 4 * k), x + 4 * k);
    }
  } else {
    for (int k = threadIdx.x; k < count; k += kThreads) s[k] = x[k];
  }
  commitCopies();
}

// Waits for what this thread has started, and multiplies it by the signs. The block has to wait.
template <int kThreads>
__device__ inline void finishLoad(const OddRuns& o, int features, int count, float* s) {
  waitCopies<0>();
  if (o.h.inverse) return;
  if (o.isWide) {
#pragma unroll 4
    for (int k = threadIdx.x; k < count / 4; k += kThreads) {
      storeVec(s, k, timesSigns(loadVec<float, 4>(s, k), o.h.signs, k % (features / 4)));
    }
  } else {
    for (int k = threadIdx.x; k < count; k += kThreads) s[k] *= __ldg(o.h.signs + k % features);
  }
}

template <int kThreads>
__device__ inline void storeRuns(const OddRuns& o, int features, int count, const float* s,
                                 float* y) {
  if (o.isWide) {
    for (int k = threadIdx.x; k < count / 4; k += kThreads) {
      const Vec4 v = loadVec<float, 4>(s, k);
      storeVec(y, k, o.h.inverse ? timesSigns(v, o.h.signs, k % (features / 4)) : v);
    }
  } else {
    for (int k = threadIdx.x; k < count; k += kThreads) {
      y[k] = o.h.inverse ? s[k] * __ldg(o.h.signs + k % features) : s[k];
    }
  }
}

// 32 rows of s times q, in place, and the butterflies of their lowest bits.
template <int kTiles>
__device__ inline void multiplyTile(const OddRuns& o, const Fragment* q, float* s, int rows,
                                    int tile) {
  const int m = int(o.h.odd), power = o.h.power;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int row = tile * kTileRows + g;  // and 8, 16, 24 further
  float sum[2][kTiles][4] = {};
#pragma unroll 1
  for (int i = t; i < m + t; i += 8, q += kTiles * kWarp) {
    uint32_t high[2][4], low[2][4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const float* const x = s + min(row + 8 * r, rows - 1) * m + i;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const SplitTf32 value = splitTf32(i + 4 * half < m ? x[4 * half] : 0.0f);
        high[r / 2][r % 2 + 2 * half] = value.high;
        low[r / 2][r % 2 + 2 * half] = value.low;
      }
    }
#pragma unroll
    for (int c = 0; c < kTiles; c++) {
      const Fragment b = q[c * kWarp + lane];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        multiplyTf32(sum[r][c], low[r], b.lane[0], b.lane[1]);
        multiplyTf32(sum[r][c], high[r], b.lane[2], b.lane[3]);
        multiplyTf32(sum[r][c], high[r], b.lane[0], b.lane[1]);
      }
    }
  }

  // Bits 0-2 of the row are in the lane, bit 3 is the pair of a tile's sums, bit 4 the tile.
#pragma unroll
  for (int bit = 0; bit < 3; bit++) {
    if (bit >= power) break;
    const float sign = g >> bit & 1 ? -1.0f : 1.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int c = 0; c < kTiles; c++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float other = __shfl_xor_sync(~0u, sum[r][c][e], 4 << bit);
          sum[r][c][e] = fmaf(sign, sum[r][c][e], other);
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kTiles; c++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      float quad[4] = {sum[0][c][e], sum[0][c][e + 2], sum[1][c][e], sum[1][c][e + 2]};
      if (power > 4) {
        hadamardButterflies<2>(quad);
      } else if (power == 4) {
        float pair[2][2] = {{quad[0], quad[1]}, {quad[2], quad[3]}};
        hadamardButterflies<1>(pair[0]);
        hadamardButterflies<1>(pair[1]);
        quad[0] = pair[0][0], quad[1] = pair[0][1], quad[2] = pair[1][0], quad[3] = pair[1][1];
      }
      sum[0][c][e] = quad[0], sum[0][c][e + 2] = quad[1];
      sum[1][c][e] = quad[2], sum[1][c][e + 2] = quad[3];
    }
  }

  __syncwarp();  // all lanes have read their rows
#pragma unroll
  for (int r = 0; r < 4; r++) {
    if (row + 8 * r >= rows) continue;
    float* const to = s + (row + 8 * r) * m;
#pragma unroll
    for (int c = 0; c < kTiles; c++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int j = 8 * c + 2 * t + e;
        if (j < m) to[j] = sum[r / 2][c][r % 2 * 2 + e];
      }
    }
  }
}

// The butterflies of kBits bits of the row's number; span = 2^first m. The last pass writes y.
template <int kBits, int kThreads>
__device__ inline void passDown(const OddRuns& o, float* s, float* y, int count, int span) {
  const bool isLast = (int64_t(span) << kBits) == o.h.features;
  for (int g = threadIdx.x; g < count >> kBits; g += kThreads) {
    const int high = g / span, low = g - high * span;
    const int base = (high << kBits) * span + low;
    float x[1 << kBits];
#pragma unroll
    for (int e = 0; e < (1 << kBits); e++) x[e] = s[base + e * span];
    hadamardButterflies<kBits>(x);
    if (isLast && o.h.inverse) {
#pragma unroll
      for (int e = 0; e < (1 << kBits); e++) x[e] *= __ldg(o.h.signs + low + e * span);
    }
    float* const to = isLast ? y : s;
#pragma unroll
    for (int e = 0; e < (1 << kBits); e++) to[base + e * span] = x[e];
  }
}

template <int kTiles, int kThreads>
constexpr int kBlocksAtOnce = kThreads == kManyThreads ? 1 : (kTiles <= 6 ? 3 : 2);

template <int kTiles, int kThreads>
__global__ __launch_bounds__(kThreads,
                             (kBlocksAtOnce<kTiles, kThreads>)) void transformOdd(OddRuns o) {
  extern __shared__ __align__(16) float shared[];
  Fragment* const q = reinterpret_cast<Fragment*>(shared);
  float* const s = shared + kTiles * kTiles * kWarp * 4;
  const int64_t firstRun = int64_t(blockIdx.x) * o.perBlock;
  const int runs = int(min(int64_t(o.perBlock), o.h.runs - firstRun));
  const int features = int(o.h.features), count = runs * features, rows = runs << o.h.power;
  float* const y = o.h.y + firstRun * o.h.features;

  startLoad<kThreads>(o, o.h.x + firstRun * o.h.features, count, s);
  loadMatrix<kTiles, kThreads>(o, q);
  finishLoad<kThreads>(o, features, count, s);
  __syncthreads();
  constexpr int kWarps = kThreads / kWarp;
  for (int tile = int(threadIdx.x) / kWarp; tile * kTileRows < rows; tile += kWarps) {
    multiplyTile<kTiles>(o, q, s, rows, tile);
  }
  __syncthreads();

  if (o.h.power <= kTilePower) {
    storeRuns<kThreads>(o, features, count, s, y);
    return;
  }
  // Passes as even as they come: 6 bits are 3 + 3.
  int bit = kTilePower;
  for (int passes = (o.h.power - bit + 3) / 4; passes > 0; passes--) {
    const int bits = (o.h.power - bit + passes - 1) / passes;
    const int span = int(o.h.odd) << bit;
    switch (bits) {
      case 1:
        passDown<1, kThreads>(o, s, y, count, span);
        break;
      case 2:
        passDown<2, kThreads>(o, s, y, count, span);
        break;
      case 3:
        passDown<3, kThreads>(o, s, y, count, span);
        break;
      default:
        passDown<4, kThreads>(o, s, y, count, span);
    }
    bit += bits;
    __syncthreads();
  }
}

template <int kTiles, int kThreads>
int32_t launchBlocks(aq_queue* queue, const OddRuns& o, int64_t bytes, aq_error* err) {
  CUDA_CHECK(cudaFuncSetAttribute(transformOdd<kTiles, kThreads>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  const unsigned blocks = unsigned((o.h.runs + o.perBlock - 1) / o.perBlock);
  transformOdd<kTiles, kThreads><<<blocks, kThreads, size_t(bytes), queue->stream>>>(o);
  LAUNCH_CHECK("hadamard (odd factor)");
  return AQ_OK;
}

template <int kTiles>
int32_t launch(aq_queue* queue, const HadamardRuns<float>& h, bool* taken, aq_error* err) {
  OddRuns o = {};
  o.h = h;
  o.isWide = h.features % 4 == 0 && isAligned16(h.x) && isAligned16(h.y) && isAligned16(h.signs);
  // Short runs: rows for all of a block's warps, but blocks for all of the GPU first.
  constexpr int64_t kBlockRows = 256, kBlocks = 264;
  const int64_t share = (h.runs + kBlocks - 1) / kBlocks;
  o.perBlock = int(std::clamp<int64_t>(kBlockRows >> h.power, 1, share));
  const int64_t numbers = o.perBlock * h.features;
  const int64_t bytes = numbers * int64_t(sizeof(float)) + kTiles * kTiles * kWarp * 16;
  int most = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue->device));
  if (bytes > most) return AQ_OK;
  *taken = true;
  return bytes > kSharedForTwo ? launchBlocks<kTiles, kManyThreads>(queue, o, bytes, err)
                               : launchBlocks<kTiles, kFewThreads>(queue, o, bytes, err);
}

}  // namespace

int32_t hadamardOdd(aq_queue* queue, const HadamardRuns<float>& h, bool* taken, aq_error* err) {
  if (h.odd == 1 || h.odd > kMostOdd) return AQ_OK;
  switch ((h.odd + 7) / 8) {
    case 1:
      return launch<1>(queue, h, taken, err);
    case 2:
      return launch<2>(queue, h, taken, err);
    case 3:
      return launch<3>(queue, h, taken, err);
    case 4:
      return launch<4>(queue, h, taken, err);
    case 5:
      return launch<5>(queue, h, taken, err);
    case 6:
      return launch<6>(queue, h, taken, err);
    default:
      return launch<8>(queue, h, taken, err);
  }
}

}  // namespace aq::cuda
