// attention_hopper.cuh: attention's forward pass on Hopper's tensor cores, heads of 64 or 128
// columns.
//
// One thread keeps tiles of keys and values coming; two warpgroups multiply, 64 queries each, and
// each takes its softmax while it adds up outputs and the other multiplies.
#pragma once
#include <cstdint>

#include "native/cuda/device/attention_softmax.cuh"
#include "native/cuda/device/attention_wgmma.cuh"

namespace aq::cuda {

namespace {

template <int kD>
struct HopperTiles {
  static constexpr int kGroups = 2, kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kRows = 64 * kGroups, kKeys = 128, kStages = 2;
  static constexpr uint32_t kQueryBytes = kRows * kD * 2, kKeyBytes = kKeys * kD * 2;
  static constexpr uint32_t kBarriersAt = kQueryBytes + 2 * kStages * kKeyBytes;
  static constexpr uint32_t kShared = kBarriersAt + 128;
};

template <class E, int kD>
__global__ __launch_bounds__(HopperTiles<kD>::kThreads, 1) void forwardHopper(Forward<float, E> x) {
#if defined(AQ_HAS_HOPPER)
  using Tiles = HopperTiles<kD>;
  constexpr int kKeys = Tiles::kKeys, kStages = Tiles::kStages;
  extern __shared__ __align__(1024) char shared[];
  const uint32_t qTile = sharedAddress(shared), kTiles = qTile + Tiles::kQueryBytes;
  const uint32_t vTiles = kTiles + kStages * Tiles::kKeyBytes;
  const uint32_t barriers = qTile + Tiles::kBarriersAt;
  const auto kFull = [&](int stage) { return barriers + 8 * stage; };
  const auto vFull = [&](int stage) { return barriers + 8 * (kStages + stage); };
  const auto kFree = [&](int stage) { return barriers + 8 * (2 * kStages + stage); };
  const auto vFree = [&](int stage) { return barriers + 8 * (3 * kStages + stage); };
  const uint32_t qFull = barriers + 8 * 4 * kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * kStages; i++) barrierInit(barriers + 8 * i, 1);
    for (int i = 2 * kStages; i < 4 * kStages; i++)
      barrierInit(barriers + 8 * i, Tiles::kGroups * 4);
    barrierInit(qFull, 1);
    barrierInitFence();
  }
  __syncthreads();

  const QueryPlace at(x.shape, x.blocks, Tiles::kRows);
  const int rows = x.shape.padded, tiles = (at.row0 + Tiles::kRows) / kKeys;
  if (threadIdx.x >= Tiles::kGroups * kWarpgroup) {
    dropRegisters<kProducerRegisters>();
    if (threadIdx.x != Tiles::kGroups * kWarpgroup) return;
    const E* const k = x.k + at.kvHead * rows * kD;
    const E* const v = x.v + at.kvHead * rows * kD;
    barrierExpect(qFull, Tiles::kQueryBytes);
    copyTileBulk<kD, Tiles::kRows>(qTile, x.q + at.head * rows * kD, rows, at.row0, qFull);
    for (int tile = 0; tile < tiles; tile++) {
      const int stage = tile % kStages;
      const uint32_t parity = tile / kStages & 1, offset = stage * Tiles::kKeyBytes;
      barrierWait(kFree(stage), parity ^ 1);  // the first round waits for nothing
      barrierExpect(kFull(stage), Tiles::kKeyBytes);
      copyTileBulk<kD, kKeys>(kTiles + offset, k, rows, tile * kKeys, kFull(stage));
      barrierWait(vFree(stage), parity ^ 1);
      barrierExpect(vFull(stage), Tiles::kKeyBytes);
      copyTileBulk<kD, kKeys>(vTiles + offset, v, rows, tile * kKeys, vFull(stage));
    }
    return;
  }

  raiseRegisters<kConsumerRegisters>();
  const int group = int(threadIdx.x) / kWarpgroup, warpRow0 = int(threadIdx.x) / 32 * 16;
  const bool isLeader = threadIdx.x % 32 == 0;
  const int firstRow = at.row0 + warpRow0;
  float o[kD / 8][4] = {};
  RowState state[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
  float s[kKeys / 8][4], fade[2];
  uint32_t p[kKeys / 16][4];
  const auto startScores = [&](int tile) {
    const int stage = tile % kStages;
    barrierWait(kFull(stage), tile / kStages & 1);
    startRows<E, kD, Tiles::kRows, kKeys>(s, qTile + group * 64 * 128,
                                          kTiles + stage * Tiles::kKeyBytes);
  };
  const auto startOutputs = [&](int tile) {
    const int stage = tile % kStages;
    barrierWait(vFull(stage), tile / kStages & 1);
    startSums<E, kD, kKeys>(o, p, vTiles + stage * Tiles::kKeyBytes);
  };
  const auto takeSoftmax = [&](int tile) {
    if (isLeader) barrierArrive(kFree(tile % kStages));
    if ((tile + 1) * kKeys - 1 > firstRow) hideKeys(s, firstRow, tile * kKeys);
    softmaxStep(s, state, x.power, fade);
  };

  // A tile's softmax is taken while the outputs of the tile before are added up.
  barrierWait(qFull, 0);
  startScores(0);
  wgmmaWait<0>();
  takeSoftmax(0);
  packRows<E, kKeys>(p, s);
  for (int tile = 1; tile < tiles; tile++) {
    startScores(tile);
    startOutputs(tile - 1);
    wgmmaWait<1>();
    takeSoftmax(tile);
    wgmmaWait<0>();
    if (isLeader) barrierArrive(vFree((tile - 1) % kStages));
    fadeRows(o, fade);
    packRows<E, kKeys>(p, s);
  }
  startOutputs(tiles - 1);
  wgmmaWait<0>();
  storeRows<kD>(x, at, firstRow, o, state);
#endif
}

}  // namespace

}  // namespace aq::cuda
