// grid.cuh: the arithmetic of uniform integer grids, shared by every kernel that quantizes.
//
// The same operations in the same order as on the CPU (native/cpu/kernels/quantize.h, grid_code.h),
// each rounded by itself: the compiler must not fuse a product with the sum that follows, or codes
// next to a tie would differ between the devices. Hence the *Rn functions, which are never fused.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

namespace aq::cuda {

inline constexpr int32_t kPublishedRule = 1;  // of the parameter `rule`: the published code's
inline constexpr double kPublishedZeroLimit = 1e4;

// ---------------------------------------------------------------- roundings

__device__ inline float mulRn(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double mulRn(double a, double b) { return __dmul_rn(a, b); }
__device__ inline float addRn(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double addRn(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float divRn(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double divRn(double a, double b) { return __ddiv_rn(a, b); }

// Half to even for |x| < 2^22 (f32), 2^51 (f64), monotone beyond: callers clamp. Two additions at
// full rate, where the rounding instruction runs at an eighth of it.
__device__ inline float roundEven(float x) { return addRn(addRn(x, 12582912.0f), -12582912.0f); }
__device__ inline double roundEven(double x) {
  return addRn(addRn(x, 6755399441055744.0), -6755399441055744.0);
}

// Clamps that keep a NaN, so that it shows in what comes out.
__device__ inline float atLeast(float x, float least) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(least));
  return y;
}
__device__ inline float atMost(float x, float most) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(most));
  return y;
}
__device__ inline double atLeast(double x, double least) { return x < least ? least : x; }
__device__ inline double atMost(double x, double most) { return x > most ? most : x; }

// ---------------------------------------------------------------- values on a grid

// What one group's grid does to values: code = clamp(round(x/s + v) + z, 0, top), y = (code - z) s.
template <class T>
struct GridCode {
  T s, z, top;
  T inverse;  // 1/s rounded, or 0 where ratio() must divide

  __device__ GridCode(T scale, T zero, T largest)
      : s(scale), z(zero), top(largest), inverse(inverseOf(scale)) {}

  // x / s, correctly rounded where it is below 2^24 in size and not tiny; what is larger is clamped
  // and what is tiny rounds to zero, so that no code depends on it.
  __device__ T ratio(T x) const {
    if constexpr (sizeof(T) == 8) {
      return divRn(x, s);
    } else {
      if (inverse == 0) return divRn(x, s);  // the same for the whole group
      // Two residual corrections of x (1/s): the first makes the quotient faithful, the second,
      // whose residual is then exact, rounds it correctly (Markstein). No branch here.
      const float q = mulRn(x, inverse);
      const float once = __fmaf_rn(__fmaf_rn(-q, s, x), inverse, q);
      const float twice = __fmaf_rn(__fmaf_rn(-once, s, x), inverse, once);
      return fabsf(q) < 16777216.0f ? twice : q;  // infinities and NaN stay what they are
    }
  }

  // The code of u = x/s (+ v) before it is clamped, and clamped. Both are whole numbers or NaN.
  __device__ T place(T u) const { return addRn(roundEven(u), z); }
  __device__ T clamp(T code) const { return atMost(atLeast(code, T(0)), top); }

  __device__ T code(T x) const { return clamp(place(ratio(x))); }
  __device__ T code(T x, T v) const { return clamp(place(addRn(ratio(x), v))); }
  __device__ T value(T code) const { return mulRn(addRn(code, -z), s); }

  __device__ T fakeQuant(T x) const { return value(code(x)); }
  __device__ T fakeQuant(T x, T v) const { return value(code(x, v)); }

 private:
  // Within these bounds neither the inverse nor a residual that matters is subnormal.
  __device__ static T inverseOf(T s) {
    if constexpr (sizeof(T) == 8) {
      return 0;
    } else {
      return s > 0x1p-60f && s < 0x1p60f ? __frcp_rn(s) : 0.0f;
    }
  }
};

// The largest code of a grid.
template <class T>
__host__ __device__ constexpr T topCode(int32_t bits) {
  return T((1 << bits) - 1);
}

// ---------------------------------------------------------------- grids from extremes

// The parameters of a grid in the arithmetic of T.
template <class T>
struct GridRule {
  T top;     // largest code
  T levels;  // steps between the extremes: top, or 2^(bits-1) - 1 when symmetric
  T middle;  // zero point of a symmetric grid
  T floor;
  bool symmetric;
  bool published;
  bool roundF16;

  template <class P>
  static GridRule of(const P& p, bool isRounded) {
    GridRule r = {};
    const bool isPublished = p.rule == kPublishedRule;
    r.top = topCode<T>(p.bits);
    r.levels = p.symmetric ? T((1 << (p.bits - 1)) - 1) : r.top;
    r.middle = T((1 << (p.bits - 1)) - (isPublished ? 1 : 0));
    r.floor = static_cast<T>(p.floor);
    r.symmetric = p.symmetric != 0;
    r.published = isPublished;
    r.roundF16 = isRounded;
    return r;
  }

  __device__ T rawScale(T low, T high) const {
    const T above = fabs(high), below = fabs(low);
    return divRn(symmetric ? (above > below ? above : below) : addRn(high, -low), levels);
  }

  __device__ T scale(T low, T high) const {
    const T raw = rawScale(low, high);
    const T s = raw > floor ? raw : floor;
    return roundF16 ? static_cast<T>(__half2float(__float2half_rn(static_cast<float>(s)))) : s;
  }

  // The code that stands for zero, where s is the scale in use.
  __device__ T zeroPoint(T low, T s) const {
    if (symmetric) return middle;
    const T z = divRn(-low, s);
    if (!published) {
      const T code = roundEven(z);
      return code < top ? code : top;
    }
    const T limit = static_cast<T>(kPublishedZeroLimit);
    return roundEven(z < -limit ? -limit : (z > limit ? limit : z));
  }
};

// e^(x - n log 2), with n the whole number next to x / log 2.
__device__ inline float expOfRest(float x, float n) {
  float r = addRn(x, -mulRn(n, 0.693359375f));
  r = addRn(r, mulRn(n, 2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = addRn(mulRn(p, r), 1.3981999507e-3f);
  p = addRn(mulRn(p, r), 8.3334519073e-3f);
  p = addRn(mulRn(p, r), 4.1665795894e-2f);
  p = addRn(mulRn(p, r), 1.6666665459e-1f);
  p = addRn(mulRn(p, r), 5.0000001201e-1f);
  return addRn(addRn(mulRn(p, mulRn(r, r)), r), 1.0f);
}

// e^x of the CPU backend, operation by operation: clipping factors decide scales, and scales codes.
__device__ inline float expLikeCpu(float x) {
  const float clamped = x > 89.0f ? 89.0f : (x < -104.0f ? -104.0f : x);
  const float n = roundEven(mulRn(clamped, 1.44269504088896341f));
  const float p = expOfRest(clamped, n);
  const int whole = static_cast<int>(n), half = whole >> 1;
  const float y = mulRn(mulRn(p, __int_as_float((half + 127) << 23)),
                        __int_as_float((whole - half + 127) << 23));
  return x != x ? x : y;
}
__device__ inline double expLikeCpu(double x) { return exp(x); }

template <class T>
__device__ inline T clipFactor(T logit) {
  return divRn(T(1), addRn(T(1), expLikeCpu(-logit)));
}

// The learned logits of the clipping factors: one for every extreme of every group, or of each
// group for its largest (the first half) and smallest value, or none.
template <class T>
struct ClipLogits {
  const T* logits;  // null: none, and every factor is 1
  int64_t groups;   // of the whole matrix
  bool shared;

  __device__ T high(int64_t group) const { return logits ? logits[shared ? 0 : group] : T(0); }
  __device__ T low(int64_t group) const {
    return logits ? logits[shared ? 0 : groups + group] : T(0);
  }
  __device__ T factor(T logit) const { return logits ? clipFactor(logit) : T(1); }
};

// The clipping factors of a group, each worked out by every other lane of it. All lanes of a warp
// take part.
template <class T>
struct ClipFactors {
  T high = T(1), low = T(1);

  __device__ ClipFactors(const ClipLogits<T>& clip, int64_t group) {
    if (!clip.logits) return;
    const bool isLow = threadIdx.x & 1;
    const T own = clipFactor(isLow ? clip.low(group) : clip.high(group));
    const T other = __shfl_xor_sync(~0u, own, 1);
    high = isLow ? other : own;
    low = isLow ? own : other;
  }
};

// ---------------------------------------------------------------- groups

// A matrix [M, K] cut along K: `group` columns each, the last of a row may be short.
struct Groups {
  int64_t count;   // of the whole matrix
  int64_t cols;    // K
  int64_t group;   // columns of a group, K where the parameter was 0
  int64_t perRow;  // G
  bool ragged;     // rows end with a short group

  static Groups of(int64_t numel, int64_t cols, int32_t size) {
    Groups g = {};
    g.cols = cols;
    g.group = size > 0 && size < cols ? size : (cols > 0 ? cols : 1);
    g.perRow = (cols + g.group - 1) / g.group;
    g.count = cols > 0 ? numel / cols * g.perRow : 0;
    g.ragged = cols % g.group != 0;
    return g;
  }

  // Whether every group starts at a multiple of `width` elements and has a multiple of them.
  bool hasWidth(int64_t width) const { return cols % width == 0 && group % width == 0; }

  // The same groups counted in vectors of `width` elements.
  Groups inVectors(int64_t width) const {
    Groups g = *this;
    g.cols /= width;
    g.group /= width;
    return g;
  }

  // The group of an element of the matrix.
  __device__ int64_t indexOf(int64_t element) const {
    if (element >> 32) return place(element, cols, group, perRow);
    return place(uint32_t(element), uint32_t(cols), uint32_t(group), uint32_t(perRow));
  }

  // The row of a group, and its first column.
  __device__ int64_t row(int64_t index) const { return perRow == 1 ? index : divide(index); }
  __device__ int64_t column(int64_t index) const {
    return perRow == 1 ? 0 : (index - divide(index) * perRow) * group;
  }

  // The first element of a group, and its length.
  __device__ int64_t begin(int64_t index) const {
    return ragged ? row(index) * cols + column(index) : index * group;
  }
  __device__ int64_t length(int64_t index) const {
    if (!ragged) return group;
    const int64_t rest = cols - column(index);
    return rest < group ? rest : group;
  }

 private:
  // index / perRow; divisions of 64 bits cost many times those of 32.
  __device__ int64_t divide(int64_t index) const {
    return (index | perRow) >> 32 ? index / perRow : uint32_t(index) / uint32_t(perRow);
  }

  template <class I>
  __device__ I place(I element, I rowLength, I groupLength, I rowGroups) const {
    if (!ragged) return element / groupLength;
    return element / rowLength * rowGroups + element % rowLength / groupLength;
  }
};

}  // namespace aq::cuda
