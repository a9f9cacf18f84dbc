// check_cases.h: kernels against plain double loops, for gemm_check. Included inside its namespace.
#pragma once

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
                              bias ? view(biasValues, {n}) : none,
                              none};
  const aq_fake_quant_gemm_params p{ta, tb, 4, int32_t(aGroup), 3, int32_t(bGroup), accumulate, 0};
  const auto start = c;
  runTwice<T>(level.fakeQuantGemm, in, {&c}, {view(c, {m, n})}, &p, what);
  const double d = distance(c, want);
  expect(d < kTolerance<T>, what, d);
  if (qa || qb) {  // the same bits as quantizing first
    auto c2 = start;
    vector<aq_view> plainIn = {view(ahat, {aRows, aCols}),
                               view(bhat, {bRows, bCols}),
                               none,
                               none,
                               none,
                               none,
                               in[6],
                               none};
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
  const aq_lu_inverse_params p{pivot, 0};
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
