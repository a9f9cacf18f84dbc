// kernel_cases_block.h: cases of the ops that run over activations: the decoder block, losses,
// statistics, and the elementwise ops. Sizes by the letters of params.h.
#pragma once
#include "native/tools/kernel_sample.h"

namespace aq::tools {

inline Shape rowsOf(const Maker& m) { return {m["M"], m["C"]}; }

// Two tensors of N numbers.
inline void drawPair(Maker& m) {
  m.in(m.normal({m["N"]}));
  m.in(m.normal({m["N"]}));
}

inline void drawPairAlpha(Maker& m) {
  drawPair(m);
  m.param("alpha", -0.75);
}

inline void drawNorm(Maker& m, double mean) {
  m.in(m.normal(rowsOf(m), 2, mean));
  m.in(m.normal({m["C"]}, 0.2, 1));
  m.in(m.normal({m["C"]}, 0.5));
  m.param("eps", 1e-5);
}

// The gradient's inputs from the forward's: x, w, what the forward saved, g.
inline void drawNormGrad(Maker& m, const char* forward) {
  drawNorm(m, 1);
  const auto saved = m.run(forward, m.sample.inputs, m.sample.params);
  m.sample.inputs.pop_back();
  m.sample.params.clear();
  for (size_t i = 1; i < saved.size(); i++) m.in(saved[i]);
  m.in(m.normal(rowsOf(m)));
}

// Inputs of the ops that quantize what `make` draws the inputs of: those, and a logit.
inline void drawOperand(Maker& m, void (*make)(Maker&)) {
  make(m);
  m.get("clip", 1) ? m.in(m.normal({1}, 0.5, 2)) : m.absent();
  m.param("floor", 1e-6);
  m.param("bits", 4);
}

// The same of their gradients, with what the forward op leaves of its outputs besides the codes.
inline void drawOperandGrad(Maker& m, const char* forward) {
  const auto saved = m.run(forward, m.sample.inputs, m.sample.params);
  for (size_t i = 0; i + 1 < saved.size(); i++) m.in(saved[i]);
  m.in(m.normal(rowsOf(m)));
  m.sample.params = {{"floor", 1e-6}, {"bits", 4}};
}

inline void drawGates(Maker& m) {
  m.in(m.normal(rowsOf(m), 4));
  m.in(m.normal(rowsOf(m)));
}

// M tokens of S slots, each behind P / 2 places that are taken. cache: the type of the caches, where
// it is not that of the tokens (2: bf16, 6: codes).
inline void drawCachedAttention(Maker& m) {
  const int64_t S = m["S"], P = m["P"], M = m["M"], D = m["D"], heads = m["heads"], kv = m["kv"];
  const double bits = double(m["bits"]);
  const int64_t wanted = m.get("cache", m.dtype());
  const int64_t type = m.dtype() == AQ_F64 && wanted == AQ_BF16 ? int64_t(AQ_F64) : wanted;
  const bool isJoined = m.get("joined", 0) != 0;
  if (isJoined) {
    m.in(m.normal({M, (heads + 2 * kv) * D}));
    for (int i = 0; i < 8; i++) m.absent();
  } else {
    for (const int64_t count : {heads, kv, kv}) m.in(m.normal({M, count * D}));
  }
  for (size_t i = 0; i < 3 && !isJoined; i++)
    m.gridOrNone(Tensor(m.sample.inputs[i]), bits, double(D));
  for (int cache = 0; cache < 2; cache++) {
    if (type == AQ_U8) {
      m.in(m.integers({S, P, kv * ((D + 1) / 2)}, 256, AQ_U8));
    } else {
      m.in(m.convert(m.normal({S, P, kv * D}), int32_t(type)));
    }
  }
  for (int grid = 0; grid < 2; grid++) {
    const auto value = [](int64_t i) {
      return i % 2 ? double(i % 16) : 0.1 + 0.01 * double(i % 7);
    };
    type == AQ_U8 ? m.in(m.from({S, P, kv, 2}, value)) : m.absent();
  }
  m.in(m.convert(m.from({M}, [S](int64_t i) { return double(i % S); }), AQ_I32));
  m.in(m.convert(m.from({M}, [S, P](int64_t i) { return double(P / 2 + i / S); }), AQ_I32));
  for (int table = 0; table < 2; table++) isJoined ? m.in(m.normal({M, D / 2})) : m.absent();
  m.param("apart", double(isJoined && M <= S));
  m.param("round", double(m.dtype() == AQ_F32 ? m.get("round", 0) : 0));
  m.param("heads");
  m.param("kv_heads", double(kv));
  m.param("bits", bits > 0 ? bits : 16);
  m.param("scale", 1 / std::sqrt(double(D)));
}

inline void drawLogits(Maker& m) {
  const Tensor targets = m.normal({m["M"], m["V"]}, 4);
  const Tensor error = m.normal({m["M"], m["V"]}, 3);
  m.in(m.run("add", {targets, error}, {{"alpha", 1}})[0]);
  m.in(targets);
}

inline const std::vector<KernelCase>& blockCases() {
  using Texts = std::vector<const char*>;
  static const Texts flat = {"N=1", "N=1003", "N=40001"};
  static const Texts flatReal = {"N=8388608"};
  static const Texts norms = {"M=1 C=1", "M=33 C=19", "M=37 C=64", "M=70 C=1024", "M=3 C=4200"};
  static const Texts normGrads = {"M=33 C=19", "M=37 C=64", "M=70 C=1024", "M=3 C=4200"};
  static const Texts normsReal = {"M=2048 C=512", "M=2048 C=4096"};
  static const Texts normOperands = {"M=33 C=19", "M=21 C=132", "M=70 C=1024 clip=0",
                                     "M=5 C=2048 gx=0", "M=3 C=4200"};
  static const Texts gateOperands = {"M=3 C=7", "M=17 C=516 bf16=1", "M=4 C=2056 clip=0",
                                     "M=3 C=11008 bf16=1"};
  static const Texts gates = {"M=3 C=7", "M=17 C=132"};
  static const Texts gateGrads = {"M=3 C=7", "M=17 C=132", "M=3 C=7 bf16=1", "M=17 C=132 bf16=1"};
  static const Texts gatesReal = {"M=2048 C=11008"};
  static const Texts gateGradsReal = {"M=2048 C=11008", "M=2048 C=11008 bf16=1"};
  static const Texts rows = {"M=3 V=7", "M=9 V=1001", "M=2 V=4100"};
  static const Texts rowsReal = {"M=512 V=32000"};
  static const std::vector<KernelCase> cases = {
      {"fill", flat, flatReal,
       [](Maker& m) {
         m.in(m.normal({m["N"]}));
         m.param("value", -1.25);
       }},
      {"cast",
       {"N=1003 from=1 to=2", "N=1003 from=2 to=1", "N=333 from=1 to=3", "N=333 from=3 to=0",
        "N=77 from=1 to=5", "N=77 from=6 to=4"},
       {"N=8388608 from=1 to=2", "N=8388608 from=2 to=1"},
       [](Maker& m) {
         m.in(m.convert(m.uniform({m["N"]}, 0, 99), int32_t(m["from"])));
         m.param("dtype", double(m["to"]));
       }},
      {"add", flat, flatReal, drawPairAlpha},
      {"axpy", flat, flatReal, drawPairAlpha},
      {"mul", flat, flatReal, drawPairAlpha},
      {"exp", flat, flatReal,
       [](Maker& m) {
         m.in(m.normal({m["N"]}, 4));
         m.param("scale", -1);
       }},
      {"rms_norm", norms, normsReal, [](Maker& m) { drawNorm(m, 0); }},
      // The gradient to a single channel is what rounding leaves of a difference: start at more.
      {"rms_norm_grad", normGrads, normsReal, [](Maker& m) { drawNormGrad(m, "rms_norm"); }, 5},
      {"layer_norm", norms, normsReal, [](Maker& m) { drawNorm(m, 3); }, 5},
      {"layer_norm_grad", normGrads, normsReal, [](Maker& m) { drawNormGrad(m, "layer_norm"); }, 5},
      {"cached_attention",
       {"S=1 P=9 M=3 heads=2 kv=2 D=6 bits=0", "S=3 P=40 M=7 heads=4 kv=2 D=16 bits=4 cache=6",
        "S=2 P=300 M=2 heads=2 kv=1 D=64 bits=4", "S=1 P=70 M=33 heads=2 kv=2 D=128 bits=0 cache=2",
        "S=3 P=300 M=3 heads=4 kv=2 D=64 bits=0 joined=1 round=2",
        "S=1 P=70 M=33 heads=2 kv=1 D=32 bits=0 joined=1"},
       {"S=1 P=2048 M=1 heads=32 kv=32 D=128 bits=4 cache=6",
        "S=1 P=2048 M=1 heads=32 kv=32 D=128 bits=0 cache=2 joined=1",
        "S=8 P=2048 M=8 heads=32 kv=8 D=128 bits=0 cache=2"},
       drawCachedAttention,
       50},
      {"norm_rounded",
       {"M=1 C=1", "M=3 C=4200 b=1", "M=37 C=64 centred=1 b=1 round=2", "M=5 C=1024 round=3"},
       {"M=1 C=4096 round=2"},
       [](Maker& m) {
         m.in(m.normal({m["M"], m["C"]}));
         m.in(m.normal({m["C"]}));
         m.get("b", 0) ? m.in(m.normal({m["C"]})) : m.absent();
         m.param("eps", 1e-5);
         m.param("centred", double(m.get("centred", 0)));
         m.param("round", m.dtype() == AQ_F32 ? double(m.get("round", 0)) : 0);
       }},
      {"silu_mul_joined",
       {"M=1 F=1", "M=3 F=19 round=2", "M=37 F=64", "M=2 F=1100 round=3"},
       {"M=1 F=11008 round=2"},
       [](Maker& m) {
         m.in(m.normal({m["M"], 2 * m["F"]}, 4));
         m.param("round", m.dtype() == AQ_F32 ? double(m.get("round", 0)) : 0);
       }},
      {"silu_mul", gates, gatesReal, drawGates},
      {"silu_mul_grad", gateGrads, gateGradsReal,
       [](Maker& m) {
         for (const double size : {4, 1, 1}) m.in(m.normal(rowsOf(m), size));
         m.param("bf16", m.dtype() == AQ_F32 ? double(m.get("bf16", 0)) : 0);
       }},
      {"relu", gates, gatesReal, [](Maker& m) { m.in(m.normal(rowsOf(m))); }},
      {"relu_grad", gates, gatesReal,
       [](Maker& m) {
         m.in(m.run("relu", {m.normal(rowsOf(m))})[0]);
         m.in(m.normal(rowsOf(m)));
       }},
      {"rms_norm_operand", normOperands, normsReal,
       [](Maker& m) { drawOperand(m, [](Maker& own) { drawNorm(own, 0); }); }},
      {"rms_norm_operand_grad", normOperands, normsReal,
       [](Maker& m) {
         drawOperand(m, [](Maker& own) { drawNorm(own, 0); });
         drawOperandGrad(m, "rms_norm_operand");
         m.param("need_gx", double(m.get("gx", 1)));
       },
       20},
      {"layer_norm_operand", normOperands, normsReal,
       [](Maker& m) { drawOperand(m, [](Maker& own) { drawNorm(own, 3); }); }},
      {"layer_norm_operand_grad", normOperands, normsReal,
       [](Maker& m) {
         drawOperand(m, [](Maker& own) { drawNorm(own, 1); });
         drawOperandGrad(m, "layer_norm_operand");
         m.param("need_gx", double(m.get("gx", 1)));
       },
       20},
      {"silu_mul_operand", gateOperands, gatesReal, [](Maker& m) { drawOperand(m, drawGates); }},
      {"silu_mul_operand_grad", gateOperands, gateGradsReal,
       [](Maker& m) {
         drawOperand(m, drawGates);
         drawOperandGrad(m, "silu_mul_operand");
         m.param("bf16", m.dtype() == AQ_F32 ? double(m.get("bf16", 0)) : 0);
       },
       5},
      {"relu_operand", gateOperands, gatesReal,
       [](Maker& m) { drawOperand(m, [](Maker& own) { own.in(own.normal(rowsOf(own))); }); }},
      {"relu_operand_grad", gateOperands, gateGradsReal,
       [](Maker& m) {
         drawOperand(m, [](Maker& own) { own.in(own.normal(rowsOf(own))); });
         drawOperandGrad(m, "relu_operand");
         m.param("bf16", m.dtype() == AQ_F32 ? double(m.get("bf16", 0)) : 0);
       },
       5},
      {"mse", flat, flatReal, drawPair},
      {"mse_grad", flat, flatReal,
       [](Maker& m) {
         drawPair(m);
         m.in(m.normal({1}));
       }},
      {"sq_diff", flat, flatReal, drawPair},
      {"kl_div", rows, rowsReal, drawLogits},
      {"kl_div_grad", rows, rowsReal,
       [](Maker& m) {
         drawLogits(m);
         m.in(m.normal({1}));
       }},
      {"cross_entropy", rows, rowsReal,
       [](Maker& m) {
         m.in(m.normal({m["M"], m["V"]}, 5));
         m.in(m.integers({m["M"]}, m["V"], AQ_I32));
       }},
      {"gather_rows",
       {"V=11 C=7 M=5 from=1 to=1", "V=300 C=64 M=33 from=2 to=1", "V=11 C=15 M=9 from=3 to=0",
        "V=11 C=8 M=9 from=0 to=1"},
       {"V=32000 C=4096 M=2048 from=2 to=1"},
       [](Maker& m) {
         m.in(m.convert(m.normal({m["V"], m["C"]}), int32_t(m["from"])));
         m.in(m.integers({m["M"]}, m["V"], AQ_I32));
         m.param("dtype", double(m["to"]));
       }},
      {"draw_tokens",
       {"M=1 V=1", "M=7 V=33 cold=1", "M=40 V=1000", "M=3 V=5003"},
       {"M=32 V=32000", "M=128 V=8192"},
       [](Maker& m) {
         m.in(m.normal({m["M"], m["V"]}, 3));
         const Tensor draws = m.uniform({m["M"], 2}, 0, 1);
         const Tensor cold = m.from({m["M"], 2}, [](int64_t) { return 0.0; });
         m.in(m.convert(m.get("cold", 0) ? cold : draws, AQ_F64));
       }},
      {"channel_stats",
       {"M=1 C=1", "M=65 C=33", "M=700 C=136"},
       normsReal,
       [](Maker& m) { m.in(m.normal(rowsOf(m), 1, 0.5)); }},
      {"all_finite",
       {"N=1", "N=1003", "N=40001", "N=37 more=70", "N=130 more=3 s=2"},
       flatReal,
       [](Maker& m) {
         for (int64_t i = 0; i <= m.get("more", 0); i++) m.in(m.stored(m.normal({m["N"] + 3 * i})));
       }},
  };
  return cases;
}

}  // namespace aq::tools
