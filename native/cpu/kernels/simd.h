// simd.h: vector-friendly building blocks for the kernels of one level.
//
// Elementwise code is plain loops over a fixed number of lanes (64 bytes of T), which the compiler
// turns into the level's vectors. Because the lane count and the order of additions never change and
// no multiply-add is contracted (-ffp-contract=off), these kernels give the same bits at every level
// and thread count; only the GEMM micro-kernels, which use FMA, differ between levels.

template <class T>
inline constexpr int kLanes = 64 / int(sizeof(T));

// e^x to about 1 ulp, branch-free so that loops around it vectorize. x = n ln2 + r, |r| <= ln2/2;
// e^r by a degree-7 polynomial; 2^n by exponent arithmetic in two halves, so that results down to
// the smallest normal number and the overflow to infinity are right. NaN passes through.
inline float expOf(float x) {
  const float clamped = x > 89.0f ? 89.0f : (x < -104.0f ? -104.0f : x);
  const float n = roundEven(clamped * 1.44269504088896341f);
  float r =
      clamped - n * 0.693359375f;  // ln2 = 0.693359375 - 2.12194440e-4; the first part is exact
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // Cephes expf's minimax coefficients
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t whole = int32_t(n);
  const int32_t half = whole >> 1;
  const float a = __builtin_bit_cast(float, (half + 127) << 23);
  const float b = __builtin_bit_cast(float, (whole - half + 127) << 23);
  const float y = p * a * b;
  return x != x ? x : y;
}
inline double expOf(double x) { return std::exp(x); }

template <class T>
inline T sigmoidOf(T x) {
  return T(1) / (T(1) + expOf(-x));
}

// Sum of n values: one accumulator a lane, then a fixed tree over the lanes.
template <class T>
inline T sumOf(const T* x, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += x[i + j];
  for (int j = 0; j < L && i < n; i++, j++) lane[j] += x[i];
  for (int width = L / 2; width > 0; width /= 2)
    for (int j = 0; j < width; j++) lane[j] += lane[j + width];
  return lane[0];
}

template <class T>
inline T dotOf(const T* x, const T* y, int64_t n) {
  constexpr int L = kLanes<T>;
  T lane[L] = {};
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) lane[j] += x[i + j] * y[i + j];
  for (int j = 0; j < L && i < n; i++, j++) lane[j] += x[i] * y[i];
  for (int width = L / 2; width > 0; width /= 2)
    for (int j = 0; j < width; j++) lane[j] += lane[j + width];
  return lane[0];
}

// Largest and smallest of n values, starting from the given ones. A NaN is ignored.
template <class T>
inline void minMaxOf(const T* x, int64_t n, T& low, T& high) {
  constexpr int L = kLanes<T>;
  T lo[L], hi[L];
  for (int j = 0; j < L; j++) lo[j] = low, hi[j] = high;
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int j = 0; j < L; j++) {
      lo[j] = x[i + j] < lo[j] ? x[i + j] : lo[j];
      hi[j] = x[i + j] > hi[j] ? x[i + j] : hi[j];
    }
  for (int j = 0; j < L && i < n; i++, j++) {
    lo[j] = x[i] < lo[j] ? x[i] : lo[j];
    hi[j] = x[i] > hi[j] ? x[i] : hi[j];
  }
  for (int j = 0; j < L; j++) {
    low = lo[j] < low ? lo[j] : low;
    high = hi[j] > high ? hi[j] : high;
  }
}
