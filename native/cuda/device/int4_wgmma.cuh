// int4_wgmma.cuh: products of a warpgroup (128 threads) on halves, the left one from registers, and
// copies that arrive at barriers of the block, for int4_batch.cu and int4_prefill.cu. Only under
// AQ_HAS_HOPPER (hopper.cuh).
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

// The box at (x, y, z) to shared memory; its bytes arrive at the barrier.
__device__ inline void copyBox(uint32_t to, const CUtensorMap* map, uint32_t barrier, int32_t x,
                               int32_t y, int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// The same to every block of the cluster that is in the mask, at the same place in each.
__device__ inline void copyBoxToAll(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                    int32_t x, int32_t y, int32_t z, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask)
      : "memory");
}

// clang-format off
#define AQ_SUMS4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define AQ_SUMS8(i) AQ_SUMS4(i), AQ_SUMS4(i + 4)
#define AQ_SUMS16(i) AQ_SUMS8(i), AQ_SUMS8(i + 8)
#define AQ_SUMS64(i) AQ_SUMS16(i), AQ_SUMS16(i + 16), AQ_SUMS16(i + 32), AQ_SUMS16(i + 48)
#define AQ_REST "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int32_t(add))
#define AQ_WGMMA_16(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %13, 0;" \
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7" \
      "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0; }" : AQ_SUMS8(0) : AQ_REST)
#define AQ_WGMMA_32(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %21, 0;" \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
      "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0; }" : AQ_SUMS16(0) : AQ_REST)
#define AQ_WGMMA_64(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }" : AQ_SUMS16(0), AQ_SUMS16(16) : AQ_REST)
#define AQ_WGMMA_128(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %69, 0;" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }" : AQ_SUMS64(0) : AQ_REST)
#define AQ_WGMMA_256(type) \
  asm volatile( \
      "{ .reg .pred p; setp.ne.b32 p, %133, 0;" \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
      "}, {%128, %129, %130, %131}, %132, p, 1, 1, 0; }" \
      : AQ_SUMS64(0), AQ_SUMS64(64) : AQ_REST)
// clang-format on

// sum = a b^T (+ sum) of tiles of 64 x 16 and kN x 16 of H; b lies in shared memory with k along rows.
// Warp w of the warpgroup holds rows 16 w .. 16 w + 15 of a as mma.sync's operand. Thread t holds of
// sum row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2 at place i.
template <class H, int kN>
__device__ inline void wgmmaHalves(float (&sum)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                   bool add) {
  constexpr bool isBf16 = std::is_same_v<H, __nv_bfloat16>;
  if constexpr (kN == 16 && isBf16) AQ_WGMMA_16("bf16");
  if constexpr (kN == 16 && !isBf16) AQ_WGMMA_16("f16");
  if constexpr (kN == 32 && isBf16) AQ_WGMMA_32("bf16");
  if constexpr (kN == 32 && !isBf16) AQ_WGMMA_32("f16");
  if constexpr (kN == 64 && isBf16) AQ_WGMMA_64("bf16");
  if constexpr (kN == 64 && !isBf16) AQ_WGMMA_64("f16");
  if constexpr (kN == 128 && isBf16) AQ_WGMMA_128("bf16");
  if constexpr (kN == 128 && !isBf16) AQ_WGMMA_128("f16");
  if constexpr (kN == 256 && isBf16) AQ_WGMMA_256("bf16");
  if constexpr (kN == 256 && !isBf16) AQ_WGMMA_256("f16");
}

// After a wait: keeps the compiler from moving what reads the sums to before it.
template <int N>
__device__ inline void fenceSums(float (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

#undef AQ_WGMMA_256
#undef AQ_WGMMA_128
#undef AQ_WGMMA_64
#undef AQ_WGMMA_32
#undef AQ_WGMMA_16
#undef AQ_REST
#undef AQ_SUMS64
#undef AQ_SUMS16
#undef AQ_SUMS8
#undef AQ_SUMS4

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda::int4
