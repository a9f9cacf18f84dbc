// kernel_cases_fp4.h: cases of the 4-bit floats, NVFP4 (format 0, groups of 16) and MXFP4 (format 1, of
// 32): scales, operands, gradients, and packed weights. Sizes by the letters of params.h.
#pragma once
#include "native/tools/kernel_cases_quantize.h"

namespace aq::tools {

inline int64_t fp4Group(const Maker& m) { return m["format"] ? 32 : 16; }

// The global scale of x (times its factors) where the format has one and the sizes say g=1, else an
// absent one.
inline Tensor globalOf(Maker& m, const Tensor& x, const std::vector<Tensor>& factors) {
  if (m["format"] || !m.get("g", 1)) return {};
  return m.run("fp4_global", {x, {}, factors[0], factors[1]})[0];
}

// clip 1: one logit, 2: a logit per row and group, else an absent one.
inline Tensor drawFp4Clip(Maker& m) {
  const int64_t clip = m.get("clip", 0);
  if (clip == 0) return {};
  return m.normal(clip == 1 ? Shape{1} : Shape{m["M"], m["K"] / fp4Group(m)}, 0.7, 2);
}

inline Tensor drawOffsets(Maker& m, const Tensor& x) {
  return m.get("v", 0) ? m.uniform(x.shape, -0.5, 0.5) : Tensor{};
}

// Codes of all numbers, and scales as the op makes them for weights [O,K].
inline std::vector<Tensor> drawFp4Codes(Maker& m, int64_t rows, int64_t columns) {
  const Tensor w = m.normal({rows, columns}, 0.02);
  const Tensor g = globalOf(m, w, {{}, {}});
  const Tensor scale =
      m.run("fp4_operand", {w, g}, {{"format", double(m["format"])}, {"dtype", double(AQ_U8)}})[0];
  return {m.integers({rows, columns}, 16, AQ_U8), scale, g};
}

inline void drawFp4Operand(Maker& m) {
  const Tensor x = m.stored(m.normal({m["M"], m["K"]}));
  const std::vector<Tensor> factors = drawFactors(m, x);
  m.in(x);
  m.in(globalOf(m, x, factors));
  m.in(drawFp4Clip(m));
  m.in(drawOffsets(m, x));
  for (const Tensor& factor : factors) m.in(factor);
  // Short values are of f32 inputs only.
  const int64_t to = m.get("to", -1);
  const bool isOwn = to < 0 || (m.dtype() == AQ_F64 && to != AQ_U8);
  m.param("format");
  m.param("dtype", double(isOwn ? m.dtype() : to));
}

inline void drawFp4Grad(Maker& m) {
  const Tensor x = m.stored(m.normal({m["M"], m["K"]}));
  const std::vector<Tensor> factors = drawFactors(m, x);
  const Tensor g = globalOf(m, x, factors), clip = drawFp4Clip(m);
  const Params params = {{"format", double(m["format"])}, {"dtype", double(m.dtype())}};
  m.in(x);
  m.in(m.run("fp4_operand", {x, g, clip, {}, factors[0], factors[1]}, params)[0]);
  m.in(g);
  m.in(m.gradient(m.normal(x.shape)));
  m.in(clip);
  m.in(drawOffsets(m, x));
  for (const Tensor& factor : factors) m.in(factor);
  m.param("format");
  m.param("need_gx", double(m.get("gx", 1)));
  m.param("spends_grad", 0);  // the inputs are used again
}

inline void drawFp4Product(Maker& m) {
  const int64_t O = m["O"], K = m["K"];
  const int32_t type = int32_t(m.get("type", m.dtype()));
  const bool isOwn = type == AQ_F64 || type == AQ_F32;
  const auto number = [&](double value) {
    const Tensor made = m.from({1}, [&](int64_t) { return value; });
    return isOwn ? made : m.convert(made, AQ_F32);
  };
  const std::vector<Tensor> codes = drawFp4Codes(m, O, K);
  m.in(m.convert(m.normal({m["M"], K}), type));
  for (const Tensor& part :
       m.run("fp4_pack", {codes[0], codes[1]}, {{"format", double(m["format"])}})) {
    m.in(part);
  }
  m.in(m["format"] ? Tensor{} : number(1 / 37.0));
  m.get("bias", 0) ? m.in(m.convert(m.normal({O}), type)) : m.absent();
  const bool isGlobal = m.get("tokens", 0) && !m["format"];
  m.in(isGlobal ? number(400) : Tensor{});
  m.param("outputs", double(O));
  m.param("format");
  m.param("tokens", double(m.get("tokens", 0)));
}

inline const std::vector<KernelCase>& fp4Cases() {
  using Texts = std::vector<const char*>;
  static const Texts matrices = {"M=5 K=48 format=0",
                                 "M=7 K=160 format=0 clip=2 v=1",
                                 "M=33 K=48 format=0 clip=1 scaled=1 s=3",
                                 "M=9 K=1104 format=0 clip=2 v=1 scaled=1 s=2",
                                 "M=3 K=64 format=0 g=0",
                                 "M=5 K=96 format=1 clip=2",
                                 "M=35 K=160 format=1 clip=1 v=1 s=3",
                                 "M=2 K=2080 format=1 clip=2 scaled=1"};
  static const Texts matricesReal = {"M=4096 K=4096 format=0 clip=2 scaled=1 s=3",
                                     "M=4096 K=4096 format=0 clip=2 v=1 s=3",
                                     "M=2048 K=4096 format=0 s=2", "M=4096 K=4096 format=1 clip=2"};
  static const Texts operands = {"M=5 K=48 format=0 to=2",
                                 "M=7 K=160 format=0 clip=2 v=1 to=6",
                                 "M=33 K=48 format=0 clip=1 scaled=1 s=3 to=2",
                                 "M=9 K=1104 format=0 clip=2 v=1 scaled=1 s=2 to=2",
                                 "M=3 K=64 format=0 g=0",
                                 "M=5 K=96 format=1 clip=2 to=2",
                                 "M=35 K=160 format=1 clip=1 v=1 to=6",
                                 "M=2 K=2080 format=1 clip=2 scaled=1"};
  static const Texts operandsReal = {"M=4096 K=4096 format=0 clip=2 scaled=1 s=3 to=2",
                                     "M=4096 K=4096 format=0 clip=2 v=1 s=3 to=2",
                                     "M=2048 K=4096 format=0 s=2 to=2",
                                     "M=4096 K=4096 format=1 clip=2 to=2"};
  static const std::vector<KernelCase> cases = {
      {"fp4_global",
       {"M=1 K=1", "M=5 K=7 before=1", "M=37 K=130 scaled=1 s=2", "M=7 K=1300 before=1 s=3"},
       {"M=4096 K=4096", "M=4096 K=4096 scaled=1 s=3"},
       [](Maker& m) {
         const Tensor x = m.stored(m.normal({m["M"], m["K"]}));
         m.in(x);
         m.get("before", 0) ? m.in(m.uniform({1}, 100, 1000)) : m.absent();
         for (const Tensor& factor : drawFactors(m, x)) m.in(factor);
       }},
      {"fp4_operand", operands, operandsReal, drawFp4Operand, 5},
      {"fp4_grad", matrices, matricesReal, drawFp4Grad, 10},
      {"fp4_values",
       {"M=1 K=16 format=0", "M=5 K=48 format=0 g=0", "M=5 K=96 format=1"},
       {"M=4096 K=4096 format=0", "M=4096 K=4096 format=1"},
       [](Maker& m) {
         for (const Tensor& part : drawFp4Codes(m, m["M"], m["K"])) m.in(part);
         m.param("format");
       }},
      {"fp4_pack",
       {"O=1 K=16 format=0", "O=23 K=208 format=0", "O=40 K=288 format=1"},
       {"O=8192 K=8192 format=0"},
       [](Maker& m) {
         const std::vector<Tensor> codes = drawFp4Codes(m, m["O"], m["K"]);
         m.in(codes[0]);
         m.in(codes[1]);
         m.param("format");
       }},
      {"fp4_matmul",
       {"M=1 O=5 K=80 format=0", "M=3 O=40 K=256 format=0 bias=1",
        "M=16 O=64 K=384 format=0 type=2", "M=150 O=130 K=256 format=0 type=2",
        "M=20 O=48 K=256 format=0 tokens=1", "M=7 O=40 K=288 format=1 bias=1",
        "M=70 O=33 K=96 format=1 type=2 tokens=1"},
       {"M=1 O=8192 K=8192 format=0 type=2", "M=16 O=8192 K=8192 format=0 type=2",
        "M=2048 O=8192 K=8192 format=0 type=2", "M=1 O=8192 K=8192 format=1 type=2"},
       drawFp4Product,
       5},
  };
  return cases;
}

}  // namespace aq::tools
