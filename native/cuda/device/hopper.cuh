// hopper.cuh: what sm_90a adds, as functions: barriers in shared memory that count bytes, the bulk
// tensor copies that arrive on them, and products of a warpgroup (128 threads) out of shared
// memory. Only code under AQ_HAS_HOPPER may call them; sm_90a is the one target that defines it.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "native/cuda/device/sequence.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AQ_HAS_HOPPER 1
#endif

namespace aq::cuda {

// Counts stages and the parity of their barriers.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

#if defined(AQ_HAS_HOPPER)

// ---------------------------------------------------------------- barriers

__device__ inline void barrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
// Makes initialized barriers known to the copy engine and the cluster.
__device__ inline void barrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and lets the phase end only after `bytes` more bytes have come.
__device__ inline void barrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Arrives at the same barrier of block `rank` of the cluster.
__device__ inline void barrierArriveAt(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// Waits until the phase of this parity is over.
__device__ inline void barrierWait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred p;"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// Meets the other blocks of the cluster; makes known what a fence before it has released, no more.
__device__ inline void clusterSync() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline uint32_t clusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// ---------------------------------------------------------------- copies

__device__ inline void prefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map));
}
// The box at column x, row y to shared memory; its bytes arrive at the barrier.
__device__ inline void copyBox(uint32_t to, const CUtensorMap* map, uint32_t barrier, int32_t x,
                               int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
// The same to every block of the cluster that is in the mask, at the same place in each.
__device__ inline void copyBoxToAll(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                    int32_t x, int32_t y, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(mask)
      : "memory");
}

// ---------------------------------------------------------------- products

// Describes a tile whose rows are 128 bytes of k, in the 128-byte swizzle: eight rows are one block
// of 1024 bytes, at which the tile starts. 32 bytes further along k: the descriptor plus 2.
__device__ inline uint64_t tileDescriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 >> 4) << 32;
  constexpr uint64_t kUnused = uint64_t(1) << 16;
  return kSwizzle128 | kEightRows | kUnused | uint64_t((address & 0x3FFFF) >> 4);
}

__device__ inline void wgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// After a wait: keeps the compiler from moving what reads the sums to before it.
template <int N>
__device__ inline void fenceSums(int32_t (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(sum[i])::"memory");
}
template <int N>
__device__ inline void fenceSums(float (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

template <int kRegisters>
__device__ inline void raiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void dropRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define AQ_SUMS4(i) "+r"(sum[i]), "+r"(sum[i + 1]), "+r"(sum[i + 2]), "+r"(sum[i + 3])
#define AQ_SUMS16(i) AQ_SUMS4(i), AQ_SUMS4(i + 4), AQ_SUMS4(i + 8), AQ_SUMS4(i + 12)

// sum = a b^T (+ sum) of int8 tiles of 64 x 32 and kN x 32. Thread t of the warpgroup holds of sum
// row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2 at place i.
template <int kN>
__device__ void wgmmaCodes(int32_t (&sum)[kN / 2], uint64_t a, uint64_t b, bool add);
template <>
__device__ inline void wgmmaCodes<128>(int32_t (&sum)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p; }"
      : AQ_SUMS16(0), AQ_SUMS16(16), AQ_SUMS16(32), AQ_SUMS16(48)
      : "l"(a), "l"(b), "r"(int32_t(add)));
}
template <>
__device__ inline void wgmmaCodes<256>(int32_t (&sum)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %130, 0;"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p; }"
      : AQ_SUMS16(0), AQ_SUMS16(16), AQ_SUMS16(32), AQ_SUMS16(48), AQ_SUMS16(64), AQ_SUMS16(80),
        AQ_SUMS16(96), AQ_SUMS16(112)
      : "l"(a), "l"(b), "r"(int32_t(add)));
}

#undef AQ_SUMS16
#undef AQ_SUMS4

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda
