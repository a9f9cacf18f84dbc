// attention_grad_hopper.cuh: the kernels of attention's gradient on Hopper's tensor cores, heads of
// 64 or 128 columns.
//
// As in attention_grad_mma.cuh: one kernel by keys on turned scores, one by queries. Two warpgroups
// multiply, 64 rows each; one warp of a third, which leaves them its registers, keeps tiles coming.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_grad_args.cuh"
#include "native/cuda/device/attention_pack.cuh"
#include "native/cuda/device/attention_wgmma.cuh"

namespace aq::cuda {

namespace {

// Both kernels keep two tiles of 128 rows and let pairs of tiles of 64 rows pass by.
template <int kD>
struct GradHopperTiles {
  static constexpr int kGroups = 2, kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kRows = 64 * kGroups, kSteps = 64, kStages = 3;
  static constexpr uint32_t kStayBytes = kRows * kD * 2, kPassBytes = kSteps * kD * 2;
  static constexpr uint32_t kSumBytes = kSteps * 4;  // of lse2 or delta
  // The tiles that stay, the stages of both tiles that pass, those of both sums, barriers.
  static constexpr uint32_t kLeftAt = 2 * kStayBytes, kRightAt = kLeftAt + kStages * kPassBytes;
  static constexpr uint32_t kSumsAt = kRightAt + kStages * kPassBytes;
  static constexpr uint32_t kBarriersAt = kSumsAt + 2 * kStages * kSumBytes;
  static constexpr uint32_t kShared = kBarriersAt + 128;
};

#if defined(AQ_HAS_HOPPER)

// The barriers of a block: what stays is there; a stage's left and right tiles are there, are free.
template <int kStages>
struct GradBarriers {
  uint32_t base;
  __device__ uint32_t stay() const { return base; }
  __device__ uint32_t left(int stage) const { return base + 8 * (1 + stage); }
  __device__ uint32_t right(int stage) const { return base + 8 * (1 + kStages + stage); }
  __device__ uint32_t free(int stage) const { return base + 8 * (1 + 2 * kStages + stage); }

  // By the whole block, before anything else.
  __device__ void prepare(int warps) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 1 + 2 * kStages; i++) barrierInit(base + 8 * i, 1);
      for (int i = 0; i < kStages; i++) barrierInit(free(i), warps);
      barrierInitFence();
    }
    __syncthreads();
  }
};

#endif

template <class E, int kD>
__global__ __launch_bounds__(GradHopperTiles<kD>::kThreads,
                             1) void gradKeysHopper(Backward<float, E> x) {
#if defined(AQ_HAS_HOPPER)
  using Tiles = GradHopperTiles<kD>;
  constexpr int kQueries = Tiles::kSteps, kStages = Tiles::kStages;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t kTile = sharedAddress(shared), vTile = kTile + Tiles::kStayBytes;
  const uint32_t qTiles = kTile + Tiles::kLeftAt, goTiles = kTile + Tiles::kRightAt;
  const uint32_t sums = kTile + Tiles::kSumsAt;  // of a stage: lse2, then delta
  const GradBarriers<kStages> barriers{kTile + Tiles::kBarriersAt};
  barriers.prepare(Tiles::kGroups * 4);

  const KeyPlace at(x.shape, x.parts, Tiles::kRows);
  const int rows = x.shape.padded;
  // Steps run over the block's query heads, and in each over its queries from the first key on.
  const int perHead = (x.shape.tokens - at.key0 + kQueries - 1) / kQueries;
  const int steps = perHead * at.heads;

  if (threadIdx.x >= Tiles::kGroups * kWarpgroup) {
    dropRegisters<kProducerRegisters>();
    if (threadIdx.x == Tiles::kGroups * kWarpgroup) {
      const int64_t kvHead = at.kvHead * rows * kD;
      barrierExpect(barriers.stay(), 2 * Tiles::kStayBytes);
      copyTileBulk<kD, Tiles::kRows>(kTile, x.k + kvHead, rows, at.key0, barriers.stay());
      copyTileBulk<kD, Tiles::kRows>(vTile, x.v + kvHead, rows, at.key0, barriers.stay());
      for (int step = 0; step < steps; step++) {
        const int stage = step % kStages, query0 = at.key0 + step % perHead * kQueries;
        const int64_t head = at.head + step / perHead;
        const uint32_t left = barriers.left(stage), right = barriers.right(stage);
        const uint32_t offset = stage * Tiles::kPassBytes,
                       sum = sums + 2 * stage * Tiles::kSumBytes;
        barrierWait(barriers.free(stage), (step / kStages & 1) ^ 1);  // not in the first round
        barrierExpect(left, Tiles::kPassBytes + 2 * Tiles::kSumBytes);
        copyTileBulk<kD, kQueries>(qTiles + offset, x.q + head * rows * kD, rows, query0, left);
        copyBytes(sum, x.lse2 + head * rows + query0, Tiles::kSumBytes, left);
        copyBytes(sum + Tiles::kSumBytes, x.delta + head * rows + query0, Tiles::kSumBytes, left);
        barrierExpect(right, Tiles::kPassBytes);
        copyTileBulk<kD, kQueries>(goTiles + offset, x.go + head * rows * kD, rows, query0, right);
      }
    }
  } else {
    raiseRegisters<kConsumerRegisters>();
    const int lane = int(threadIdx.x) & 31, group = int(threadIdx.x) / kWarpgroup;
    const int key0 = at.key0 + int(threadIdx.x) / 32 * 16;
    const uint32_t kRows = kTile + group * 64 * 128, vRows = vTile + group * 64 * 128;
    float gk[kD / 8][4] = {}, gv[kD / 8][4] = {};
    int held = -1;  // the stage that products under way still read
    barrierWait(barriers.stay(), 0);
    for (int step = 0; step < steps; step++) {
      const int stage = step % kStages, query0 = at.key0 + step % perHead * kQueries;
      const uint32_t parity = step / kStages & 1, offset = stage * Tiles::kPassBytes;
      const float* const lse2 =
          reinterpret_cast<const float*>(shared + Tiles::kSumsAt + 2 * stage * Tiles::kSumBytes) +
          2 * (lane & 3);
      const float* const delta = lse2 + kQueries;

      float p[kQueries / 8][4], ds[kQueries / 8][4];
      barrierWait(barriers.left(stage), parity);
      if (query0 + kQueries <= at.key0 + group * 64) {  // none sees a key of this group
        barrierWait(barriers.right(stage), parity);
        if (lane == 0) barrierArrive(barriers.free(stage));
        continue;
      }
      startRows<E, kD, Tiles::kRows, kQueries>(p, kRows, qTiles + offset);
      wgmmaWait<1>();
      if (lane == 0 && held >= 0) barrierArrive(barriers.free(held));
      held = stage;
      barrierWait(barriers.right(stage), parity);
      startRows<E, kD, Tiles::kRows, kQueries>(ds, vRows, goTiles + offset);
      wgmmaWait<1>();
      const bool isCut = query0 < key0 + 15;  // the mask cuts the tile
      const int least = key0 + lane / 4 - query0 - 2 * (lane & 3);
#pragma unroll
      for (int n = 0; n < kQueries / 8; n++) {
        const float2 row = *reinterpret_cast<const float2*>(lse2 + n * 8);
#pragma unroll
        for (int e = 0; e < 4; e++) {
          p[n][e] = powerOfTwo(p[n][e] * x.power - (e & 1 ? row.y : row.x));
          if (isCut && n * 8 + (e & 1) < least + e / 2 * 8) p[n][e] = 0;
        }
      }
      uint32_t packed[kQueries / 16][4], packedDs[kQueries / 16][4];
      packRows<E, kQueries>(packed, p);
      wgmmaWait<0>();
      startSums<E, kD, kQueries>(gv, packed, goTiles + offset);
#pragma unroll
      for (int n = 0; n < kQueries / 8; n++) {
        const float2 row = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
        for (int e = 0; e < 4; e++) ds[n][e] = p[n][e] * (ds[n][e] - (e & 1 ? row.y : row.x));
      }
      packRows<E, kQueries>(packedDs, ds);
      startSums<E, kD, kQueries>(gk, packedDs, qTiles + offset);
    }
    wgmmaWait<0>();

    const float unscale = 1 / gradientFactor(x.peak), scale = float(x.shape.scale) * unscale;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int key = key0 + 8 * half + lane / 4;
      if (key >= x.shape.tokens) continue;
      const int64_t start = at.row(x.shape, key);
      storeRow<kD>(x.gk + start, x.shape.size, x.isPaired, gk, half, scale);
      storeRow<kD>(x.gv + start, x.shape.size, x.isPaired, gv, half, unscale);
    }
  }
#endif
}

template <class E, int kD>
__global__ __launch_bounds__(GradHopperTiles<kD>::kThreads,
                             1) void gradQueriesHopper(Backward<float, E> x) {
#if defined(AQ_HAS_HOPPER)
  using Tiles = GradHopperTiles<kD>;
  constexpr int kKeys = Tiles::kSteps, kStages = Tiles::kStages;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t qTile = sharedAddress(shared), goTile = qTile + Tiles::kStayBytes;
  const uint32_t kTiles = qTile + Tiles::kLeftAt, vTiles = qTile + Tiles::kRightAt;
  const GradBarriers<kStages> barriers{qTile + Tiles::kBarriersAt};
  barriers.prepare(Tiles::kGroups * 4);

  const QueryPlace at(x.shape, x.blocks, Tiles::kRows);
  const int rows = x.shape.padded, steps = (at.row0 + Tiles::kRows) / kKeys;
  const int64_t head = at.head * rows;

  if (threadIdx.x >= Tiles::kGroups * kWarpgroup) {
    dropRegisters<kProducerRegisters>();
    if (threadIdx.x == Tiles::kGroups * kWarpgroup) {
      const E* const k = x.k + at.kvHead * rows * kD;
      const E* const v = x.v + at.kvHead * rows * kD;
      barrierExpect(barriers.stay(), 2 * Tiles::kStayBytes);
      copyTileBulk<kD, Tiles::kRows>(qTile, x.q + head * kD, rows, at.row0, barriers.stay());
      copyTileBulk<kD, Tiles::kRows>(goTile, x.go + head * kD, rows, at.row0, barriers.stay());
      for (int step = 0; step < steps; step++) {
        const int stage = step % kStages;
        const uint32_t left = barriers.left(stage), right = barriers.right(stage);
        const uint32_t offset = stage * Tiles::kPassBytes;
        barrierWait(barriers.free(stage), (step / kStages & 1) ^ 1);  // not in the first round
        barrierExpect(left, Tiles::kPassBytes);
        copyTileBulk<kD, kKeys>(kTiles + offset, k, rows, step * kKeys, left);
        barrierExpect(right, Tiles::kPassBytes);
        copyTileBulk<kD, kKeys>(vTiles + offset, v, rows, step * kKeys, right);
      }
    }
  } else {
    raiseRegisters<kConsumerRegisters>();
    const int lane = int(threadIdx.x) & 31, group = int(threadIdx.x) / kWarpgroup;
    const int row0 = at.row0 + int(threadIdx.x) / 32 * 16;
    const uint32_t qRows = qTile + group * 64 * 128, goRows = goTile + group * 64 * 128;
    float lse2[2], delta[2], gq[kD / 8][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      lse2[half] = x.lse2[head + row0 + 8 * half + lane / 4];
      delta[half] = x.delta[head + row0 + 8 * half + lane / 4];
    }
    int held = -1;  // the stage that products under way still read
    barrierWait(barriers.stay(), 0);
    const int seenSteps = (at.row0 + 64 * (group + 1)) / kKeys;
    for (int step = 0; step < seenSteps; step++) {
      const int stage = step % kStages, key0 = step * kKeys;
      const uint32_t parity = step / kStages & 1, offset = stage * Tiles::kPassBytes;
      float p[kKeys / 8][4], ds[kKeys / 8][4];
      barrierWait(barriers.left(stage), parity);
      startRows<E, kD, Tiles::kRows, kKeys>(p, qRows, kTiles + offset);
      barrierWait(barriers.right(stage), parity);
      startRows<E, kD, Tiles::kRows, kKeys>(ds, goRows, vTiles + offset);
      wgmmaWait<2>();
      if (lane == 0 && held >= 0) barrierArrive(barriers.free(held));
      held = stage;
      wgmmaWait<1>();
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) p[n][e] = powerOfTwo(p[n][e] * x.power - lse2[e / 2]);
      wgmmaWait<0>();
      const bool isCut = key0 + kKeys - 1 > row0;  // the mask cuts the tile
      const int seen = row0 + lane / 4 - key0 - 2 * (lane & 3);
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          ds[n][e] = p[n][e] * (ds[n][e] - delta[e / 2]);
          if (isCut && n * 8 + (e & 1) > seen + e / 2 * 8) ds[n][e] = 0;
        }
      uint32_t packed[kKeys / 16][4];
      packRows<E, kKeys>(packed, ds);
      startSums<E, kD, kKeys>(gq, packed, kTiles + offset);
    }
    wgmmaWait<0>();

    const float scale = float(x.shape.scale) / gradientFactor(x.peak);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = row0 + 8 * half + lane / 4;
      if (row >= x.shape.tokens) continue;
      const int64_t start = ((at.b * x.shape.tokens + row) * x.shape.heads + at.h) * x.shape.size;
      storeRow<kD>(x.gq + start, x.shape.size, x.isPaired, gq, half, scale);
    }
  }
#endif
}

}  // namespace

}  // namespace aq::cuda
