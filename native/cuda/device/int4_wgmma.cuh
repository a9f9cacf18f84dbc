// int4_wgmma.cuh: products of a warpgroup (128 threads) on halves, the left one from registers, and
// arrivals at barriers of the block, for int4_batch.cu. Only under AQ_HAS_HOPPER (hopper.cuh).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "native/cuda/device/hopper.cuh"

namespace aq::cuda::int4 {

#if defined(AQ_HAS_HOPPER)

__device__ inline void barrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives when all asynchronous copies that this thread has started are done.
__device__ inline void barrierArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// What this thread has written to shared memory, or has seen written, becomes visible to the matrix
// units. (The thread that copies had better not call it: it would wait for all its copies.)
__device__ inline void fenceForMatrixUnits() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// clang-format off
#define AQ_SUMS4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define AQ_SUMS16(i) AQ_SUMS4(i), AQ_SUMS4(i + 4), AQ_SUMS4(i + 8), AQ_SUMS4(i + 12)
#define AQ_WGMMA_64(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }" \
      : AQ_SUMS16(0), AQ_SUMS16(16) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int32_t(add)))
#define AQ_WGMMA_128(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %69, 0;" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }" \
      : AQ_SUMS16(0), AQ_SUMS16(16), AQ_SUMS16(32), AQ_SUMS16(48) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int32_t(add)))
// clang-format on

// sum = a b^T (+ sum) of tiles of 64 x 16 and kN x 16 of H; b lies in shared memory with k along rows.
// Warp w of the warpgroup holds rows 16 w .. 16 w + 15 of a as mma.sync's operand. Thread t holds of
// sum row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2 at place i.
template <class H, int kN>
__device__ inline void wgmmaHalves(float (&sum)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                   bool add) {
  constexpr bool isBf16 = std::is_same_v<H, __nv_bfloat16>;
  if constexpr (kN == 64 && isBf16) AQ_WGMMA_64("bf16");
  if constexpr (kN == 64 && !isBf16) AQ_WGMMA_64("f16");
  if constexpr (kN == 128 && isBf16) AQ_WGMMA_128("bf16");
  if constexpr (kN == 128 && !isBf16) AQ_WGMMA_128("f16");
}

#undef AQ_WGMMA_128
#undef AQ_WGMMA_64
#undef AQ_SUMS16
#undef AQ_SUMS4

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda::int4
