// fp4_flat.cuh: 4-bit floats of a matrix without factors of rows or columns: its groups lie one behind
// the other, and where a row ends does not matter.
//
// As in fp4_strips.cuh a thread has runs of 8 numbers, and the neighbours that share groups each do for
// one of them what is done once for a group. Numbers stay packed as they lie wherever that is exact:
// largest magnitudes are looked for two at a time, signs are put aside and come back two at a time, and
// values are multiplied by their scales in bf16, which holds the products.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native/cuda/device/fp4.cuh"
#include "native/cuda/device/fp4_strips.cuh"
#include "native/cuda/device/stored.cuh"

namespace aq::cuda {

inline constexpr int kFlatThreads = 128;  // of a block

// ---------------------------------------------------------------- places

// A thread's runs, kLanes of them, which lie kFlatThreads apart.
template <int kLanes>
struct FlatPlace {
  unsigned first;

  __device__ explicit FlatPlace(unsigned block)
      : first(block * (kLanes * kFlatThreads) + threadIdx.x) {}

  __device__ unsigned run(unsigned j) const { return first + j * kFlatThreads; }
  // The group that the thread answers for.
  __device__ unsigned group() const { return run(threadIdx.x % kLanes) / kLanes; }
};

// The runs and groups of a matrix.
struct FlatShape {
  unsigned runs, groups;

  // lanes: runs of a group.
  static FlatShape of(int64_t numel, int lanes) {
    return {unsigned(numel / kRun), unsigned(numel / kRun / lanes)};
  }
  // What these and the runs of the last block hold.
  static bool holds(int64_t numel) { return numel > 0 && numel / kRun < int64_t(1) << 31; }
  dim3 grid(unsigned lanes) const {
    const unsigned each = kFlatThreads * lanes;
    return dim3((runs + each - 1) / each);
  }
};

// ---------------------------------------------------------------- groups

// What is done once for a group: with the bits of Fp4Scale and fp4Inverse, and one branch for all that
// is out of the ordinary. kGiven: the scale is known.
template <int kFormat, bool kGiven>
struct FlatGroup : Fp4Scale<float, kFormat> {
  float factor, scale, inverse;

  // divisor: of the clipping factor, 1 without.
  __device__ FlatGroup(float divisor, float largest, float g, float given = 0) {
    factor = inverseOf(divisor);
    this->clipped = mulRn(factor, largest);
    if constexpr (kFormat == kNvFp4) this->raw = mulRn(usualSixth(this->clipped), g);
    scale = kGiven ? given : this->rounded();
    inverse = e4m3Inverse(g, scale);
    // A divisor whose inverse is not exact leaves something so small that it is caught here.
    if (kFormat == kNvFp4 && isUsualGlobal(g) && isUsualSixth(this->clipped)) return;
    factor = divRn(1.0f, divisor);
    static_cast<Fp4Scale<float, kFormat>&>(*this) = Fp4Scale<float, kFormat>(factor, largest, g);
    scale = kGiven ? given : this->rounded();
    inverse = divRn(g, scale);
  }
};

// ---------------------------------------------------------------- runs

inline constexpr uint32_t kSigns = 0x80008000u;  // of two short numbers

template <class S>
using PairOf = std::conditional_t<std::is_same_v<S, __half>, __half2, __nv_bfloat162>;

template <class To, class From>
__device__ inline To bitsAs(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// Eight short numbers in four words, the lower half of a word first.
template <class S>
struct FlatRun {
  uint32_t word[kRun / 2] = {};

  __device__ void load(const S* data, unsigned run) {
    const uint4 all = __ldcs(reinterpret_cast<const uint4*>(data) + run);  // read once
    word[0] = all.x, word[1] = all.y, word[2] = all.z, word[3] = all.w;
  }
  __device__ void store(S* data, unsigned run) const {
    reinterpret_cast<uint4*>(data)[run] = make_uint4(word[0], word[1], word[2], word[3]);
  }
  __device__ void set(int w, float2 both) {
    if constexpr (std::is_same_v<S, __half>)
      word[w] = bitsAs<uint32_t>(__float22half2_rn(both));
    else
      word[w] = bitsAs<uint32_t>(__float22bfloat162_rn(both));
  }
  __device__ float2 pair(int w) const {
    if constexpr (std::is_same_v<S, __half>)
      return __half22float2(bitsAs<__half2>(word[w]));
    else
      return {__uint_as_float(word[w] << 16), __uint_as_float(word[w] & 0xffff0000u)};
  }
  // The signs of both at places 15 and 31; other places hold anything.
  __device__ uint32_t signs(int w) const { return word[w]; }
  // Turns the sign of what has a sign there.
  __device__ void turn(int w, uint32_t signs) { word[w] ^= signs & kSigns; }

  // The largest magnitude; NaN where there is one.
  __device__ float largest() const {
    using Pair = PairOf<S>;
    Pair most = __habs2(bitsAs<Pair>(word[0]));
#pragma unroll
    for (int w = 1; w < kRun / 2; w++) most = __hmax2_nan(most, __habs2(bitsAs<Pair>(word[w])));
    return static_cast<float>(__hmax_nan(lower(most), upper(most)));
  }
  // How many magnitudes are `top`, which is one of them.
  __device__ float countOf(float top) const {
    using Pair = PairOf<S>;
    uint32_t tops;
    if constexpr (std::is_same_v<S, __half>)
      tops = bitsAs<uint32_t>(__float2half2_rn(top));
    else
      tops = bitsAs<uint32_t>(__float2bfloat162_rn(top));
    Pair count = __heq2(__habs2(bitsAs<Pair>(word[0])), bitsAs<Pair>(tops));
#pragma unroll
    for (int w = 1; w < kRun / 2; w++)
      count = __hadd2(count, __heq2(__habs2(bitsAs<Pair>(word[w])), bitsAs<Pair>(tops)));
    return static_cast<float>(lower(count)) + static_cast<float>(upper(count));
  }

 private:
  static __device__ __half lower(__half2 x) { return __low2half(x); }
  static __device__ __half upper(__half2 x) { return __high2half(x); }
  static __device__ __nv_bfloat16 lower(__nv_bfloat162 x) { return __low2bfloat16(x); }
  static __device__ __nv_bfloat16 upper(__nv_bfloat162 x) { return __high2bfloat16(x); }
};

template <>
struct FlatRun<float> {
  float number[kRun] = {};

  __device__ void load(const float* data, unsigned run) {
#pragma unroll
    for (int part = 0; part < 2; part++) {
      const float4 all = __ldcs(reinterpret_cast<const float4*>(data) + 2 * size_t(run) + part);
      number[4 * part] = all.x, number[4 * part + 1] = all.y;
      number[4 * part + 2] = all.z, number[4 * part + 3] = all.w;
    }
  }
  __device__ void store(float* data, unsigned run) const {
#pragma unroll
    for (int part = 0; part < 2; part++) {
      reinterpret_cast<float4*>(data)[2 * size_t(run) + part] = make_float4(
          number[4 * part], number[4 * part + 1], number[4 * part + 2], number[4 * part + 3]);
    }
  }
  __device__ void set(int w, float2 both) { number[2 * w] = both.x, number[2 * w + 1] = both.y; }
  __device__ float2 pair(int w) const { return {number[2 * w], number[2 * w + 1]}; }
  __device__ uint32_t signs(int w) const {
    return __byte_perm(__float_as_uint(number[2 * w]), __float_as_uint(number[2 * w + 1]), 0x7632);
  }
  __device__ void turn(int w, uint32_t signs) {
    number[2 * w] = withSign(number[2 * w], __uint_as_float(signs << 16));
    number[2 * w + 1] = withSign(number[2 * w + 1], __uint_as_float(signs));
  }
  __device__ float largest() const {
    float most = fabsf(number[0]);
#pragma unroll
    for (int e = 1; e < kRun; e++) most = maxOrNaN(most, fabsf(number[e]));
    return most;
  }
  __device__ float countOf(float top) const {
    float count = 0;
#pragma unroll
    for (int e = 0; e < kRun; e++) count += fabsf(number[e]) == top ? 1.0f : 0.0f;
    return count;
  }
};

// Two magnitudes and the signs that go with them, times a scale: zeros come out positive.
__device__ inline uint32_t scaledPair(float2 magnitudes, uint32_t signs, uint32_t scales) {
  const uint32_t q = bitsAs<uint32_t>(__float22bfloat162_rn(magnitudes)) | (signs & kSigns);
  uint32_t y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(q), "r"(scales), "r"(0u));
  return y;
}

// Gives up what L2 holds of an aligned line, without a word on what is read there next.
inline constexpr unsigned kDiscardedLine = 128;
template <class G>
inline constexpr unsigned kLineRuns = kDiscardedLine / (kRun * sizeof(G));
__device__ inline void discardLine(const void* line) {
  asm volatile("discard.global.L2 [%0], 128;" ::"l"(line) : "memory");
}

// ---------------------------------------------------------------- gradients

// What of a gradient passes through the rounding of a magnitude of u steps; what flows to the scale from
// it goes to `sum`.
__device__ inline float passing(float gradient, float u, float& sum) {
  const float kept = atMost(u, kFp4Most<float>);
  const bool isInside = kept == u;
  sum += gradient * (roundE2m1(kept) - (isInside ? u : 0.0f));
  return isInside ? gradient : 0.0f;
}

// What flows to a group's largest magnitude, for each of those that are it.
__device__ inline float sharedBy(float gradient, float ties) {
  return ties > 0.0f ? __fdividef(gradient, ties) : 0.0f;
}

}  // namespace aq::cuda
