// kernel_cases_quantize.h: cases of quantization: grids, codes, the fused product, GPTQ, and packed
// weights. Sizes by the letters of params.h.
#pragma once
#include "native/tools/kernel_sample.h"

namespace aq::tools {

inline int64_t groupsOf(const Maker& m) {
  const int64_t group = m.get("group", 0);
  return group ? (m["K"] + group - 1) / group : 1;
}

inline Tensor drawQuantized(Maker& m) {
  const Tensor x = m.stored(m.normal({m["M"], m["K"]}));
  m.in(x);
  m.param("group");
  return x;
}

// x, scale, zero, and rounding offsets where the sizes say v=1.
inline void drawFakeQuant(Maker& m) {
  const Tensor x = drawQuantized(m);
  m.param("bits");
  m.grid(x, double(m["bits"]), double(m["group"]));
  if (m.get("v", 0)) m.in(m.uniform(x.shape, -0.5, 0.5));
}

// clip 1: one logit, 2: logits per row and group.
inline void drawClip(Maker& m) {
  const int64_t clip = m.get("clip", 0);
  if (clip == 0) return m.absent();
  m.in(m.normal(clip == 1 ? Shape{1} : Shape{2, m["M"], groupsOf(m)}, 0.7, 2));
}

// Factors of the rows and columns of x where the sizes say scaled=1, else two absent ones.
inline std::vector<Tensor> drawFactors(Maker& m, const Tensor& x) {
  if (!m.get("scaled", 0)) return {{}, {}};
  return {m.uniform({x.shape[0]}, 0.5, 2), m.uniform({x.shape[1]}, 0.5, 2)};
}

// The quantized matrix of x in a type, as quant_operand makes it, and its scale.
inline std::vector<Tensor> operandOf(Maker& m, const Tensor& x, double bits, int64_t type) {
  return m.run("quant_operand", {x}, {{"bits", bits}, {"floor", 1e-6}, {"dtype", double(type)}});
}

// Operands of a product. a, b: bits of the grids that are applied on load (0: none); at, bt: the
// type of an operand without one, whose whole numbers (5, i8) have the bits that a or b says.
inline void drawFakeQuantGemm(Maker& m) {
  const int64_t M = m["M"], N = m["N"], K = m["K"];
  const bool ta = m.get("ta", 0) != 0, tb = m.get("tb", 1) != 0;
  // Other types are of f32 products only.
  const bool isWide = m.dtype() == AQ_F64;
  const int64_t at = isWide ? m.dtype() : m.get("at", m.dtype());
  const int64_t bt = isWide ? m.dtype() : m.get("bt", m.dtype());
  const double aBits = double(m["a"]), bBits = double(m["b"]), bGroup = double(m.get("bg", 0));
  const Tensor a = m.normal(ta ? Shape{K, M} : Shape{M, K});
  const Tensor b = m.stored(m.normal(tb ? Shape{N, K} : Shape{K, N}));
  const std::vector<Tensor> factors = drawFactors(m, b);
  const auto operand = [&](const Tensor& x, double bits, int64_t type) {
    return type == AQ_I8 ? operandOf(m, x, bits, type)
                         : std::vector<Tensor>{{}, {}, m.convert(x, int32_t(type))};
  };
  const auto left = operand(a, aBits, at), right = operand(b, bBits, bt);
  m.in(at == m.dtype() ? a : left[2]);
  m.in(bt == m.dtype() ? b : right[2]);
  if (at == m.dtype()) {
    m.gridOrNone(a, aBits, 0);
  } else {
    m.in(left[0]);
    m.absent();
  }
  if (bt == m.dtype()) {
    m.gridOrNone(b, bBits, bGroup, factors);
  } else {
    m.in(right[0]);
    m.absent();
  }
  m.get("bias", 0) ? m.in(m.normal({N})) : m.absent();
  m.get("v", 0) ? m.in(m.uniform(b.shape, -0.5, 0.5)) : m.absent();
  for (const Tensor& factor : factors) m.in(factor);
  m.param("trans_a", ta);
  m.param("trans_b", tb);
  m.param("a_bits", aBits);
  m.param("b_bits", bBits);
  m.param("b_group", bGroup);
  m.param("accumulate", double(m.get("acc", 0)));
  const bool isShort = m.get("bf16", 0) && m.dtype() == AQ_F32;
  m.param("bf16", isShort);
  if (!m.get("acc", 0)) return;
  const Tensor sum = m.normal({M, N});
  m.out(isShort ? m.convert(sum, AQ_BF16) : sum);
}

// `count` codes with their grid, as int4_pack and int8_pack take them.
inline std::vector<Tensor> drawPacked(Maker& m, int64_t count) {
  const int64_t O = m["O"], K = m["K"], G = groupsOf(m);
  return {m.integers({O, K}, count, AQ_U8), m.uniform({O, G}, 0.16 / count, 1.6 / count),
          m.convert(m.integers({O, G}, count, AQ_U8), m.dtype())};
}

inline void drawPackedProduct(Maker& m, const char* pack, int64_t count) {
  const Tensor x = m.normal({m["M"], m["K"]});
  const Params group = {{"group", double(m["group"])}};
  // A narrower x where the sizes say so.
  const int32_t type = int32_t(m.get("type", m.dtype()));
  m.in(m.convert(x, type));
  for (const Tensor& part : m.run(pack, drawPacked(m, count), group)) m.in(part);
  const bool isWide = m.get("wide", 0) != 0 && type != m.dtype() && m.dtype() == AQ_F32;
  const int32_t resultType = isWide ? int32_t(AQ_F32) : type;
  m.get("bias", 0) ? m.in(m.convert(m.normal({m["O"]}), resultType)) : m.absent();
  if (count == 16) m.param("wide", isWide ? 1 : 0);
  if (m.get("bits", 0)) m.grid(x, double(m["bits"]), 0);
  m.param("outputs", double(m["O"]));
  m.param("group");
  m.param("x_bits", double(m.get("bits", 0)));
}

inline const std::vector<KernelCase>& quantizeCases() {
  using Texts = std::vector<const char*>;
  static const Texts grids = {"M=5 K=7 group=0 bits=4 clip=2",
                              "M=3 K=64 group=32 bits=3 clip=2",
                              "M=4 K=45 group=16 bits=2 clip=0",
                              "M=9 K=300 group=0 bits=4 clip=1",
                              "M=6 K=1000 group=0 bits=8 clip=2 symmetric=1",
                              "M=33 K=70 group=0 bits=4 clip=2 scaled=1",
                              "M=40 K=128 group=32 bits=3 clip=2 scaled=1 v=1",
                              "M=33 K=70 group=0 bits=4 clip=2 scaled=1 s=3",
                              "M=40 K=128 group=32 bits=3 clip=2 scaled=1 v=1 s=2"};
  static const Texts operands = {"M=5 K=7 group=0 bits=4 clip=2 to=5",
                                 "M=20 K=512 group=0 bits=4 clip=2 to=5 values=1",
                                 "M=33 K=300 group=0 bits=4 clip=1 scaled=1 to=5 s=3",
                                 "M=3 K=64 group=32 bits=3 clip=2 to=-1",
                                 "M=40 K=128 group=32 bits=3 clip=2 scaled=1 v=1 to=2 s=3",
                                 "M=9 K=1000 group=0 bits=3 clip=0 to=3 s=2"};
  static const Texts operandsReal = {"M=4096 K=4096 group=0 bits=4 clip=2 scaled=1 to=5 s=3",
                                     "M=4096 K=4096 group=0 bits=3 clip=2 scaled=1 to=2 s=3"};
  static const Texts gridsReal = {"M=4096 K=4096 group=128 bits=4 clip=2",
                                  "M=4096 K=4096 group=0 bits=4 clip=2 scaled=1",
                                  "M=2048 K=4096 group=0 bits=4 clip=1"};
  static const Texts codes = {"M=5 K=7 group=0 bits=4", "M=3 K=64 group=32 bits=3 v=1",
                              "M=4 K=45 group=16 bits=2", "M=9 K=300 group=0 bits=8 v=1"};
  static const Texts codesReal = {"M=4096 K=4096 group=128 bits=4"};
  static const std::vector<KernelCase> cases = {
      {"quant_grid", grids, gridsReal,
       [](Maker& m) {
         const Tensor x = drawQuantized(m);
         drawClip(m);
         for (const Tensor& factor : drawFactors(m, x)) m.in(factor);
         m.param("bits");
         m.param("symmetric", double(m.get("symmetric", 0)));
         m.param("floor", 1e-6);
       },
       5},
      {"quant_operand", operands, operandsReal,
       [](Maker& m) {
         const Tensor x = drawQuantized(m);
         drawClip(m);
         m.get("v", 0) ? m.in(m.uniform(x.shape, -0.5, 0.5)) : m.absent();
         for (const Tensor& factor : drawFactors(m, x)) m.in(factor);
         // Short values are of f32 inputs only.
         const int64_t to = m["to"];
         const bool isOwn = to < 0 || (m.dtype() == AQ_F64 && to != AQ_I8);
         m.param("dtype", double(isOwn ? m.dtype() : to));
         m.param("values", double(m.dtype() == AQ_F32 ? m.get("values", 0) : 0));
         m.param("bits");
         m.param("floor", 1e-6);
       },
       5},
      {"fake_quant", codes, codesReal, drawFakeQuant},
      {"fake_quant_grad", grids, gridsReal,
       [](Maker& m) {
         const Tensor x = drawQuantized(m);
         const double symmetric = double(m.get("symmetric", 0)), bits = double(m["bits"]);
         const std::vector<Tensor> factors = drawFactors(m, x);
         const auto made = m.run("quant_grid", {x, {}, factors[0], factors[1]},
                                 {{"bits", bits},
                                  {"group", double(m["group"])},
                                  {"symmetric", symmetric},
                                  {"floor", 1e-6}});
         m.in(made[0]);
         m.in(made[1]);
         m.in(m.gradient(m.normal(x.shape)));
         drawClip(m);
         m.get("v", 0) ? m.in(m.uniform(x.shape, -0.5, 0.5)) : m.absent();
         for (const Tensor& factor : factors) m.in(factor);
         m.param("bits", bits);
         m.param("symmetric", symmetric);
         m.param("floor", 1e-6);
         m.param("need_gx", 1);
       },
       10},
      {"fake_quant_gemm",
       {"M=5 N=7 K=3 a=0 b=0", "M=33 N=17 K=65 a=4 b=4 bg=32 bias=1",
        "M=14 N=31 K=40 a=0 b=2 bg=16 bias=1 acc=1", "M=24 N=13 K=50 ta=1 tb=0 a=4 b=0",
        "M=9 N=37 K=18 tb=0 a=0 b=2 v=1", "M=150 N=140 K=256 a=4 b=4 bias=1",
        "M=128 N=256 K=128 a=0 b=4", "M=33 N=40 K=64 a=4 b=4 scaled=1",
        "M=20 N=33 K=70 tb=0 a=0 b=3 scaled=1 v=1", "M=33 N=40 K=70 a=4 b=4 at=5 bt=5 bias=1",
        "M=150 N=140 K=256 a=4 b=4 at=5 bt=5", "M=64 N=72 K=130 tb=0 a=0 b=4 at=2 bt=5",
        "M=40 N=48 K=64 ta=1 tb=0 a=0 b=0 at=2 bt=2 bf16=1",
        "M=128 N=256 K=128 ta=1 tb=0 a=4 b=0 at=5 bt=2 bf16=1",
        "M=64 N=40 K=128 a=0 b=3 s=3 scaled=1", "M=33 N=17 K=65 a=0 b=0 at=3 bt=3 bf16=1 acc=1"},
       {"M=2048 N=4096 K=4096 a=4 b=4", "M=2048 N=4096 K=4096 a=0 b=3 bg=128",
        "M=2048 N=4096 K=4096 a=4 b=4 at=5 bt=5", "M=2048 N=4096 K=4096 a=0 b=0 at=2 bt=2",
        "M=4096 N=4096 K=2048 ta=1 tb=0 a=0 b=0 at=2 bt=2 bf16=1"},
       drawFakeQuantGemm,
       50},
      {"quantize", codes, codesReal, drawFakeQuant},
      // Where the order of additions turns one code, what follows in its row turns with it.
      {"gptq",
       {"M=5 K=7 group=0 bits=3 block=128", "M=9 K=33 group=8 bits=2 block=10",
        "M=14 K=150 group=0 bits=4 block=64"},
       {"M=4096 K=4096 group=128 bits=3 block=128"},
       [](Maker& m) {
         const int64_t K = m["K"];
         const Tensor w = drawQuantized(m);
         m.in(m.from({K, K}, [K](int64_t i) { return std::pow(0.9, std::abs(i / K - i % K)); }));
         m.grid(w, double(m["bits"]), double(m["group"]));
         m.param("bits");
         m.param("block");
         m.param("damping", 0.01);
       },
       1000},
      {"dequantize", codes, codesReal,
       [](Maker& m) {
         const Tensor x = m.normal({m["M"], m["K"]});
         m.in(m.integers(x.shape, int64_t(1) << m["bits"], AQ_U8));
         m.grid(x, double(m["bits"]), double(m["group"]));
         m.param("group");
       }},
      {"int4_pack",
       {"O=5 K=70 group=0", "O=40 K=256 group=64"},
       {"O=8192 K=8192 group=128"},
       [](Maker& m) {
         for (const Tensor& part : drawPacked(m, 16)) m.in(part);
         m.param("group");
       }},
      {"int8_pack",
       {"O=5 K=70 group=0", "O=40 K=256 group=64"},
       {"O=8192 K=8192 group=128"},
       [](Maker& m) {
         for (const Tensor& part : drawPacked(m, 256)) m.in(part);
         m.param("group");
       }},
      {"int4_matmul",
       {"M=1 O=5 K=70 group=0", "M=3 O=40 K=256 group=64 bias=1",
        "M=16 O=64 K=384 group=128 type=2", "M=150 O=130 K=256 group=32 type=2",
        "M=2 O=64 K=256 group=128 type=2 bias=1 wide=1", "M=20 O=48 K=256 group=128 bits=4"},
       {"M=1 O=8192 K=8192 group=128 type=2", "M=16 O=8192 K=8192 group=128 type=2",
        "M=2048 O=8192 K=8192 group=128 type=2", "M=2048 O=8192 K=8192 group=128 bits=4"},
       [](Maker& m) { drawPackedProduct(m, "int4_pack", 16); },
       5},
      {"int8_matmul",
       {"M=1 O=5 K=70 group=0", "M=3 O=40 K=256 group=64 bias=1",
        "M=16 O=64 K=384 group=128 type=2", "M=150 O=130 K=256 group=32 type=2",
        "M=20 O=48 K=256 group=128 bits=8", "M=5 O=40 K=300 group=0 bits=8"},
       {"M=1 O=8192 K=8192 group=128 type=2", "M=16 O=8192 K=8192 group=128 type=2",
        "M=2048 O=8192 K=8192 group=128 type=2", "M=2048 O=8192 K=8192 group=0 bits=8"},
       [](Maker& m) { drawPackedProduct(m, "int8_pack", 256); },
       5},
  };
  return cases;
}

}  // namespace aq::tools
