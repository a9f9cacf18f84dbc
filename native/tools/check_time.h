// check_time.h: rates of the kernels beside OpenBLAS, for gemm_check. Included inside its namespace.
#pragma once

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
    const aq_view in[8] = {
        view(a, {aRows, aCols}), view(b, {bRows, bCols}), none, none, none, none, none, none};
    const aq_view inq[8] = {in[0],
                            in[1],
                            view(ga.scale, {aRows, ga.groups}),
                            view(ga.zero, {aRows, ga.groups}),
                            view(gb.scale, {bRows, gb.groups}),
                            view(gb.zero, {bRows, gb.groups}),
                            none,
                            none};
    const aq_view out = view(c, {s.m, s.n});
    const aq_fake_quant_gemm_params p{s.ta, s.tb, 4, 0, 4, 128, 0, 0};
    aq_error error{};
    const double work = 2e-9 * double(s.m) * double(s.n) * double(s.k);
    setThreadCount(1);
    const double one =
        work / bestTime([&] { level.fakeQuantGemm(nullptr, in, 8, &out, 1, &p, &error); });
    const double fused =
        work / bestTime([&] { level.fakeQuantGemm(nullptr, inq, 8, &out, 1, &p, &error); });
    setThreadCount(2);
    const double two =
        work / bestTime([&] {
          level.fakeQuantGemm(nullptr, s.quantized ? inq : in, 8, &out, 1, &p, &error);
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
      const aq_lu_inverse_params p{pivot, 0};
      aq_error error{};
      const double took =
          bestTime([&] { level.inverse(nullptr, &in, 1, &out, 1, &p, &error); }) / double(batch);
      std::printf("%-8s inverse %lld pivot %d: %.1f us, %.1f GFLOP/s\n", level.name, (long long)n,
                  pivot, took * 1e6, 2e-9 * double(n * n * n) / took);
    }
  }
}
