// Case of fake_quant_gemm: the product with either operand quantized while it is packed.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { add } from "../reference/elementwise.ts";
import { matmul } from "../reference/linalg.ts";
import { fakeQuant } from "../reference/quantize.ts";
import { type Call, type Dims, dim, input, type OpCase, param, SUMMED } from "./case.ts";
import { drawFactors, drawGrid, drawOffset, scaled, WEIGHT_FLOOR } from "./quantize.ts";

/**
 * a, b: bits of the operand's grid, 0 without one; ag, bg: its groups along stored rows; v 1: b has
 * rounding offsets; f: b has factors of its stored rows (1), columns (2) or both (3).
 */
const SETS: readonly Dims[] = [
  { M: 1, N: 1, K: 1, ta: 0, tb: 0, a: 0, b: 0, ag: 0, bg: 0, bias: 1, acc: 0 },
  { M: 5, N: 7, K: 3, ta: 0, tb: 1, a: 0, b: 0, ag: 0, bg: 0, bias: 0, acc: 0 },
  { M: 33, N: 17, K: 65, ta: 0, tb: 1, a: 4, b: 4, ag: 0, bg: 32, bias: 1, acc: 0 },
  { M: 14, N: 31, K: 40, ta: 0, tb: 1, a: 0, b: 2, ag: 0, bg: 16, bias: 1, acc: 1 },
  { M: 9, N: 20, K: 33, ta: 0, tb: 0, a: 0, b: 3, ag: 0, bg: 7, bias: 0, acc: 0 },
  { M: 24, N: 13, K: 50, ta: 1, tb: 0, a: 4, b: 0, ag: 5, bg: 0, bias: 0, acc: 1 },
  { M: 8, N: 16, K: 21, ta: 1, tb: 1, a: 8, b: 4, ag: 0, bg: 0, bias: 1, acc: 0 },
  { M: 1, N: 130, K: 70, ta: 0, tb: 1, a: 0, b: 4, ag: 0, bg: 0, bias: 0, acc: 0 },
  { M: 130, N: 1, K: 70, ta: 0, tb: 0, a: 3, b: 0, ag: 10, bg: 0, bias: 1, acc: 0 },
  { M: 11, N: 20, K: 33, ta: 0, tb: 1, a: 4, b: 3, ag: 0, bg: 7, bias: 1, acc: 0, v: 1 },
  { M: 9, N: 37, K: 18, ta: 0, tb: 0, a: 0, b: 2, ag: 0, bg: 0, bias: 0, acc: 1, v: 1 },
  { M: 6, N: 50, K: 150, ta: 1, tb: 0, a: 0, b: 4, ag: 0, bg: 16, bias: 0, acc: 0, v: 1 },
  { M: 7, N: 20, K: 33, ta: 0, tb: 1, a: 4, b: 3, ag: 0, bg: 0, bias: 1, acc: 0, f: 3 },
  { M: 9, N: 37, K: 18, ta: 0, tb: 0, a: 0, b: 2, ag: 0, bg: 16, bias: 0, acc: 1, f: 1 },
  { M: 6, N: 50, K: 150, ta: 0, tb: 1, a: 0, b: 4, ag: 0, bg: 32, bias: 0, acc: 0, f: 2, v: 1 },
  { M: 40, N: 136, K: 264, ta: 0, tb: 0, a: 0, b: 4, ag: 0, bg: 0, bias: 0, acc: 0, f: 3 },
  // Beyond one block of every dimension.
  { M: 150, N: 140, K: 600, ta: 0, tb: 1, a: 4, b: 3, ag: 0, bg: 64, bias: 1, acc: 0 },
  { M: 30, N: 600, K: 140, ta: 0, tb: 0, a: 0, b: 3, ag: 0, bg: 64, bias: 0, acc: 0, v: 1 },
];

/** The forward product of a linear, and the two products of its gradient. */
function linear(M: number, N: number, K: number, a: number, b: number, bg: number): Dims[] {
  const none = { ta: 0, tb: 0, a: 0, b: 0, ag: 0, bg: 0, bias: 0, acc: 0 };
  return [
    { ...none, M, N, K, tb: 1, a, b, bg },
    { ...none, M, N: K, K: N, b, bg },
    { ...none, M: N, N: K, K: M, ta: 1, b: a },
  ];
}

const REAL: readonly Dims[] = [
  ...linear(2048, 1376, 512, 4, 4, 0),
  ...linear(2048, 512, 1376, 0, 2, 32),
  ...linear(2048, 1376, 512, 4, 4, 0)
    .slice(0, 2)
    .map((dims) => ({ ...dims, v: 1 })),
  ...linear(2048, 512, 512, 0, 0, 0),
  ...linear(2048, 4096, 4096, 4, 4, 0).slice(0, 1),
];

function gridOf(draw: Draw, x: Value, bits: number, group: number): readonly (Value | undefined)[] {
  if (bits === 0) return [undefined, undefined];
  const [M, K] = x.shape as [number, number];
  const options = { M, K, group, bits, symmetric: false, floor: WEIGHT_FLOOR, roundF16: false };
  return drawGrid(draw, x, undefined, options);
}

/** The operand as the product sees it. */
function used(call: Call, side: 0 | 1): Float64Array {
  const given = input(call, side);
  const x = side === 1 ? scaled(given, call.inputs[8], call.inputs[9]) : given;
  const [scale, zero] = [call.inputs[2 + 2 * side], call.inputs[3 + 2 * side]];
  if (!scale || !zero) return x.data;
  const [M, K] = x.shape as [number, number];
  const bits = param(call, side === 0 ? "a_bits" : "b_bits");
  const group = param(call, side === 0 ? "a_group" : "b_group");
  const grid = { scale: scale.data, zero: zero.data };
  const offset = side === 1 ? call.inputs[7]?.data : undefined;
  return fakeQuant(x.data, grid, bits, { M, K, group }, offset);
}

const fakeQuantGemm: OpCase = {
  op: "fake_quant_gemm",
  sets: SETS,
  real: REAL,
  make: (draw, dims) => {
    const [M, N, K] = [dim(dims, "M"), dim(dims, "N"), dim(dims, "K")];
    const [ta, tb] = [dim(dims, "ta"), dim(dims, "tb")];
    const a = draw.normal(ta ? [K, M] : [M, K]);
    const b = draw.normal(tb ? [N, K] : [K, N]);
    const factors = drawFactors(draw, dims, b);
    const quantized = scaled(b, ...factors);
    const call: Call = {
      inputs: [
        a,
        b,
        ...gridOf(draw, a, dim(dims, "a"), dim(dims, "ag")),
        ...gridOf(draw, quantized, dim(dims, "b"), dim(dims, "bg")),
        dim(dims, "bias") ? draw.normal([N]) : undefined,
        drawOffset(draw, dims, b),
        ...factors,
      ],
      params: {
        trans_a: ta,
        trans_b: tb,
        a_bits: dim(dims, "a"),
        a_group: dim(dims, "ag"),
        b_bits: dim(dims, "b"),
        b_group: dim(dims, "bg"),
        accumulate: dim(dims, "acc"),
      },
    };
    return dim(dims, "acc") ? { ...call, outs: [draw.normal([M, N])] } : call;
  },
  reference: (call) => {
    const [transA, transB] = [param(call, "trans_a") !== 0, param(call, "trans_b") !== 0];
    const [rows, cols] = input(call, 0).shape as [number, number];
    const [M, K] = transA ? [cols, rows] : [rows, cols];
    const N = input(call, 1).shape[transB ? 0 : 1] ?? 0;
    const sizes = { B: 1, M, N, K };
    let c = matmul(used(call, 0), used(call, 1), sizes, { alpha: 1, transA, transB });
    const bias = call.inputs[6]?.data;
    if (bias)
      c = add(
        c,
        Float64Array.from({ length: M * N }, (_, i) => bias[i % N] ?? 0),
        1,
      );
    const before = call.outs?.[0]?.data;
    return [before ? add(before, c, 1) : c];
  },
  tolerance: { f32: { rtol: 2e-5, atol: 5e-5 }, f64: SUMMED.f64 },
  bytes: (dims, size) => {
    const [M, N, K] = [dim(dims, "M"), dim(dims, "N"), dim(dims, "K")];
    return (M * K + N * K * (1 + (dims["v"] ?? 0)) + M * N) * size;
  },
  flops: (dims) => 2 * dim(dims, "M") * dim(dims, "N") * dim(dims, "K"),
  bound: "flops",
};

export const CASES: readonly OpCase[] = [fakeQuantGemm];
