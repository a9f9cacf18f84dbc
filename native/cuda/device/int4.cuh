// int4.cuh: packed codes into the operands of the matrix instructions, those
// instructions, and asynchronous copies into shared memory (sm_80 and later).
//
// Code v becomes the number v - z in three instructions for two values: the
// nibble is put under the exponent of 2^7 (bf16) or 2^10 (f16), which makes it
// 128 + v or 1024 + v exactly, and 128 + z or 1024 + z is subtracted, exactly
// again.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "native/cuda/device/packed.cuh"
#include "native/cuda/device/sequence.cuh"
#include "native/cuda/int4.h"

namespace aq::cuda::int4 {

// 16 bytes from global to shared memory; only the first `bytes` are read, the
// rest become zeros.
__device__ inline void copyAsync16(uint32_t to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline uint32_t sharedAddress(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of halves whose rows of 16 bytes start at the addresses
// of lanes 8 i .. 8 i + 7: of matrix i, lane l gets row l / 4, columns 2 (l %
// 4) and the next.
__device__ inline uint4 loadMatrices(uint32_t rowAddress) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(rowAddress)
               : "memory");
  return r;
}

// Part `rank` of n tiles cut into `parts` runs starts here.
__device__ inline int partStart(int n, int rank, int parts) {
  return n / parts * rank + min(rank, n % parts);
}

// Brings memory to L2: `bytes` a multiple of 16, `from` aligned to it.
__device__ inline void prefetch(const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// (w >> shift) & 0x000f000f | magic, as one logic instruction after the shift.
template <int kShift>
__device__ inline uint32_t nibblesUnder(uint32_t w, uint32_t magic) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(w >> kShift), "n"(0x000f000f), "r"(magic));
  return r;
}

// Two numbers of a half type H in a register.
template <class H>
struct Pair;

template <>
struct Pair<__nv_bfloat16> {
  static constexpr uint32_t kMagic = 0x43004300u;  // 128, 128
  static constexpr uint32_t kOnes = 0x3f803f80u;
  static constexpr float kOffset = 128;
  // 128 + zero in both halves.
  __device__ static uint32_t zero(uint32_t z) { return kMagic | z | z << 16; }
  __device__ static uint32_t subtract(uint32_t a, uint32_t b) {
    const __nv_bfloat162 d = __hsub2(reinterpret_cast<const __nv_bfloat162&>(a),
                                     reinterpret_cast<const __nv_bfloat162&>(b));
    return reinterpret_cast<const uint32_t&>(d);
  }
  // c += a b on a 16 x 16 and a 16 x 8 matrix.
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Pair<__half> {
  static constexpr uint32_t kMagic = 0x64006400u;  // 1024, 1024
  static constexpr uint32_t kOnes = 0x3c003c00u;
  static constexpr float kOffset = 1024;
  __device__ static uint32_t zero(uint32_t z) { return kMagic | z | z << 16; }
  __device__ static uint32_t subtract(uint32_t a, uint32_t b) {
    const __half2 d =
        __hsub2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
    return reinterpret_cast<const uint32_t&>(d);
  }
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// The 16 x 16 operand of one word a thread; z0, z8: Pair::zero of rows g and g
// + 8.
template <class H>
__device__ inline void unpackWord(uint32_t w, uint32_t z0, uint32_t z8, uint32_t (&a)[4]) {
  using P = Pair<H>;
  a[0] = P::subtract(nibblesUnder<0>(w, P::kMagic), z0);
  a[1] = P::subtract(nibblesUnder<4>(w, P::kMagic), z8);
  a[2] = P::subtract(nibblesUnder<8>(w, P::kMagic), z0);
  a[3] = P::subtract(nibblesUnder<12>(w, P::kMagic), z8);
}

// The same with kOffset still on every code.
template <class H>
__device__ inline void offsetWord(uint32_t w, uint32_t (&a)[4]) {
  a[0] = nibblesUnder<0>(w, Pair<H>::kMagic);
  a[1] = nibblesUnder<4>(w, Pair<H>::kMagic);
  a[2] = nibblesUnder<8>(w, Pair<H>::kMagic);
  a[3] = nibblesUnder<12>(w, Pair<H>::kMagic);
}

// c += a b on bytes without sign, 16 x 32 and 32 x 8, exact.
__device__ inline void multiplyBytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Words of the factors of a row tile's groups of 4-bit floats in shared memory:
// rows of `factorPitch`, and what keeps tables that follow each other on other
// banks (device/fp4_decode.cuh).
__host__ __device__ constexpr int factorPitch(int groups) { return groups == 8 ? 12 : groups; }
__host__ __device__ constexpr int factorWords(int groups) {
  return 8 * factorPitch(groups) + (groups == 4 ? 4 : 0);
}

// What sums of products with 4-bit floats are times: loaded where nothing waits
// for it, and put together where it is used.
struct Factors {
  float factor, xGlobal;

  __device__ explicit Factors(const Result& y)
      : factor(y.factor ? *y.factor : 1.0f), xGlobal(y.xGlobal ? *y.xGlobal : 1.0f) {}
  __device__ float of(const Result& y) const {
    const float both = y.unit * factor;
    return isfinite(xGlobal) ? both / xGlobal : both;
  }
};

// Numbers beside sums, loaded early likewise; -0 where there is none, which
// changes no sum.
template <int N>
struct EarlyNumbers {
  uint32_t bits[N];

  __device__ EarlyNumbers(int32_t dtype, const void* data, int64_t first, int64_t end) {
    if (dtype == AQ_F32) {
#pragma unroll
      for (int i = 0; i < N; i++)
        bits[i] =
            data && first + i < end ? static_cast<const uint32_t*>(data)[first + i] : 0x80000000u;
    } else {
#pragma unroll
      for (int i = 0; i < N; i++)
        bits[i] = data && first + i < end ? static_cast<const uint16_t*>(data)[first + i] : 0x8000u;
    }
  }
  __device__ float at(int32_t dtype, int i) const {
    if (dtype == AQ_F32) return __uint_as_float(bits[i]);
    if (dtype == AQ_BF16) return __uint_as_float(bits[i] << 16);
    return __half2float(__ushort_as_half(uint16_t(bits[i])));
  }
};

}  // namespace aq::cuda::int4
