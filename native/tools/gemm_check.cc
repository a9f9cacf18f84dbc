// gemm_check.cc: checks and times the CPU kernels that carry the run time, without Node: products,
// attention, inverse, at every SIMD level that this processor has. Each kernel is compared with
// plain loops in double, and the bits with one and with several threads must be equal.
//
//   g++ -std=gnu++20 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -I.
//     native/tools/gemm_check.cc native/cpu/parallel.cc -ldl -pthread -o gemm_check
//   ./gemm_check                                  correctness
//   ./gemm_check time [libopenblas.so [level]]    GFLOP/s, beside OpenBLAS's cblas_sgemm if named
//
// For the latter set OPENBLAS_NUM_THREADS, and OPENBLAS_CORETYPE on processors it does not know.
#if !defined(AQ_LEVEL)
#include "native/cpu/prelude.h"

#include <dlfcn.h>

#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

// The kernel headers, once per level: this file includes itself with AQ_LEVEL defined.
#define AQ_CHECK_SELF "native/tools/gemm_check.cc"
#define AQ_LEVEL plain
#define AQ_LEVEL_PLAIN 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_PLAIN
#undef AQ_UNROLL
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define AQ_LEVEL avx2
#define AQ_LEVEL_AVX2 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_AVX2
#undef AQ_UNROLL
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#define AQ_LEVEL avx512
#define AQ_LEVEL_AVX512 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_AVX512
#undef AQ_UNROLL
#pragma GCC pop_options
#elif defined(__aarch64__)
#define AQ_LEVEL neon
#define AQ_LEVEL_NEON 1
#include AQ_CHECK_SELF
#undef AQ_LEVEL
#undef AQ_LEVEL_NEON
#undef AQ_UNROLL
#endif

namespace {

using namespace aq::cpu;
using std::vector;

struct Level {
  const char* name;
  bool usable;
  aq_kernel fakeQuantGemm, matmul, attention, attentionGrad, inverse;
};

#define AQ_LEVEL_ROW(NS, USABLE) \
  { #NS, USABLE, NS::fake_quant_gemm, NS::matmul, NS::attention, NS::attention_grad, NS::inverse }
const Level kLevels[] = {
    AQ_LEVEL_ROW(plain, true),
#if defined(__x86_64__)
    AQ_LEVEL_ROW(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
    AQ_LEVEL_ROW(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")),
#elif defined(__aarch64__)
    AQ_LEVEL_ROW(neon, true),
#endif
};

int failures = 0;
int checks = 0;

void expect(bool good, const std::string& what, double got) {
  checks++;
  if (good) return;
  failures++;
  std::printf("FAILED %s: %.3g\n", what.c_str(), got);
}

uint64_t randomState = 88172645463325252ull;
double uniform() {  // (-1, 1)
  randomState ^= randomState << 13;
  randomState ^= randomState >> 7;
  randomState ^= randomState << 17;
  return double(randomState >> 11) / 4503599627370496.0 - 1.0;
}
template <class T>
vector<T> randomVector(int64_t n) {
  vector<T> x(size_t(n), T(0));
  for (T& v : x) v = T(uniform());
  return x;
}

template <class T>
aq_view view(const vector<T>& x, std::vector<int64_t> dims) {
  aq_view v{};
  v.data = const_cast<T*>(x.data());
  v.dtype = sizeof(T) == 8 ? AQ_F64 : AQ_F32;
  v.rank = int32_t(dims.size());
  for (size_t i = 0; i < dims.size(); i++) v.dim[i] = dims[i];
  return v;
}

// The shortest of several runs, in seconds: of processor time for one thread, so that other work on
// the machine matters little, else of real time.
template <class Body>
double bestTime(const Body& body) {
  const auto now = [] {
    timespec t;
    clock_gettime(threadCount() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
  };
  body();
  const double enough = threadCount() == 1 ? 0.4 : 0.8;
  double best = 1e30, total = 0;
  for (int i = 0; i < 3 || (total < enough && i < 1000); i++) {
    const double start = now();
    body();
    const double took = now() - start;
    total += took;
    if (took < best) best = took;
  }
  return best;
}

template <class T>
struct Grid {
  vector<T> scale, zero;
  int64_t groups = 0;
};
template <class T>
Grid<T> randomGrid(int64_t rows, int64_t cols, int64_t group, int bits) {
  Grid<T> grid;
  grid.groups = ceilDiv(cols, groupSize(int32_t(group), cols));
  for (int64_t i = 0; i < rows * grid.groups; i++) {
    grid.scale.push_back(T((1.2 + 0.3 * uniform()) / ((1 << bits) - 1)));
    grid.zero.push_back(T(std::nearbyint(((1 << bits) - 1) * (0.5 + 0.2 * uniform()))));
  }
  return grid;
}
template <class T>
vector<T> quantized(const vector<T>& x, const Grid<T>& grid, int64_t rows, int64_t cols,
                    int64_t group, int bits) {
  vector<T> y(x.size());
  group = groupSize(int32_t(group), cols);
  const T top = T((1 << bits) - 1);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) {
      const T s = grid.scale[size_t(r * grid.groups + c / group)];
      const T z = grid.zero[size_t(r * grid.groups + c / group)];
      const T code = std::min(std::max(std::nearbyint(x[size_t(r * cols + c)] / s) + z, T(0)), top);
      y[size_t(r * cols + c)] = (code - z) * s;
    }
  return y;
}

// Runs `kernel` with one and with three threads: the outputs must have the same bits.
template <class T>
int32_t runTwice(aq_kernel kernel, const vector<aq_view>& in, vector<vector<T>*> out,
                 const vector<aq_view>& outViews, const void* params, const std::string& what) {
  aq_error error{};
  vector<vector<T>> start;
  for (vector<T>* o : out) start.push_back(*o);
  setThreadCount(1);
  const int32_t code = kernel(nullptr, in.data(), int32_t(in.size()), outViews.data(),
                              int32_t(outViews.size()), params, &error);
  vector<vector<T>> first;
  for (size_t i = 0; i < out.size(); i++) {
    first.push_back(*out[i]);
    std::copy(start[i].begin(), start[i].end(), out[i]->begin());
  }
  setThreadCount(3);
  const int32_t again = kernel(nullptr, in.data(), int32_t(in.size()), outViews.data(),
                               int32_t(outViews.size()), params, &error);
  expect(code == again, what + ": code with 3 threads", again);
  for (size_t i = 0; i < out.size(); i++)
    expect(out[i]->empty() ||
               std::memcmp(out[i]->data(), first[i].data(), first[i].size() * sizeof(T)) == 0,
           what + ": bits with 3 threads, output " + std::to_string(i), 0);
  if (code != AQ_OK) std::printf("%s: %s\n", what.c_str(), error.text);
  return code;
}

// Largest |x - y|, relative to the largest |y|.
template <class T>
double distance(const vector<T>& x, const vector<double>& y) {
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < y.size(); i++) {
    const double d = std::fabs(double(x[i]) - y[i]);
    if (!(d <= worst)) worst = d;
    scale = std::max(scale, std::fabs(y[i]));
  }
  return worst / scale;
}
template <class T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-12 : 2e-5;

template <class T>
void checkProduct(const Level& level, int64_t m, int64_t n, int64_t k, int mask) {
  const bool ta = mask & 1, tb = mask & 2, bias = mask & 4, accumulate = mask & 8;
  const bool qa = mask & 16, qb = mask & 32;
  const int64_t aRows = ta ? k : m, aCols = ta ? m : k, bRows = tb ? n : k, bCols = tb ? k : n;
  const int64_t aGroup = 0, bGroup = 13;
  const auto a = randomVector<T>(aRows * aCols), b = randomVector<T>(bRows * bCols);
  const auto biasValues = randomVector<T>(n);
  auto c = randomVector<T>(m * n);
  const Grid<T> ga = randomGrid<T>(aRows, aCols, aGroup, 4),
                gb = randomGrid<T>(bRows, bCols, bGroup, 3);
  const auto ahat = qa ? quantized(a, ga, aRows, aCols, aGroup, 4) : a;
  const auto bhat = qb ? quantized(b, gb, bRows, bCols, bGroup, 3) : b;
  vector<double> want(size_t(m * n), 0.0);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = (accumulate ? double(c[size_t(i * n + j)]) : 0) +
                   (bias ? double(biasValues[size_t(j)]) : 0);
      for (int64_t p = 0; p < k; p++)
        sum += double(ahat[size_t(ta ? p * m + i : i * k + p)]) *
               double(bhat[size_t(tb ? j * k + p : p * n + j)]);
      want[size_t(i * n + j)] = sum;
    }
  const std::string what = std::string(level.name) + (sizeof(T) == 8 ? " f64" : " f32") +
                           " product " + std::to_string(m) + "x" + std::to_string(n) + "x" +
                           std::to_string(k) + " mask " + std::to_string(mask);
  const aq_view none{};
  const vector<aq_view> in = {view(a, {aRows, aCols}),
                              view(b, {bRows, bCols}),
                              qa ? view(ga.scale, {aRows, ga.groups}) : none,
                              qa ? view(ga.zero, {aRows, ga.groups}) : none,
                              qb ? view(gb.scale, {bRows, gb.groups}) : none,
                              qb ? view(gb.zero, {bRows, gb.groups}) : none,
                              bias ? view(biasValues, {n}) : none};
  const aq_fake_quant_gemm_params p{ta, tb, 4, int32_t(aGroup), 3, int32_t(bGroup), accumulate, 0};
  const auto start = c;
  runTwice<T>(level.fakeQuantGemm, in, {&c}, {view(c, {m, n})}, &p, what);
  const double d = distance(c, want);
  expect(d < kTolerance<T>, what, d);
  if (qa || qb) {  // the same bits as quantizing first
    auto c2 = start;
    vector<aq_view> plainIn = {
        view(ahat, {aRows, aCols}), view(bhat, {bRows, bCols}), none, none, none, none, in[6]};
    runTwice<T>(level.fakeQuantGemm, plainIn, {&c2}, {view(c2, {m, n})}, &p,
                what + " materialized");
    expect(std::memcmp(c.data(), c2.data(), c.size() * sizeof(T)) == 0, what + ": bits of fusing",
           0);
  }
}

template <class T>
void checkMatmul(const Level& level, int64_t batch, int64_t m, int64_t n, int64_t k, int mask) {
  const bool ta = mask & 1, tb = mask & 2;
  const auto a = randomVector<T>(batch * m * k), b = randomVector<T>(batch * k * n);
  vector<T> y(size_t(batch * m * n), T(0));
  vector<double> want(y.size(), 0.0);
  for (int64_t q = 0; q < batch; q++)
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int64_t p = 0; p < k; p++)
          sum += double(a[size_t(q * m * k + (ta ? p * m + i : i * k + p))]) *
                 double(b[size_t(q * k * n + (tb ? j * k + p : p * n + j))]);
        want[size_t((q * m + i) * n + j)] = -0.5 * sum;
      }
  const aq_matmul_params p{-0.5, ta, tb};
  const std::string what = std::string(level.name) + " matmul mask " + std::to_string(mask);
  runTwice<T>(level.matmul,
              {view(a, {batch, ta ? k : m, ta ? m : k}), view(b, {batch, tb ? n : k, tb ? k : n})},
              {&y}, {view(y, {batch, m, n})}, &p, what);
  const double d = distance(y, want);
  expect(d < kTolerance<T>, what, d);
}

struct AttentionShape {
  int64_t batch, tokens, heads, kvHeads, size;
};

template <class T>
void checkAttention(const Level& level, const AttentionShape& s, bool grids) {
  const int64_t B = s.batch, N = s.tokens, H = s.heads, G = s.kvHeads, D = s.size;
  const int bits = 4;
  const double scale = 1.0 / std::sqrt(double(D)) * 2;
  const auto q = randomVector<T>(B * N * H * D), k = randomVector<T>(B * N * G * D);
  const auto v = randomVector<T>(B * N * G * D), go = randomVector<T>(B * N * H * D);
  const auto gq = randomGrid<T>(B * N, H * D, D, bits), gk = randomGrid<T>(B * N, G * D, D, bits);
  const auto gv = randomGrid<T>(B * N, G * D, D, bits);
  const auto qh = grids ? quantized(q, gq, B * N, H * D, D, bits) : q;
  const auto kh = grids ? quantized(k, gk, B * N, G * D, D, bits) : k;
  const auto vh = grids ? quantized(v, gv, B * N, G * D, D, bits) : v;
  vector<double> wantO(q.size(), 0.0), wantLse(size_t(B * H * N), 0.0);
  vector<double> wantQ(q.size(), 0.0), wantK(k.size(), 0.0), wantV(v.size(), 0.0);
  vector<double> w(size_t(N), 0.0), dp(size_t(N), 0.0);
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < H; h++)
      for (int64_t i = 0; i < N; i++) {
        const T* qi = &qh[size_t(((b * N + i) * H + h) * D)];
        const T* gi = &go[size_t(((b * N + i) * H + h) * D)];
        double* oi = &wantO[size_t(((b * N + i) * H + h) * D)];
        const auto row = [&](int64_t j) { return size_t(((b * N + j) * G + h / (H / G)) * D); };
        double top = -1e300, sum = 0, delta = 0;
        for (int64_t j = 0; j <= i; j++) {
          double x = 0;
          for (int64_t d = 0; d < D; d++) x += double(qi[d]) * double(kh[row(j) + size_t(d)]);
          w[size_t(j)] = x * scale;
          top = std::max(top, w[size_t(j)]);
        }
        for (int64_t j = 0; j <= i; j++) sum += std::exp(w[size_t(j)] - top);
        wantLse[size_t((b * H + h) * N + i)] = top + std::log(sum);
        for (int64_t j = 0; j <= i; j++) {
          w[size_t(j)] = std::exp(w[size_t(j)] - top) / sum;
          dp[size_t(j)] = 0;
          for (int64_t d = 0; d < D; d++) {
            oi[d] += w[size_t(j)] * double(vh[row(j) + size_t(d)]);
            dp[size_t(j)] += double(gi[d]) * double(vh[row(j) + size_t(d)]);
            wantV[row(j) + size_t(d)] += w[size_t(j)] * double(gi[d]);
          }
          delta += w[size_t(j)] * dp[size_t(j)];
        }
        for (int64_t j = 0; j <= i; j++) {
          const double ds = w[size_t(j)] * (dp[size_t(j)] - delta) * scale;
          for (int64_t d = 0; d < D; d++) {
            wantQ[size_t(((b * N + i) * H + h) * D + d)] += ds * double(kh[row(j) + size_t(d)]);
            wantK[row(j) + size_t(d)] += ds * double(qi[d]);
          }
        }
      }
  const std::string what = std::string(level.name) + (sizeof(T) == 8 ? " f64" : " f32") +
                           " attention " + std::to_string(B) + "x" + std::to_string(N) + " heads " +
                           std::to_string(H) + "/" + std::to_string(G) + " size " +
                           std::to_string(D) + (grids ? " grids" : "");
  const aq_view none{};
  vector<aq_view> in = {view(q, {B, N, H * D}), view(k, {B, N, G * D}), view(v, {B, N, G * D})};
  for (const auto* grid : {&gq, &gk, &gv}) {
    in.push_back(grids ? view(grid->scale, {B * N, grid->groups}) : none);
    in.push_back(grids ? view(grid->zero, {B * N, grid->groups}) : none);
  }
  vector<T> o(q.size(), T(0)), lse(wantLse.size(), T(0));
  const aq_attention_params p{scale, int32_t(H), int32_t(G), bits, 0};
  runTwice<T>(level.attention, in, {&o, &lse}, {view(o, {B, N, H * D}), view(lse, {B, H, N})}, &p,
              what);
  expect(distance(o, wantO) < kTolerance<T>, what + " o", distance(o, wantO));
  expect(distance(lse, wantLse) < kTolerance<T>, what + " lse", distance(lse, wantLse));
  in.push_back(view(o, {B, N, H * D}));
  in.push_back(view(lse, {B, H, N}));
  in.push_back(view(go, {B, N, H * D}));
  vector<T> dq(q.size(), T(0)), dk(k.size(), T(0)), dv(v.size(), T(0));
  const aq_attention_grad_params pg{scale, int32_t(H), int32_t(G), bits, 0};
  runTwice<T>(level.attentionGrad, in, {&dq, &dk, &dv},
              {view(dq, {B, N, H * D}), view(dk, {B, N, G * D}), view(dv, {B, N, G * D})}, &pg,
              what);
  const double tolerance = kTolerance<T> * 2;
  expect(distance(dq, wantQ) < tolerance, what + " gq", distance(dq, wantQ));
  expect(distance(dk, wantK) < tolerance, what + " gk", distance(dk, wantK));
  expect(distance(dv, wantV) < tolerance, what + " gv", distance(dv, wantV));
}

// kind 0: dominant by rows; 1: dominant by columns; 2: general (needs pivots); 3: one is singular.
template <class T>
void checkInverse(const Level& level, int64_t batch, int64_t n, int kind, int pivot) {
  auto a = randomVector<T>(batch * n * n);
  for (int64_t q = 0; q < batch; q++)
    for (int64_t i = 0; i < n; i++) {
      T* m = a.data() + q * n * n;
      if (kind < 2) {
        T off = 0;
        for (int64_t j = 0; j < n; j++)
          if (j != i) off += std::fabs(kind == 0 ? m[i * n + j] : m[j * n + i]);
        m[i * n + i] = (off / T(0.9) + T(0.1)) * (m[i * n + i] < 0 ? T(-1) : T(1));
      } else if (n > 1 && i == 0) {
        m[0] = T(0);
      }
    }
  const std::string what = std::string(level.name) + (sizeof(T) == 8 ? " f64" : " f32") +
                           " inverse " + std::to_string(n) + " kind " + std::to_string(kind);
  if (kind == 3)  // two equal rows
    for (int64_t j = 0; j < n; j++)
      a[size_t((batch - 1) * n * n + (n - 1) * n + j)] =
          n > 1 ? a[size_t((batch - 1) * n * n + j)] : T(0);
  vector<T> x(a.size(), T(0));
  const aq_inverse_params p{pivot, 0};
  if (kind == 3) {
    for (int64_t j = 0; j < n; j++) a[size_t((batch - 1) * n * n + j * n)] = T(0);
    aq_error error{};
    const aq_view in = view(a, {batch, n, n}), out = view(x, {batch, n, n});
    const int32_t code = level.inverse(nullptr, &in, 1, &out, 1, &p, &error);
    expect(code == AQ_NUMERIC, what + ": code", code);
    expect(std::strstr(error.text, ("matrix " + std::to_string(batch - 1)).c_str()) != nullptr,
           what + ": " + error.text, 0);
    return;
  }
  const int32_t code = runTwice<T>(level.inverse, {view(a, {batch, n, n})}, {&x},
                                   {view(x, {batch, n, n})}, &p, what);
  expect(code == AQ_OK, what + ": code", code);
  double worst = 0;
  for (int64_t q = 0; q < batch; q++) {
    double square = 0;
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) {
        double sum = i == j ? 1 : 0;
        for (int64_t r = 0; r < n; r++)
          sum -=
              double(a[size_t(q * n * n + i * n + r)]) * double(x[size_t(q * n * n + r * n + j)]);
        square += sum * sum;
      }
    worst = std::max(worst, std::sqrt(square / double(n)));
  }
  const double tolerance = sizeof(T) == 8 ? (kind < 2 ? 1e-13 : 1e-9) : (kind < 2 ? 1e-5 : 2e-2);
  expect(worst <= tolerance, what + ": residual", worst);
}

template <class T>
void checkLevel(const Level& level) {
  const int64_t sizes[] = {1, 3, 17, 33, 100};
  for (int64_t m : sizes)
    for (int64_t n : sizes)
      for (int64_t k : sizes) checkProduct<T>(level, m, n, k, int((m * 7 + n * 3 + k) % 64));
  for (int mask = 0; mask < 64; mask++) checkProduct<T>(level, 45, 71, 131, mask);
  for (int mask : {0, 17, 35, 50, 63}) checkProduct<T>(level, 190, 150, 901, mask);
  checkProduct<T>(level, 5, 3, 0, 12);
  for (int mask = 0; mask < 4; mask++) {
    checkMatmul<T>(level, 5, 17, 33, 19, mask);
    checkMatmul<T>(level, 1, 64, 64, 64, mask);
  }
  const AttentionShape shapes[] = {{1, 1, 1, 1, 1},    {2, 7, 2, 1, 3},    {1, 65, 4, 2, 32},
                                   {2, 130, 2, 2, 17}, {1, 300, 3, 1, 64}, {1, 70, 1, 1, 129},
                                   {3, 33, 4, 4, 8},   {1, 600, 2, 2, 16}};
  for (const AttentionShape& shape : shapes)
    for (bool grids : {false, true}) checkAttention<T>(level, shape, grids);
  for (int64_t n : {1, 2, 3, 7, 17, 33, 64, 100, 129})
    for (int kind = 0; kind < 4; kind++)
      if (n > 1 || kind != 2) checkInverse<T>(level, 3, n, kind, 0);
  checkInverse<T>(level, 2, 64, 0, 1);
}

using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int,
                       float, float*, int);

void timeProducts(const Level& level, Sgemm sgemm) {
  struct Shape {
    int64_t m, n, k;
    int ta, tb;
    bool quantized;
  };
  const Shape shapes[] = {
      {512, 512, 512, 0, 0, false},    {1024, 1024, 1024, 0, 0, false},
      {2048, 2048, 2048, 0, 0, false}, {2048, 512, 512, 0, 1, true},
      {2048, 1376, 512, 0, 1, true},   {2048, 512, 1376, 0, 1, true},
      {2048, 512, 512, 0, 0, true},    {2048, 512, 1376, 0, 0, true},
      {2048, 1376, 512, 0, 0, true},   {512, 512, 2048, 1, 0, true},
      {1376, 512, 2048, 1, 0, true},   {512, 1376, 2048, 1, 0, true},
      {512, 704, 256, 0, 1, true},     {512, 256, 704, 0, 1, true},
      {512, 128, 256, 0, 1, true},     {704, 256, 512, 1, 0, true},
      {512, 256, 128, 0, 0, true},     {128, 256, 512, 1, 0, true},
  };
  std::printf("%-8s %28s %10s %10s %10s %10s   GFLOP/s\n", level.name, "m n k trans", "plain",
              "quantized", "2 threads", "OpenBLAS");
  for (const Shape& s : shapes) {
    const int64_t aRows = s.ta ? s.k : s.m, aCols = s.ta ? s.m : s.k;
    const int64_t bRows = s.tb ? s.n : s.k, bCols = s.tb ? s.k : s.n;
    const auto a = randomVector<float>(aRows * aCols), b = randomVector<float>(bRows * bCols);
    const auto ga = randomGrid<float>(aRows, aCols, 0, 4),
               gb = randomGrid<float>(bRows, bCols, 128, 4);
    vector<float> c(size_t(s.m * s.n), 0.0f);
    const aq_view none{};
    const aq_view in[7] = {
        view(a, {aRows, aCols}), view(b, {bRows, bCols}), none, none, none, none, none};
    const aq_view inq[7] = {in[0],
                            in[1],
                            view(ga.scale, {aRows, ga.groups}),
                            view(ga.zero, {aRows, ga.groups}),
                            view(gb.scale, {bRows, gb.groups}),
                            view(gb.zero, {bRows, gb.groups}),
                            none};
    const aq_view out = view(c, {s.m, s.n});
    const aq_fake_quant_gemm_params p{s.ta, s.tb, 4, 0, 4, 128, 0, 0};
    aq_error error{};
    const double work = 2e-9 * double(s.m) * double(s.n) * double(s.k);
    setThreadCount(1);
    const double one =
        work / bestTime([&] { level.fakeQuantGemm(nullptr, in, 7, &out, 1, &p, &error); });
    const double fused =
        work / bestTime([&] { level.fakeQuantGemm(nullptr, inq, 7, &out, 1, &p, &error); });
    setThreadCount(2);
    const double two =
        work / bestTime([&] {
          level.fakeQuantGemm(nullptr, s.quantized ? inq : in, 7, &out, 1, &p, &error);
        });
    double peer = 0;
    setThreadCount(1);
    if (sgemm)
      peer = work / bestTime([&] {
               sgemm(101, s.ta ? 112 : 111, s.tb ? 112 : 111, int(s.m), int(s.n), int(s.k), 1.0f,
                     a.data(), int(aCols), b.data(), int(bCols), 0.0f, c.data(), int(s.n));
             });
    std::printf("%6lld %6lld %6lld   %s%s %16.1f %10.1f %10.1f %10.1f\n", (long long)s.m,
                (long long)s.n, (long long)s.k, s.ta ? "T" : "N", s.tb ? "T" : "N", one, fused, two,
                peer);
  }
}

void timeAttention(const Level& level) {
  const AttentionShape shapes[] = {
      {1, 2048, 8, 8, 64}, {4, 512, 8, 4, 32}, {4, 512, 8, 8, 64}, {1, 2048, 4, 4, 128}};
  for (const AttentionShape& s : shapes) {
    const int64_t B = s.batch, N = s.tokens, H = s.heads, G = s.kvHeads, D = s.size;
    const auto q = randomVector<float>(B * N * H * D), k = randomVector<float>(B * N * G * D);
    const auto v = randomVector<float>(B * N * G * D), go = randomVector<float>(B * N * H * D);
    const auto gq = randomGrid<float>(B * N, H * D, D, 4),
               gk = randomGrid<float>(B * N, G * D, D, 4);
    vector<float> o(q.size()), lse(size_t(B * H * N)), dq(q.size()), dk(k.size()), dv(v.size());
    const aq_view gridQ[2] = {view(gq.scale, {B * N, H}), view(gq.zero, {B * N, H})};
    const aq_view gridK[2] = {view(gk.scale, {B * N, G}), view(gk.zero, {B * N, G})};
    const aq_view in[12] = {view(q, {B, N, H * D}),
                            view(k, {B, N, G * D}),
                            view(v, {B, N, G * D}),
                            gridQ[0],
                            gridQ[1],
                            gridK[0],
                            gridK[1],
                            gridK[0],
                            gridK[1],
                            view(o, {B, N, H * D}),
                            view(lse, {B, H, N}),
                            view(go, {B, N, H * D})};
    const aq_view out[2] = {in[9], in[10]};
    const aq_view grads[3] = {view(dq, {B, N, H * D}), view(dk, {B, N, G * D}),
                              view(dv, {B, N, G * D})};
    const aq_attention_params p{0.125, int32_t(H), int32_t(G), 4, 0};
    const aq_attention_grad_params pg{0.125, int32_t(H), int32_t(G), 4, 0};
    aq_error error{};
    const double work =
        2e-9 * double(B * H * D) * double(N) * double(N + 1);  // 2 products, half masked
    for (int threads = 1; threads <= 2; threads++) {
      setThreadCount(threads);
      const double forward =
          work / bestTime([&] { level.attention(nullptr, in, 9, out, 2, &p, &error); });
      const double backward = 2.5 * work / bestTime([&] {
                                level.attentionGrad(nullptr, in, 12, grads, 3, &pg, &error);
                              });
      std::printf(
          "%-8s attention B %lld T %lld H %lld/%lld D %lld, %d threads: forward %.1f backward %.1f "
          "GFLOP/s\n",
          level.name, (long long)B, (long long)N, (long long)H, (long long)G, (long long)D, threads,
          forward, backward);
    }
  }
}

void timeInverse(const Level& level) {
  setThreadCount(1);
  for (int64_t n : {32, 64, 128, 256, 512}) {
    const int64_t batch = n > 128 ? 2 : 8;
    auto a = randomVector<float>(batch * n * n);
    for (int64_t q = 0; q < batch; q++)
      for (int64_t i = 0; i < n; i++) a[size_t((q * n + i) * n + i)] = float(n);
    vector<float> x(a.size());
    const aq_view in = view(a, {batch, n, n}), out = view(x, {batch, n, n});
    for (int pivot = 0; pivot < 2; pivot++) {
      const aq_inverse_params p{pivot, 0};
      aq_error error{};
      const double took =
          bestTime([&] { level.inverse(nullptr, &in, 1, &out, 1, &p, &error); }) / double(batch);
      std::printf("%-8s inverse %lld pivot %d: %.1f us, %.1f GFLOP/s\n", level.name, (long long)n,
                  pivot, took * 1e6, 2e-9 * double(n * n * n) / took);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool timing = argc > 1 && std::strcmp(argv[1], "time") == 0;
  Sgemm sgemm = nullptr;
  if (timing && argc > 2) {
    void* library = dlopen(argv[2], RTLD_NOW);
    if (library) sgemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
    if (!sgemm) std::printf("%s: no cblas_sgemm: %s\n", argv[2], dlerror());
  }
  for (const Level& level : kLevels) {
    if (!level.usable || (argc > 3 && std::strcmp(argv[3], level.name) != 0)) continue;
    if (timing) {
      timeProducts(level, sgemm);
      timeAttention(level);
      timeInverse(level);
    } else {
      checkLevel<float>(level);
      checkLevel<double>(level);
    }
  }
  if (!timing) std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}

#else
namespace aq::cpu::AQ_LEVEL {
#include "native/cpu/kernels/attention.h"
#include "native/cpu/kernels/fake_quant_gemm.h"
#include "native/cpu/kernels/gemm.h"
#include "native/cpu/kernels/gemm_kernel.h"
#include "native/cpu/kernels/lu_inverse.h"
#include "native/cpu/kernels/matmul.h"
#include "native/cpu/kernels/simd.h"
}  // namespace aq::cpu::AQ_LEVEL
#endif
