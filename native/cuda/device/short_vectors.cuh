// short_vectors.cuh: vectors out of shared memory, and short numbers two at a time, where a kernel
// is bound by its instructions.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native/cuda/device/stored.cuh"
#include "native/cuda/device/vec.cuh"

namespace aq::cuda {

template <class S, int N>
__device__ inline Vec<S, N> readVec(const uint4* from) {
  static_assert(sizeof(Vec<S, N>) == sizeof(uint4));
  const uint4 bits = *from;
  Vec<S, N> x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// widen() of stored.cuh. A bf16 is the upper half of its f32, which takes one instruction where it
// lies in the upper half of a word already; the compiler moves it down first.
template <class S, int N>
__device__ inline Vec<float, N> widenPairs(const Vec<S, N>& x) {
  if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    Vec<uint32_t, N / 2> words;
    memcpy(&words, &x, sizeof words);
    Vec<float, N> y;
#pragma unroll
    for (int e = 0; e < N / 2; e++) {
      y.lane[2 * e] = __uint_as_float(words.lane[e] << 16);
      y.lane[2 * e + 1] = __uint_as_float(words.lane[e] & 0xffff0000u);
    }
    return y;
  } else {
    return widen(x);
  }
}

// The smallest and largest numbers so far, each place of a vector by itself. NaN is ignored beside
//           a
// number.
template <class S, int N>
class VectorExtremes {
 public:
  __device__ VectorExtremes() {
    const float infinite = INFINITY;
#pragma unroll
    for (int e = 0; e < kWords; e++) {
      if constexpr (std::is_same_v<S, float>) {
        low_.lane[e] = infinite;
        high_.lane[e] = -infinite;
      } else {
        low_.lane[e] = {S(infinite), S(infinite)};
        high_.lane[e] = {S(-infinite), S(-infinite)};
      }
    }
  }

  __device__ void take(const Vec<S, N>& x) {
    Words words;
    memcpy(&words, &x, sizeof words);
#pragma unroll
    for (int e = 0; e < kWords; e++) {
      if constexpr (std::is_same_v<S, float>) {
        low_.lane[e] = fminf(low_.lane[e], words.lane[e]);
        high_.lane[e] = fmaxf(high_.lane[e], words.lane[e]);
      } else {
        low_.lane[e] = __hmin2(low_.lane[e], words.lane[e]);
        high_.lane[e] = __hmax2(high_.lane[e], words.lane[e]);
      }
    }
  }

  // Infinities where there were no numbers.
  __device__ float low() const {
    const Vec<S, N> own = numbers(low_);
    float least = static_cast<float>(own.lane[0]);
#pragma unroll
    for (int e = 1; e < N; e++) least = fminf(least, static_cast<float>(own.lane[e]));
    return least;
  }
  __device__ float high() const {
    const Vec<S, N> own = numbers(high_);
    float most = static_cast<float>(own.lane[0]);
#pragma unroll
    for (int e = 1; e < N; e++) most = fmaxf(most, static_cast<float>(own.lane[e]));
    return most;
  }

 private:
  using Word =
      std::conditional_t<std::is_same_v<S, float>, float,
                         std::conditional_t<std::is_same_v<S, __half>, __half2, __nv_bfloat162>>;
  static constexpr int kWords = int(N * sizeof(S) / sizeof(Word));
  using Words = Vec<Word, kWords>;

  __device__ static Vec<S, N> numbers(const Words& words) {
    Vec<S, N> x;
    memcpy(&x, &words, sizeof x);
    return x;
  }

  Words low_, high_;
};

}  // namespace aq::cuda
