// cached_attention.cuh: a call of cached_attention as its kernels see it: rows of q, k and v wherever
// they lie, turned by their positions where the call says so, the caches, and where the result goes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "native/abi/backend.h"
#include "native/cuda/fault.h"

namespace aq::cuda {

// Rows of q, k or v, `ld` elements from token to token, with a grid per token and head or without.
template <class T>
struct HeadRows {
  const T* x;
  const T* scale;
  const T* zero;
  int64_t ld;
};

// K: T, bf16, f16, or uint8_t: two codes a byte and (scale, zero) in `grid`.
template <class T, class K>
struct Cache {
  K* data;
  T* grid;
};

template <class T, class K>
struct CachedCall {
  HeadRows<T> q, kv[2];
  Cache<T, K> cache[2];
  // Of rope, [M, D / 2] for the tokens, or null.
  const T* cosines;
  const T* sines;
  void* o;
  int32_t round;  // type of o, or 0: T
  const int32_t* slots;
  const int32_t* positions;
  int64_t slotCount, capacity;
  int heads, kvHeads, size;
  // Tokens are of different slots: none needs what another one brings.
  bool isApart;
  // Nothing in front of the call can still be writing to the caches.
  bool isEarly;
  int splits;
  T scale, top;
  Fault* fault;

  __device__ bool isInside(int64_t m) const { return isInside(slots[m], positions[m]); }
  __device__ bool isInside(int slot, int position) const {
    return slot >= 0 && slot < slotCount && position >= 0 && position < capacity;
  }
  __device__ void refuse(int64_t m) const {
    raiseFault(fault, FaultKind::kCachePlace, m, int64_t(slots[m]) << 32 | uint32_t(positions[m]));
  }

  // Channel d of a head at x, turned if q and k are.
  __device__ T turned(const T* x, int64_t m, int d) const {
    if (!cosines) return x[d];
    const int half = size / 2, i = d < half ? d : d - half;
    const T c = cosines[m * half + i], s = sines[m * half + i];
    return d < half ? x[d] * c - x[d + half] * s : x[d] * c + x[d - half] * s;
  }

  __device__ void store(int64_t i, T value) const {
    if constexpr (std::is_same_v<T, float>) {
      if (round == AQ_BF16) {
        static_cast<__nv_bfloat16*>(o)[i] = __float2bfloat16_rn(value);
        return;
      }
      if (round == AQ_F16) {
        static_cast<__half*>(o)[i] = __float2half_rn(value);
        return;
      }
    }
    static_cast<T*>(o)[i] = value;
  }
};

}  // namespace aq::cuda
