// gemm_kernel.h: the micro-kernel, one tile of C = A B held in registers.
//
// Vec<T> names the level's widest vector; everything else is written once. A tile has up to MR rows
// and NR columns. B is a packed panel: NR values for each k, padded with anything. A may lie in any
// strides, so a block of plain memory serves as well as a packed one.
//
// Each element of C is one chain of multiply-adds over k, whatever the tile's place or size, so the
// way a product is cut into tiles never shows in the result.

#if defined(AQ_LEVEL_AVX512)
template <class T>
struct Vec;
template <>
struct Vec<float> {
  using Type = __m512;
  static constexpr int kWidth = 16;
  static Type zero() { return _mm512_setzero_ps(); }
  static Type splat(float x) { return _mm512_set1_ps(x); }
  static Type load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Type x) { _mm512_storeu_ps(p, x); }
  static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
};
template <>
struct Vec<double> {
  using Type = __m512d;
  static constexpr int kWidth = 8;
  static Type zero() { return _mm512_setzero_pd(); }
  static Type splat(double x) { return _mm512_set1_pd(x); }
  static Type load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Type x) { _mm512_storeu_pd(p, x); }
  static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_pd(a, b, c); }
};
inline constexpr int kTileRows = 14, kTileVectors = 2;  // 28 of 32 registers accumulate
#elif defined(AQ_LEVEL_AVX2)
template <class T>
struct Vec;
template <>
struct Vec<float> {
  using Type = __m256;
  static constexpr int kWidth = 8;
  static Type zero() { return _mm256_setzero_ps(); }
  static Type splat(float x) { return _mm256_set1_ps(x); }
  static Type load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Type x) { _mm256_storeu_ps(p, x); }
  static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
};
template <>
struct Vec<double> {
  using Type = __m256d;
  static constexpr int kWidth = 4;
  static Type zero() { return _mm256_setzero_pd(); }
  static Type splat(double x) { return _mm256_set1_pd(x); }
  static Type load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Type x) { _mm256_storeu_pd(p, x); }
  static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_pd(a, b, c); }
};
inline constexpr int kTileRows = 6, kTileVectors = 2;  // 12 of 16 registers
#elif defined(AQ_LEVEL_NEON)
template <class T>
struct Vec;
template <>
struct Vec<float> {
  using Type = float32x4_t;
  static constexpr int kWidth = 4;
  static Type zero() { return vdupq_n_f32(0); }
  static Type splat(float x) { return vdupq_n_f32(x); }
  static Type load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Type x) { vst1q_f32(p, x); }
  static Type fma(Type a, Type b, Type c) { return vfmaq_f32(c, a, b); }
};
template <>
struct Vec<double> {
  using Type = float64x2_t;
  static constexpr int kWidth = 2;
  static Type zero() { return vdupq_n_f64(0); }
  static Type splat(double x) { return vdupq_n_f64(x); }
  static Type load(const double* p) { return vld1q_f64(p); }
  static void store(double* p, Type x) { vst1q_f64(p, x); }
  static Type fma(Type a, Type b, Type c) { return vfmaq_f64(c, a, b); }
};
inline constexpr int kTileRows = 8, kTileVectors = 3;  // 24 of 32 registers
#else
// 16-byte vectors by the compiler's vector extension: every 64-bit target has them. No fused
// multiply-add here: SSE2 has none.
template <class T>
struct Vec {
  typedef T Type __attribute__((vector_size(16)));
  static constexpr int kWidth = 16 / int(sizeof(T));
  static Type zero() { return Type{}; }
  static Type splat(T x) { return Type{} + x; }
  static Type load(const T* p) {
    Type x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(T* p, Type x) { std::memcpy(p, &x, sizeof x); }
  static Type fma(Type a, Type b, Type c) { return a * b + c; }
};
inline constexpr int kTileRows = 4, kTileVectors = 2;  // 8 of 16 registers
#endif

template <class T>
inline constexpr int kTileCols = kTileVectors* Vec<T>::kWidth;

// Full unrolling of the loops over the registers of a tile: they must not stay loops.
#if defined(__clang__)
#define AQ_UNROLL _Pragma("unroll")
#else
#define AQ_UNROLL _Pragma("GCC unroll 16")
#endif

// c [Rows, cols] (=, +=) A B (+ bias). Element (i, p) of A lies at a[i rs + p cs].
template <class T>
struct TileJob {
  int64_t depth;  // length of k
  const T* a;
  int64_t rs, cs;
  const T* b;  // [depth][kTileCols]
  T* c;
  int64_t ldc;
  int cols;
  bool accumulate;
  const T* bias;  // [cols], or null
};

template <class T, int Rows, bool UnitRows>
static void tileOf(const TileJob<T>& job) {
  using V = Vec<T>;
  constexpr int W = V::kWidth, N = kTileVectors;
  typename V::Type acc[Rows][N];
  AQ_UNROLL
  for (int i = 0; i < Rows; i++) {
    AQ_UNROLL
    for (int j = 0; j < N; j++) acc[i][j] = V::zero();
  }

  // Every third row gets a pointer and its neighbours are reached by an index register: one pointer
  // a row would not fit into the general registers.
  constexpr int P = (Rows + 2) / 3;
  const int64_t rs = UnitRows ? 1 : job.rs, cs = job.cs;
  const T* row[P];
  AQ_UNROLL
  for (int i = 0; i < P; i++) row[i] = job.a + 3 * i * rs;
  const T* b = job.b;
  for (int64_t k = job.depth; k > 0; k--) {
    typename V::Type column[N];
    AQ_UNROLL
    for (int j = 0; j < N; j++) column[j] = V::load(b + j * W);
    __builtin_prefetch(b + 16 * N * W);
    AQ_UNROLL
    for (int i = 0; i < Rows; i++) {
      const typename V::Type x = V::splat(row[i / 3][i % 3 * rs]);
      AQ_UNROLL
      for (int j = 0; j < N; j++) acc[i][j] = V::fma(x, column[j], acc[i][j]);
    }
    AQ_UNROLL
    for (int i = 0; i < P; i++) row[i] += cs;
    b += N * W;
  }

  if (job.cols == N * W) {
    AQ_UNROLL
    for (int i = 0; i < Rows; i++) {
      T* c = job.c + i * job.ldc;
      AQ_UNROLL
      for (int j = 0; j < N; j++) {
        typename V::Type x = acc[i][j];
        if (job.accumulate) x += V::load(c + j * W);
        if (job.bias) x += V::load(job.bias + j * W);
        V::store(c + j * W, x);
      }
    }
    return;
  }
  T edge[Rows][N * W];
  AQ_UNROLL
  for (int i = 0; i < Rows; i++) {
    AQ_UNROLL
    for (int j = 0; j < N; j++) V::store(edge[i] + j * W, acc[i][j]);
  }
  for (int i = 0; i < Rows; i++) {
    T* c = job.c + i * job.ldc;
    for (int j = 0; j < job.cols; j++) {
      T x = edge[i][j];
      if (job.accumulate) x += c[j];
      if (job.bias) x += job.bias[j];
      c[j] = x;
    }
  }
}

template <class T>
using TileFunction = void (*)(const TileJob<T>&);

template <class T, bool UnitRows, int Rows = 1>
inline TileFunction<T> tileFunction(int rows) {
  if constexpr (Rows == kTileRows) {
    return tileOf<T, Rows, UnitRows>;
  } else {
    return rows == Rows ? tileOf<T, Rows, UnitRows> : tileFunction<T, UnitRows, Rows + 1>(rows);
  }
}

// One tile of `rows` rows, 1 .. kTileRows.
template <class T>
inline void runTile(int rows, const TileJob<T>& job) {
  if (job.rs == 1) {
    (rows == kTileRows ? tileOf<T, kTileRows, true> : tileFunction<T, true>(rows))(job);
  } else {
    (rows == kTileRows ? tileOf<T, kTileRows, false> : tileFunction<T, false>(rows))(job);
  }
}
