// kernel_cases_heads.h: cases of the ops that see rows as heads: rope and attention over whole sequences,
// with and without the quantizers behind them. Sizes by the letters of params.h.
#pragma once
#include "native/tools/kernel_sample.h"

namespace aq::tools {

// Rows of heads, and tables of cosines and sines.
inline void drawHeads(Maker& m) {
  const int64_t T = m["T"], half = m["D"] / 2;
  const auto angle = [half](int64_t i) {
    return double(i / half) * std::pow(1e4, -double(i % half) / double(half));
  };
  m.in(m.normal({m["B"] * T, m["heads"] * 2 * half}));
  m.in(m.from({T, half}, [&](int64_t i) { return std::cos(angle(i)); }));
  m.in(m.from({T, half}, [&](int64_t i) { return std::sin(angle(i)); }));
}

// The same with a quantizer of each head behind.
inline void drawHeadGrids(Maker& m) {
  drawHeads(m);
  m.get("clip", 1) ? m.in(m.normal({1}, 0.5, 2)) : m.absent();
  m.param("floor", 1e-6);
  m.param("heads");
  m.param("bits", 4);
}

inline void drawHeadGridsGrad(Maker& m) {
  drawHeadGrids(m);
  const auto made = m.run("rope_grid", m.sample.inputs, m.sample.params);
  m.sample.inputs[0] = made[0];
  m.in(made[1]);
  m.in(made[2]);
  m.in(m.normal(made[0].shape));
  m.param("bf16", m.dtype() == AQ_F32 ? double(m.get("bf16", 0)) : 0);
}

// q, k, v and their grids; bits 0: not quantized.
inline void drawAttention(Maker& m) {
  const int64_t B = m["B"], T = m["T"], D = m["D"], heads = m["heads"], kv = m["kv"];
  const double bits = double(m["bits"]);
  for (const int64_t count : {heads, kv, kv}) m.in(m.normal({B, T, count * D}));
  for (size_t i = 0; i < 3; i++) m.gridOrNone(Tensor(m.sample.inputs[i]), bits, double(D));
  m.param("heads");
  m.param("kv_heads", double(kv));
  m.param("bits", bits > 0 ? bits : 16);
  m.param("scale", 1 / std::sqrt(double(D)));
}

inline void drawAttentionForward(Maker& m) {
  drawAttention(m);
  m.param("keep", 0);
}

// The parameters of a gradient as the forward op wants them.
inline Params withoutKept(const Maker& m) {
  Params params = m.sample.params;
  params.emplace_back("keep", 0);
  return params;
}

inline void drawAttentionGrad(Maker& m) {
  drawAttention(m);
  const auto saved = m.run("attention", m.sample.inputs, withoutKept(m));
  m.in(saved[0]);
  m.in(saved[1]);
  m.in(m.normal(saved[0].shape));
  m.absent();
}

// The same with a quantizer behind, and its gradient.
inline void drawAttentionOperand(Maker& m) {
  drawAttention(m);
  m.get("clip", 1) ? m.in(m.normal({1}, 0.5, 2)) : m.absent();
  m.param("floor", 1e-6);
  m.param("row_bits", 4);
}

inline void drawAttentionOperandGrad(Maker& m) {
  drawAttentionOperand(m);
  const auto saved = m.run("attention_operand", m.sample.inputs, withoutKept(m));
  for (const size_t i : {0, 1, 3, 4}) m.in(saved[i]);
  m.in(m.normal(saved[0].shape));
  m.absent();
}

inline const std::vector<KernelCase>& headCases() {
  using Texts = std::vector<const char*>;
  static const Texts attention = {
      "B=2 T=5 heads=4 kv=2 D=6 bits=0", "B=1 T=131 heads=2 kv=1 D=16 bits=4",
      "B=1 T=70 heads=1 kv=1 D=64 bits=0", "B=1 T=130 heads=2 kv=2 D=128 bits=4"};
  static const Texts attentionReal = {"B=1 T=2048 heads=8 kv=8 D=64 bits=4",
                                      "B=1 T=2048 heads=32 kv=32 D=128 bits=4"};
  static const Texts attentionOperands = {"B=2 T=5 heads=4 kv=2 D=6 bits=0",
                                          "B=1 T=19 heads=3 kv=1 D=64 bits=4",
                                          "B=1 T=10 heads=2 kv=2 D=128 bits=4 clip=0"};
  static const Texts headGrids = {"B=2 T=5 heads=3 D=6", "B=1 T=9 heads=5 D=32 bf16=1",
                                  "B=2 T=7 heads=3 D=64 clip=0", "B=1 T=5 heads=6 D=128 bf16=1"};
  static const Texts headGridsReal = {"B=1 T=2048 heads=32 D=128 bf16=1"};
  static const std::vector<KernelCase> cases = {
      {"rope",
       {"B=2 T=5 heads=3 D=6 inverse=0", "B=1 T=9 heads=2 D=32 inverse=1",
        "B=1 T=9 heads=2 D=32 inverse=1 bf16=1"},
       {"B=1 T=2048 heads=32 D=128 inverse=0", "B=1 T=2048 heads=32 D=128 inverse=1 bf16=1"},
       [](Maker& m) {
         drawHeads(m);
         m.param("heads");
         m.param("inverse");
         m.param("bf16", m.dtype() == AQ_F32 ? double(m.get("bf16", 0)) : 0);
       }},
      {"attention", attention, attentionReal, drawAttentionForward, 50},
      {"attention_grad", attention, attentionReal, drawAttentionGrad, 50},
      {"attention_operand", attentionOperands, attentionReal,
       [](Maker& m) {
         drawAttentionOperand(m);
         m.param("keep", 0);
       },
       50},
      {"attention_operand_grad", attentionOperands, attentionReal, drawAttentionOperandGrad, 50},
      {"rope_grid", headGrids, headGridsReal, drawHeadGrids},
      {"rope_grid_grad", headGrids, headGridsReal, drawHeadGridsGrad, 5},
  };
  return cases;
}

}  // namespace aq::tools
