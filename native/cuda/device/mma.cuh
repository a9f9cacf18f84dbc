// mma.cuh: the warp-level matrix instructions of sm_80 and later, and the copies that feed them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace aq::cuda {

// The type that products of E are summed in.
template <class E>
struct SumOf {
  using Type = float;
};
template <>
struct SumOf<int8_t> {
  using Type = int32_t;
};

__device__ inline uint32_t sharedAddress(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// sum += a b of one 16 x (32 bytes) and one (32 bytes) x 8 tile. Thread t of the warp holds: of a
// the four bytes at row t/4 + {0, 8, 0, 8}, byte 4 (t%4) + {0, 0, 16, 16}; of b column t/4, bytes
// 4 (t%4) + {0, 16}; of sum rows t/4 + {0, 0, 8, 8}, columns 2 (t%4) + {0, 1, 0, 1}.
__device__ inline void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                           __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                           __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                           int8_t) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 16-byte tiles; thread t names the start of row t%8 of tile t/8 and gets of every tile
// the four bytes 4 (t%4) of row t/4.
__device__ inline void loadTiles(uint32_t (&tile)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
               : "r"(address));
}

// The same with every tile, of 8 x 8 two-byte numbers, transposed.
__device__ inline void loadTilesTransposed(uint32_t (&tile)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
               : "r"(address));
}

// 16 bytes from global to shared memory, in the background: both addresses are multiples of 16.
__device__ inline void copyAsync16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global));
}
__device__ inline void commitCopies() { asm volatile("cp.async.commit_group;"); }
// Waits until at most kPending of the newest groups are under way.
template <int kPending>
__device__ inline void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace aq::cuda
