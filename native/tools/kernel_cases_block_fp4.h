// kernel_cases_block_fp4.h: cases of the decoder block's ops that give 4-bit floats. Sizes by the letters of
// params.h.
#pragma once
#include "native/tools/kernel_cases_block.h"

namespace aq::tools {

// The block's ops that give 4-bit floats: what `make` draws without its parameters, and a global scale.
inline void drawBlockFp4(Maker& m, void (*make)(Maker&), bool hasEps) {
  make(m);
  m.sample.params.clear();
  const bool isOwn = m.get("own", 0) != 0, isGlobal = !m["format"] && m.get("g", 1) && !isOwn;
  m.in(isGlobal ? m.from({1}, [](int64_t) { return 300.0; }) : Tensor{});
  if (hasEps) m.param("eps", 1e-5);
  m.param("format");
  m.param("dtype", double(m.dtype() == AQ_F32 && m.get("to", 1) ? int32_t(AQ_BF16) : m.dtype()));
  m.param("own", double(isOwn));
}

// Their gradients, with what the forward op leaves besides factor and numbers.
inline void drawBlockFp4Grad(Maker& m, const char* forward) {
  const auto saved = m.run(forward, m.sample.inputs, m.sample.params);
  const size_t stored = saved.size() - 4;  // of the op in front
  for (size_t i = 0; i < stored; i++) m.in(saved[i]);
  m.in(saved[stored + 1]);
  m.in(m.normal(rowsOf(m)));
  m.sample.params = {{"format", double(m["format"])}};
}

inline const std::vector<KernelCase>& blockFp4Cases() {
  using Texts = std::vector<const char*>;
  static const Texts norms = {"M=3 C=48 format=0",         "M=21 C=160 format=1",
                              "M=70 C=1024 format=0 g=0",  "M=37 C=144 format=0 own=1",
                              "M=3 C=1040 format=0 own=1", "M=2 C=8208 format=0",
                              "M=3 C=48 format=0 to=0",    "M=3 C=48 format=0 own=1 to=0"};
  static const Texts normsReal = {"M=2048 C=4096 format=0", "M=2048 C=4096 format=0 own=1"};
  static const Texts normGrads = {"M=3 C=48 format=0", "M=21 C=160 format=1",
                                  "M=70 C=1024 format=0 g=0", "M=5 C=2048 format=0 gx=0",
                                  "M=2 C=8208 format=0"};
  static const Texts normGradsReal = {"M=2048 C=4096 format=0"};
  static const Texts gates = {"M=3 C=48 format=0",          "M=17 C=544 format=1",
                              "M=4 C=2064 format=0 g=0",    "M=17 C=528 format=0 own=1",
                              "M=3 C=11008 format=0 own=1", "M=2 C=64 format=0 to=0"};
  static const Texts gatesReal = {"M=2048 C=11008 format=0", "M=2048 C=11008 format=0 own=1"};
  static const Texts gateGrads = {"M=3 C=48 format=0", "M=17 C=544 format=1 bf16=1",
                                  "M=4 C=2064 format=0 g=0", "M=3 C=11008 format=0 bf16=1"};
  static const Texts gateGradsReal = {"M=2048 C=11008 format=0", "M=2048 C=11008 format=0 bf16=1"};
  static const auto rms = [](Maker& m) {
    drawBlockFp4(
        m, [](Maker& own) { drawNorm(own, 0); }, true);
  };
  static const auto layer = [](Maker& m) {
    drawBlockFp4(
        m, [](Maker& own) { drawNorm(own, 1); }, true);
  };
  static const std::vector<KernelCase> cases = {
      {"rms_norm_fp4", norms, normsReal, [](Maker& m) { rms(m); }, 5},
      {"rms_norm_fp4_grad", normGrads, normGradsReal,
       [](Maker& m) {
         rms(m);
         drawBlockFp4Grad(m, "rms_norm_fp4");
         m.param("need_gx", double(m.get("gx", 1)));
       },
       20},
      {"layer_norm_fp4", norms, normsReal, [](Maker& m) { layer(m); }, 5},
      {"layer_norm_fp4_grad", normGrads, normGradsReal,
       [](Maker& m) {
         layer(m);
         drawBlockFp4Grad(m, "layer_norm_fp4");
         m.param("need_gx", double(m.get("gx", 1)));
       },
       20},
      {"silu_mul_fp4", gates, gatesReal, [](Maker& m) { drawBlockFp4(m, drawGates, false); }, 5},
      {"silu_mul_fp4_grad", gateGrads, gateGradsReal,
       [](Maker& m) {
         drawBlockFp4(m, drawGates, false);
         drawBlockFp4Grad(m, "silu_mul_fp4");
         m.param("bf16", m.dtype() == AQ_F32 ? double(m.get("bf16", 0)) : 0);
       },
       10},
  };
  return cases;
}

}  // namespace aq::tools
