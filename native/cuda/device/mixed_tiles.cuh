// mixed_tiles.cuh: how the products of bf16 and int8 go over C (mixed_product.cu): what the warpgroup
// that copies does and what those that multiply do, up to the sums of a tile. Only code under
// AQ_HAS_HOPPER may use the device functions.
#pragma once
#include <cstdint>

#include "native/cuda/device/hopper.cuh"
#include "native/cuda/device/mixed_wgmma.cuh"
#include "native/cuda/device/wide_tiles.cuh"

namespace aq::cuda {

inline constexpr int kMixedDepth = 64;    // of k a stage
inline constexpr int kMixedBoxRows = 64;  // copied at once: 64 of k of b; of a its rows or 64 of k

template <int kStages>
struct MixedStages {
  static constexpr int kBoxBytes = kMixedBoxRows * wide::kBoxWidth;
  static constexpr int kBoxesA = wide::kRows / 64;
  static constexpr int kBytesA = kBoxesA * kBoxBytes;
  static constexpr int kBytes = kBytesA + kBoxBytes;  // of a stage, without its scales
  static constexpr int kScaleBytes = kMixedDepth * 4;
  static constexpr int kScalesAt = kStages * kBytes;
  static constexpr int kAllBytes = kScalesAt + kStages * kScaleBytes;
  static_assert(wide::kCols == wide::kBoxWidth && kMixedDepth == kMixedBoxRows);
  static_assert(kMixedDepth * 2 == wide::kBoxWidth);
};

#if defined(AQ_HAS_HOPPER)

template <int kStages>
__device__ inline void copyScales(uint32_t to, const float* from, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "n"(MixedStages<kStages>::kScaleBytes), "r"(barrier)
      : "memory");
}

// Of one thread: keeps the stages filled, with `steps` of them a tile.
template <bool kTransA, int kStages>
__device__ inline void copyMixed(const CUtensorMap* mapA, const CUtensorMap* mapB,
                                 const float* scales, int64_t steps, const wide::Tiling& tiling,
                                 uint32_t shared, uint32_t barriers) {
  using Stage = MixedStages<kStages>;
  constexpr int kShareA = Stage::kBoxesA / wide::kCluster;  // boxes of this block
  const int32_t rank = int32_t(clusterRank());
  wide::Turn<kStages> turn;
  wide::visitTiles(tiling, [&](const wide::Place& place) {
    const int32_t row = int32_t(place.row) + rank * (wide::kRows / wide::kCluster);
    const int32_t col = int32_t(place.col);
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t full = barriers + turn.stage * 8, empty = full + kStages * 8;
      const uint32_t a = shared + turn.stage * Stage::kBytes;
      const uint32_t share = a + rank * kShareA * Stage::kBoxBytes;
      const int32_t k = int32_t(step) * kMixedDepth;
      barrierWait(empty, turn.parity ^ 1);  // passes at once in the first round
      barrierExpect(full, Stage::kBytes + Stage::kScaleBytes);
      copyBox(a + Stage::kBytesA, mapB, full, col, k);
      copyScales<kStages>(shared + Stage::kScalesAt + turn.stage * Stage::kScaleBytes, scales + k,
                          full);
#pragma unroll
      for (int i = 0; i < kShareA; i++) {
        // Its place along a row is in bytes.
        copyBoxToAll(share + i * Stage::kBoxBytes, mapA, full, 2 * (kTransA ? row + i * 64 : k),
                     kTransA ? k : row + i * 64, (1 << wide::kCluster) - 1);
      }
    }
  });
}

// 16 of k of a of the stage at `address`: its rows along k, or turned, 64 rows a box.
template <bool kTransA, int kStages>
__device__ inline uint64_t descriptorA(uint32_t address, int part) {
  if constexpr (kTransA) {
    return wide::turnedDescriptor(address, MixedStages<kStages>::kBoxBytes, part);
  } else {
    return tileDescriptor(address) + part * 2;
  }
}

// Of a warpgroup that multiplies: the sums of its half of every tile, for finish(sum, place).
// A thread holds of C the rows i / 2 * 8 + i % 2, from 2 (t % 4) on, at sum[i / 2 * 4 + i % 2] and,
// of the next column, two places on. Its columns start at 64 consumer + 16 (t / 32) +
// 2 (t % 32 / 4). kHalves: rows are multiplied in halves.
template <bool kTransA, int kStages, bool kHalves, class Finish>
__device__ inline void multiplyMixed(int64_t steps, const wide::Tiling& tiling, uint32_t shared,
                                     uint32_t barriers, Finish&& finish) {
  using Stage = MixedStages<kStages>;
  const int consumer = int(threadIdx.x) / wide::kWarpgroup - 1;
  const int thread = int(threadIdx.x) % wide::kWarpgroup;
  const int warp = thread / 32, quad = thread % 32 / 4, pair = thread % 4;
  // A thread's two columns of a row of b lie in another 16 bytes in each of eight rows.
  const int chunk = consumer * 4 + warp;
  constexpr int kWidth = wide::kBoxWidth;
  const uint32_t even = 2 * pair * kWidth + (chunk ^ (2 * pair)) * 16 + quad * 2;
  const uint32_t odd = (2 * pair + 1) * kWidth + (chunk ^ (2 * pair + 1)) * 16 + quad * 2;
  constexpr int kParts = kMixedDepth / 16;
  wide::Turn<kStages> turn;
  wide::visitTiles(tiling, [&](const wide::Place& place) {
    float sum[128];
    uint32_t left[kParts][4];
    int last = 0;  // the stage of the step before
    for (int64_t step = 0; step < steps; step++, turn.next()) {
      const uint32_t a = shared + turn.stage * Stage::kBytes, b = a + Stage::kBytesA;
      const uint32_t scales =
          shared + Stage::kScalesAt + turn.stage * Stage::kScaleBytes + pair * 8;
      barrierWait(barriers + turn.stage * 8, turn.parity);
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        const uint32_t at = b + part * 16 * kWidth;
        const uint32_t bytes[4] = {loadBytes(at + even), loadBytes(at + odd),
                                   loadBytes(at + even + 8 * kWidth),
                                   loadBytes(at + odd + 8 * kWidth)};
        const __nv_bfloat162 low = loadScales(scales + part * 64);
        const __nv_bfloat162 high = loadScales(scales + part * 64 + 32);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          left[part][i] = expandPair(bytes[0], bytes[1], i, low);
          left[part][i + 2] = expandPair(bytes[2], bytes[3], i, high);
        }
        wgmmaFence();
        const uint64_t right = descriptorA<kTransA, kStages>(a, part);
        const bool adds = step > 0 || part > 0;
        if constexpr (kHalves) {
          wgmmaMixedHalf<kTransA, 0>(sum, left[part], right, adds);
          wgmmaMixedHalf<kTransA, 64>(
              sum, left[part], descriptorA<kTransA, kStages>(a + Stage::kBytesA / 2, part), adds);
        } else {
          wgmmaMixed<kTransA>(sum, left[part], right, adds);
        }
        wgmmaCommit();
        // Two parts are under way while the next one is expanded; the one before them is done.
        wgmmaWait<2>();
        if (part >= 2 || step > 0) keepOperand(left[(part + kParts - 2) % kParts]);
        // And with it the stage before, which may be filled again, in both blocks.
        if (part == 1 && step > 0) wide::releaseStage(barriers + (kStages + last) * 8, thread);
      }
      last = turn.stage;
    }
    wgmmaWait<0>();
    fenceSums(sum);
    wide::releaseStage(barriers + (kStages + last) * 8, thread);
    finish(sum, place);
  });
}

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda
