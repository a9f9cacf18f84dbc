// bf16_wgmma.cuh: Hopper's product of bf16 tiles that both lie in shared memory. Only code under
// AQ_HAS_HOPPER may use this.
#pragma once
#include <cstdint>

#include "native/cuda/device/hopper.cuh"

namespace aq::cuda {

#if defined(AQ_HAS_HOPPER)

#define AQ_SUMS4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define AQ_SUMS16(i) AQ_SUMS4(i), AQ_SUMS4(i + 4), AQ_SUMS4(i + 8), AQ_SUMS4(i + 12)

// sum = a b (+ sum) of tiles of 64 x 16 and 16 x 256. kTurnedA: k runs across the rows of a as it lies;
// kTurnedB: across those of b. Thread t of the warpgroup holds of sum row
// 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2 at place i.
template <bool kTurnedA, bool kTurnedB>
__device__ inline void wgmmaBf16(float (&sum)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %130, 0;"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p, 1, 1, %131, %132; }"
      : AQ_SUMS16(0), AQ_SUMS16(16), AQ_SUMS16(32), AQ_SUMS16(48), AQ_SUMS16(64), AQ_SUMS16(80),
        AQ_SUMS16(96), AQ_SUMS16(112)
      : "l"(a), "l"(b), "r"(int32_t(add)), "n"(int(kTurnedA)), "n"(int(kTurnedB)));
}

#undef AQ_SUMS16
#undef AQ_SUMS4

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda
