// kernel_cases_weight.h: cases of the ops on the weight side: folds, linear algebra and optimizers.
// Sizes by the letters of params.h.
#pragma once
#include "native/tools/kernel_sample.h"

namespace aq::tools {

inline void drawHeads(Maker& m, const Shape& w) {
  m.in(m.stored(m.normal(w)));
  m.param("side");
  m.param("transpose");
  m.param("heads");
}

inline Shape headShape(const Maker& m) {
  const int64_t wide = m["heads"] * m["D"];
  return m["side"] ? Shape{m["other"], wide} : Shape{wide, m["other"]};
}

// Guard and schedule of an optimizer: where the sizes say control=1, step 5 at half the rate.
inline void drawControl(Maker& m) {
  if (!m.get("control", 0)) {
    m.absent();
    m.absent();
    return;
  }
  m.in(m.convert(m.from({1}, [](int64_t) { return 1.0; }), AQ_I32));
  m.in(m.convert(m.from({2}, [](int64_t i) { return i ? 5.0 : 0.5; }), AQ_F64));
}

// p, g, m, v of an optimizer.
inline void drawMoments(Maker& m, const Tensor& p) {
  m.in(p);
  m.in(m.normal(p.shape));
  m.in(m.normal(p.shape, 0.1));
  m.in(m.uniform(p.shape, 0.01, 0.1));
}

inline void drawRates(Maker& m) {
  const Params rates = {{"lr", 5e-3},  {"beta1", 0.9},         {"beta2", 0.999},
                        {"eps", 1e-8}, {"weight_decay", 0.01}, {"step", 3}};
  for (const auto& [name, value] : rates) m.param(name, value);
}

// Matrices [B, D, D] with a diagonal near 1: off-diagonal entries of size `off` in total a row.
inline Tensor drawMatrices(Maker& m, double off) {
  const int64_t B = m["B"], D = m["D"];
  const Tensor noise = m.normal({B, D, D}, off / double(D));
  const Tensor diagonal = m.from({B, D, D}, [D](int64_t i) {
    return i / D % D == i % D ? 1 + 0.5 * std::sin(double(i)) : 0.0;
  });
  return m.run("add", {noise, diagonal}, {{"alpha", 1}})[0];
}

inline int64_t oddPart(int64_t n) { return n % 2 ? n : oddPart(n / 2); }

inline const std::vector<KernelCase>& weightCases() {
  using Texts = std::vector<const char*>;
  static const Texts scales = {"O=5 I=7 r=1 c=1",        "O=33 I=20 r=0 c=1",
                               "O=130 I=64 r=1 c=0",     "O=33 I=20 r=1 c=1 s=3",
                               "O=130 I=64 r=1 c=1 s=2", "O=9 I=15 r=0 c=1 s=2"};
  static const Texts scalesReal = {"O=11008 I=4096 r=1 c=1", "O=11008 I=4096 r=1 c=1 s=3"};
  static const Texts heads = {"side=0 transpose=0 heads=4 kv=2 D=4 other=7",
                              "side=0 transpose=1 heads=2 kv=2 D=16 other=1",
                              "side=1 transpose=0 heads=6 kv=2 D=3 other=5",
                              "side=1 transpose=1 heads=2 kv=1 D=64 other=70",
                              "side=1 transpose=0 heads=4 kv=2 D=8 other=20 acc=1",
                              "side=0 transpose=0 heads=2 kv=2 D=32 other=40 s=3",
                              "side=1 transpose=1 heads=4 kv=2 D=128 other=72 s=2"};
  static const Texts headsReal = {"side=0 transpose=1 heads=32 kv=32 D=128 other=4096",
                                  "side=1 transpose=1 heads=32 kv=32 D=128 other=4096",
                                  "side=0 transpose=1 heads=32 kv=32 D=128 other=4096 s=3",
                                  "side=1 transpose=1 heads=32 kv=32 D=128 other=4096 s=2"};
  static const Texts pairs = {
      "heads=4 kv=2 D=6 I=5 r=-1 theta=1", "heads=2 kv=2 D=32 I=40 r=1 theta=-1",
      "heads=4 kv=2 D=16 I=40 r=1 theta=1 s=3", "heads=4 kv=4 D=6 I=5 r=1 theta=1 s=2"};
  static const Texts pairsReal = {"heads=32 kv=32 D=128 I=4096 r=1 theta=1",
                                  "heads=32 kv=32 D=128 I=4096 r=1 theta=1 s=3"};
  static const std::vector<KernelCase> cases = {
      {"scale_weight", scales, scalesReal,
       [](Maker& m) {
         m.in(m.stored(m.normal({m["O"], m["I"]})));
         m["r"] ? m.in(m.uniform({m["O"]}, 0.5, 2)) : m.absent();
         m["c"] ? m.in(m.uniform({m["I"]}, 0.5, 2)) : m.absent();
       }},
      {"scale_weight_grad", scales, scalesReal,
       [](Maker& m) {
         m.in(m.stored(m.normal({m["O"], m["I"]})));
         m["r"] ? m.in(m.uniform({m["O"]}, 0.5, 2)) : m.absent();
         m["c"] ? m.in(m.uniform({m["I"]}, 0.5, 2)) : m.absent();
         m.in(m.gradient(m.normal({m["O"], m["I"]})));
       },
       5},
      {"head_matmul", heads, headsReal,
       [](Maker& m) {
         drawHeads(m, headShape(m));
         m.in(m.normal({m["kv"], m["D"], m["D"]}));
       }},
      {"head_matmul_grad", heads, headsReal,
       [](Maker& m) {
         drawHeads(m, headShape(m));
         m.in(m.gradient(m.normal(headShape(m))));
         m.param("kv_heads", double(m["kv"]));
         m.param("accumulate", double(m.get("acc", 0)));
         if (m.get("acc", 0)) m.out(m.normal({m["kv"], m["D"], m["D"]}));
       },
       5},
      {"rotate_pairs", pairs, pairsReal,
       [](Maker& m) {
         m.in(m.stored(m.normal({m["heads"] * m["D"], m["I"]})));
         m.in(m.normal({m["kv"], m["D"] / 2}, 0.3));
         m.in(m.normal({m["kv"], m["D"] / 2}));
         m.param("heads");
         m.param("sign_r", double(m["r"]));
         m.param("sign_theta", double(m["theta"]));
       }},
      {"rotate_pairs_grad", pairs, pairsReal,
       [](Maker& m) {
         m.in(m.stored(m.normal({m["heads"] * m["D"], m["I"]})));
         m.in(m.gradient(m.normal({m["heads"] * m["D"], m["I"]})));
         m.param("heads");
         m.param("kv_heads", double(m["kv"]));
         m.param("sign_r", double(m["r"]));
         m.param("sign_theta", double(m["theta"]));
       },
       5},
      {"gradual_mask",
       {"B=2 D=7 band=0", "B=3 D=8 band=3", "B=1 D=33 band=40"},
       {"B=32 D=128 band=64"},
       [](Maker& m) {
         m.in(m.normal({m["B"], m["D"], m["D"]}));
         m.param("sf", 0.1);
         m.param("band");
       }},
      {"lu_inverse",
       {"B=3 D=5 pivot=0", "B=2 D=32 pivot=0", "B=1 D=67 pivot=1", "B=2 D=128 pivot=0",
        "B=1 D=257 pivot=0", "B=2 D=64 pivot=0 start=1"},
       {"B=1024 D=128 pivot=0", "B=1 D=4096 pivot=0"},
       [](Maker& m) {
         const Tensor a = drawMatrices(m, 0.2);
         m.in(a);
         m.param("pivot");
         if (!m.get("start", 0)) return;
         // A start as a training step leaves it: the inverse of a matrix nearby.
         const Tensor before = m.run("add", {a, m.normal(a.shape)}, {{"alpha", 1e-5}})[0];
         m.in(m.run("lu_inverse", {before})[0]);
       },
       5},
      {"matmul",
       {"B=2 M=5 N=7 K=3 ta=0 tb=0", "B=3 M=17 N=9 K=33 ta=1 tb=0", "B=2 M=40 N=65 K=32 ta=0 tb=1",
        "B=1 M=128 N=128 K=64 ta=1 tb=1"},
       {"B=32 M=128 N=128 K=128 ta=0 tb=0", "B=1 M=4096 N=4096 K=4096 ta=0 tb=1"},
       [](Maker& m) {
         const int64_t B = m["B"], M = m["M"], N = m["N"], K = m["K"];
         m.in(m.normal(m["ta"] ? Shape{B, K, M} : Shape{B, M, K}));
         m.in(m.normal(m["tb"] ? Shape{B, N, K} : Shape{B, K, N}));
         m.param("alpha", -0.5);
         m.param("trans_a", double(m["ta"]));
         m.param("trans_b", double(m["tb"]));
       }},
      {"hadamard",
       {"M=3 runs=1 F=8 inverse=0", "M=3 runs=2 F=12 inverse=1", "M=2 runs=1 F=512 inverse=1",
        "M=2 runs=1 F=640 inverse=0"},
       {"M=2048 runs=1 F=4096 inverse=0", "M=2048 runs=1 F=11008 inverse=0"},
       [](Maker& m) {
         const int64_t F = m["F"], odd = oddPart(F);
         m.in(m.normal({m["M"], m["runs"] * F}));
         m.in(m.from({F}, [](int64_t i) { return i * 7 % 3 ? 1.0 : -1.0; }));
         if (odd > 1) m.in(m.normal({odd, odd}, 1 / std::sqrt(double(odd))));
         m.param("inverse");
       }},
      {"adam",
       {"N=1", "N=1003", "N=37 groups=3 control=1", "N=130 groups=70", "N=8 groups=2 control=1"},
       {"N=16777216", "N=4096 groups=40 control=1"},
       [](Maker& m) {
         drawControl(m);
         for (int64_t i = 0; i < m.get("groups", 1); i++)
           drawMoments(m, m.normal({m["N"] + 5 * i}));
         drawRates(m);
       }},
      {"masked_adam",
       {"B=2 D=7 band=2", "B=3 D=8 band=7 control=1", "B=1 D=600 band=20", "B=1 D=512 band=512",
        "B=1 D=2200 band=700 control=1 copies=2", "B=2 D=33 band=12 copies=2",
        "B=2 D=64 band=9 floor=1 copies=1"},
       {"B=32 D=128 band=128", "B=1 D=4096 band=4096", "B=1 D=4096 band=512", "B=1 D=4096 band=128",
        "B=1 D=4096 band=128 control=1", "B=1 D=4096 band=4096 copies=2",
        "B=1 D=4096 band=512 copies=2", "B=1 D=4096 band=128 copies=2"},
       [](Maker& m) {
         drawControl(m);
         const Tensor p = drawMatrices(m, 30);
         drawMoments(m, p);
         if (m.get("copies", 0) > 0) m.in(m.normal(p.shape));
         if (m.get("copies", 0) > 1)
           m.in(m.run("cast", {m.normal(p.shape)}, {{"dtype", AQ_BF16}})[0]);
         drawRates(m);
         m.param("sf", 0.1);
         m.param("limit", 0.9);
         m.param("floor", m.get("floor", 0) ? 0.01 : 0);
         m.param("band");
       },
       5},
      {"keep_away",
       {"N=1", "N=1003"},
       {"N=16777216"},
       [](Maker& m) {
         m.in(m.normal({m["N"]}, 0.3));
         m.param("limit", 0.25);
       }},
      {"sign_step",
       {"N=1", "N=1003", "N=37 groups=3 control=1 s=2", "N=130 groups=70 s=3"},
       {"N=16777216", "N=16777216 s=2"},
       [](Maker& m) {
         drawControl(m);
         for (int64_t i = 0; i < m.get("groups", 1); i++) {
           m.in(m.uniform({m["N"] + 5 * i}, -0.5, 0.5));
           m.in(m.stored(m.normal({m["N"] + 5 * i})));
         }
         m.param("lr", 0.01);
         m.param("limit", 0.5);
       }},
  };
  return cases;
}

}  // namespace aq::tools
