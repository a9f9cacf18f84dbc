// check_util.h: random data, comparison and timing for gemm_check. Included inside its namespace.
#pragma once

struct Level {
  const char* name;
  bool usable;
  aq_kernel fakeQuantGemm, matmul, attention, attentionGrad, inverse;
};

// The product without the wrappers that scale or widen its operands first.
#define AQ_PLAIN_PRODUCT(NS)                                                                 \
  [](aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t, const void* params, \
     aq_error* err) { return NS::fakeQuantGemm(in, out, params, err); }
#define AQ_LEVEL_ROW(NS, USABLE)                                                      \
  {                                                                                   \
#NS, USABLE, AQ_PLAIN_PRODUCT(NS), NS::matmul, NS::attention, NS::attention_grad, \
        NS::lu_inverse                                                                \
  }
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
