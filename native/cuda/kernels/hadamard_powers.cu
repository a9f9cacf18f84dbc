// hadamardPowers: runs of 2^k f32 numbers, k = 2 .. 14, times Sylvester's matrix.
//
// Math      y = (x o signs) H / sqrt(2^k); the inverse has the signs on y.
// Layout    a warp takes 1024 neighbouring numbers, 8 vectors of 4 a lane: the butterflies of bits
//           0-1 are inside a vector, 2-6 between lanes (shuffles), 7-9 between a lane's vectors. A
//           short run stops early, and a warp then has several. A longer run has up to 16 warps,
//           which trade their numbers once through shared memory for the bits from 10 on.
// Cost      reads and writes every number once; k additions and 5 shuffles a number.
// Roofline  2048 x 4096: 67 MB -> 20 us at 3.35 TB/s (H100 SXM data sheet).
// Versions  v1 blocks of 8 warps: 30 us, 75 % of what a copy reaches on an H100 80GB HBM3; v2
//           blocks of 4 warps where a run allows (this): 22 to 23 us of kernel time under ncu.
// Numerics  the signs and the scale are one exact factor where k is even.
#include "native/cuda/check.h"
#include "native/cuda/device/reduce.cuh"
#include "native/cuda/device/vec.cuh"
#include "native/cuda/kernels/hadamard.h"

namespace aq::cuda {

namespace {

using Vec4 = Vec<float, 4>;

constexpr int kVectors = 8;                     // of a lane
constexpr int kWarpVectors = kWarp * kVectors;  // of a warp
constexpr int kWarpNumbers = 4 * kWarpVectors;  // 2^10
constexpr int kWarpPower = 10;
constexpr int kMostPower = 14;

template <int N>
__device__ inline Vec<float, N> timesSigns(Vec<float, N> x, const float* signs, int64_t index,
                                           float scale) {
  const Vec<float, N> s = loadVec<float, N>(signs, index);
#pragma unroll
  for (int e = 0; e < N; e++) x.lane[e] *= scale * s.lane[e];
  return x;
}

// The bits of a warp's numbers; of a run that is shorter, only its own.
__device__ inline void transformWarp(Vec4 (&x)[kVectors], int power, int lane) {
#pragma unroll
  for (int v = 0; v < kVectors; v++) hadamardButterflies<2>(x[v].lane);
#pragma unroll
  for (int bit = 0; bit < 5; bit++) {
    if (2 + bit >= power) break;
    const float sign = lane >> bit & 1 ? -1.0f : 1.0f;
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float other = __shfl_xor_sync(~0u, x[v].lane[e], 1 << bit);
        x[v].lane[e] = fmaf(sign, x[v].lane[e], other);
      }
    }
  }
#pragma unroll
  for (int bit = 0; bit < 3; bit++) {
    if (7 + bit >= power) break;
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      if (v >> bit & 1) continue;
      const Vec4 a = x[v], b = x[v | 1 << bit];
      x[v] = a + b;
      x[v | 1 << bit] = a - b;
    }
  }
}

// kWarpBits: log2 of the warps that share a run. Small blocks, about 32 warps of them on a
// multiprocessor: some load while others compute.
template <int kWarpBits>
inline constexpr int kPowerThreads = kWarpBits > 2 ? kWarp << kWarpBits : 128;
template <int kWarpBits>
inline constexpr int kBlocksAtOnce = (kWarpBits > 0 ? 1024 : 896) / kPowerThreads<kWarpBits>;

template <int kWarpBits>
__global__ __launch_bounds__(kPowerThreads<kWarpBits>,
                             kBlocksAtOnce<kWarpBits>) void transformPowers(HadamardRuns<float> h) {
  constexpr int kThreads = kPowerThreads<kWarpBits>;
  constexpr int kBlockVectors = kThreads * kVectors;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t perRun = h.features / 4, total = h.runs * perRun;  // vectors
  const int64_t blockFirst = int64_t(blockIdx.x) * kBlockVectors;
  const int64_t first = blockFirst + warp * kWarpVectors + lane;

  Vec4 x[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    const int64_t k = first + v * kWarp;
    x[v] = k < total ? loadVec<float, 4>(h.x, k) : Vec4{};
  }
  if (!h.inverse) {
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      x[v] = timesSigns(x[v], h.signs, (first + v * kWarp) & (perRun - 1), h.scale);
    }
  }
  transformWarp(x, kWarpBits > 0 ? kWarpPower : h.power, lane);

  if constexpr (kWarpBits == 0) {
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      const int64_t k = first + v * kWarp;
      if (k >= total) continue;
      if (h.inverse) x[v] = timesSigns(x[v], h.signs, k & (perRun - 1), h.scale);
      storeVec(h.y, k, x[v]);
    }
  } else {
    extern __shared__ __align__(16) float exchange[];
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      storeVec(exchange, warp * kWarpVectors + v * kWarp + lane, x[v]);
    }
    __syncthreads();
    // Now a thread has one place of every warp's numbers, kWidth at once, of kItems runs or places.
    constexpr int kParts = 1 << kWarpBits;
    constexpr int kWidth = kWarpBits > 3 ? 2 : 4;
    constexpr int kItems = 4 * kVectors / kWidth / kParts;
    constexpr int kPlaces = kWarpNumbers / kWidth;
    const int64_t last = h.runs * (h.features / kWidth);
#pragma unroll
    for (int item = 0; item < kItems; item++) {
      const int index = item * kThreads + int(threadIdx.x);
      const int runFirst = index / kPlaces * (kParts * kPlaces), place = index % kPlaces;
      Vec<float, kWidth> u[kParts];
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        u[part] = loadVec<float, kWidth>(exchange, runFirst + part * kPlaces + place);
      }
      hadamardButterflies<kWarpBits>(u);
      const int64_t at = blockFirst * (4 / kWidth) + runFirst + place;
      if (at >= last) continue;
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        if (h.inverse) u[part] = timesSigns(u[part], h.signs, part * kPlaces + place, h.scale);
        storeVec(h.y, at + part * kPlaces, u[part]);
      }
    }
  }
}

template <int kWarpBits>
int32_t launch(aq_queue* queue, const HadamardRuns<float>& h, aq_error* err) {
  constexpr int64_t kBlockNumbers = int64_t(kPowerThreads<kWarpBits>) * kVectors * 4;
  constexpr int kBytes = kWarpBits > 0 ? int(kBlockNumbers * sizeof(float)) : 0;
  CUDA_CHECK(cudaFuncSetAttribute(transformPowers<kWarpBits>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int64_t blocks = (h.runs * h.features + kBlockNumbers - 1) / kBlockNumbers;
  transformPowers<kWarpBits>
      <<<unsigned(blocks), kPowerThreads<kWarpBits>, kBytes, queue->stream>>>(h);
  LAUNCH_CHECK("hadamard (powers of two)");
  return AQ_OK;
}

}  // namespace

int32_t hadamardPowers(aq_queue* queue, const HadamardRuns<float>& h, bool* taken, aq_error* err) {
  if (h.odd != 1 || h.power < 2 || h.power > kMostPower) return AQ_OK;
  if (!isAligned16(h.x) || !isAligned16(h.y) || !isAligned16(h.signs)) return AQ_OK;
  *taken = true;
  switch (h.power) {
    case 11:
      return launch<1>(queue, h, err);
    case 12:
      return launch<2>(queue, h, err);
    case 13:
      return launch<3>(queue, h, err);
    case 14:
      return launch<4>(queue, h, err);
    default:
      return launch<0>(queue, h, err);
  }
}

}  // namespace aq::cuda
