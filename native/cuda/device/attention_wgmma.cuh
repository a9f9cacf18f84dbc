// attention_wgmma.cuh: Hopper's products of packed tiles: a warpgroup (128 threads) multiplies 64
// rows, out of tiles in the 128-byte swizzle that packHeads writes for heads of 64 and 128 columns.
//
// Sums are held as in attention_mma.cuh, warp w of the group with rows 16 w .. 16 w + 15. Only code
// under AQ_HAS_HOPPER may use this.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "native/cuda/device/attention_mma.cuh"
#include "native/cuda/device/hopper.cuh"

namespace aq::cuda {

inline constexpr int kWarpgroup = 128;  // threads
// Registers of a thread where one warpgroup copies and two multiply.
inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

#if defined(AQ_HAS_HOPPER)

__device__ inline void barrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Bytes from global to shared memory, both and their number multiples of 16; they arrive at the
// barrier.
__device__ inline void copyBytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Copies kRows rows of a packed head into a tile; one thread calls it.
template <int kD, int kRows, class E>
__device__ inline void copyTileBulk(uint32_t tile, const E* head, int padded, int row0,
                                    uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < kD / 64; panel++)
    copyBytes(tile + panel * kRows * 128, head + (int64_t(panel) * padded + row0) * 64, kRows * 128,
              barrier);
}

// Of a tile of kRows rows read with its rows along k (turned): 64 columns further is another panel.
// 16 rows further: the descriptor plus 128.
template <int kRows>
__device__ inline uint64_t turnedDescriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 >> 4) << 32;
  constexpr uint64_t kPanel = uint64_t(kRows * 128 >> 4) << 16;
  return kSwizzle128 | kEightRows | kPanel | uint64_t((address & 0x3FFFF) >> 4);
}

#define AQ_S4(n) "+f"(sum[n][0]), "+f"(sum[n][1]), "+f"(sum[n][2]), "+f"(sum[n][3])
#define AQ_S32 AQ_S4(0), AQ_S4(1), AQ_S4(2), AQ_S4(3), AQ_S4(4), AQ_S4(5), AQ_S4(6), AQ_S4(7)
#define AQ_S64 \
  AQ_S32, AQ_S4(8), AQ_S4(9), AQ_S4(10), AQ_S4(11), AQ_S4(12), AQ_S4(13), AQ_S4(14), AQ_S4(15)
#define AQ_P32                                                                        \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AQ_P64                                                                              \
  AQ_P32                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Both operands out of shared memory with k along their rows; `add` 0: the sums start at zero.
#define AQ_WGMMA_SHARED(shape, type, places, sums, a, b, c)                                   \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " c ", 0; wgmma.mma_async.sync.aligned." shape \
               ".f32." type "." type " " places "}, " a ", " b ", p, 1, 1, 0, 0; }"           \
               : sums                                                                         \
               : "l"(left), "l"(right), "r"(add))
// The left operand out of registers, the right one turned.
#define AQ_WGMMA_TURNED(shape, type, places, sums, a, b)                                      \
  asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." type "." type " " places "}, " a \
               ", " b ", 1, 1, 1, 1;"                                                         \
               : sums                                                                         \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right))

template <class E, int kN>
__device__ inline void wgmmaShared(float (&sum)[kN / 8][4], uint64_t left, uint64_t right,
                                   int add) {
  if constexpr (std::is_same_v<E, __half> && kN == 64)
    AQ_WGMMA_SHARED("m64n64k16", "f16", AQ_P32, AQ_S32, "%32", "%33", "%34");
  else if constexpr (std::is_same_v<E, __half>)
    AQ_WGMMA_SHARED("m64n128k16", "f16", AQ_P64, AQ_S64, "%64", "%65", "%66");
  else if constexpr (kN == 64)
    AQ_WGMMA_SHARED("m64n64k16", "bf16", AQ_P32, AQ_S32, "%32", "%33", "%34");
  else
    AQ_WGMMA_SHARED("m64n128k16", "bf16", AQ_P64, AQ_S64, "%64", "%65", "%66");
}

template <class E, int kN>
__device__ inline void wgmmaTurned(float (&sum)[kN / 8][4], const uint32_t (&left)[4],
                                   uint64_t right) {
  if constexpr (std::is_same_v<E, __half> && kN == 64)
    AQ_WGMMA_TURNED("m64n64k16", "f16", AQ_P32, AQ_S32, "{%32, %33, %34, %35}", "%36");
  else if constexpr (std::is_same_v<E, __half>)
    AQ_WGMMA_TURNED("m64n128k16", "f16", AQ_P64, AQ_S64, "{%64, %65, %66, %67}", "%68");
  else if constexpr (kN == 64)
    AQ_WGMMA_TURNED("m64n64k16", "bf16", AQ_P32, AQ_S32, "{%32, %33, %34, %35}", "%36");
  else
    AQ_WGMMA_TURNED("m64n128k16", "bf16", AQ_P64, AQ_S64, "{%64, %65, %66, %67}", "%68");
}

#undef AQ_WGMMA_TURNED
#undef AQ_WGMMA_SHARED
#undef AQ_P64
#undef AQ_P32
#undef AQ_S64
#undef AQ_S32
#undef AQ_S4

// Starts s = A Bt: 64 rows from `a` on, within a tile of kRows rows, with the kN rows of tile `b`.
template <class E, int kD, int kRows, int kN>
__device__ inline void startRows(float (&s)[kN / 8][4], uint32_t a, uint32_t b) {
  const uint64_t left = tileDescriptor(a), right = tileDescriptor(b);
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kD / 16; k++)
    wgmmaShared<E, kN>(s, left + (k / 4 * kRows * 128 + k % 4 * 32) / 16,
                       right + (k / 4 * kN * 128 + k % 4 * 32) / 16, k > 0);
  wgmmaCommit();
}

// A row of kN accumulated columns as operands.
template <class E, int kN>
__device__ inline void packRows(uint32_t (&packed)[kN / 16][4], const float (&p)[kN / 8][4]) {
#pragma unroll
  for (int k = 0; k < kN / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      packed[k][i] = packPair<E>(p[2 * k + i / 2][i % 2 * 2], p[2 * k + i / 2][i % 2 * 2 + 1]);
}

// Starts sums += P B, B the kN rows of tile `b`.
template <class E, int kD, int kN>
__device__ inline void startSums(float (&sums)[kD / 8][4], const uint32_t (&p)[kN / 16][4],
                                 uint32_t b) {
  const uint64_t right = turnedDescriptor<kN>(b);
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kN / 16; k++) wgmmaTurned<E, kD>(sums, p[k], right + k * (16 * 128 / 16));
  wgmmaCommit();
}

#endif  // AQ_HAS_HOPPER

}  // namespace aq::cuda
