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
 * rounding offsets; f: b has factors of its stored rows (1), columns (2) or both (3). Where types lie
 * short: a b with a grid is short; ka, kb: the operand has no grid and is short (1) or i8 (2); out 1:
 * the result is bf16. Elsewhere these operands are as the others. as, bs: an operand without a grid has
 * a scale of one number.
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
  { M: 19, N: 24, K: 40, ta: 0, tb: 1, a: 4, b: 0, ag: 0, bg: 0, bias: 1, acc: 0, kb: 1 },
  { M: 9, N: 130, K: 72, ta: 0, tb: 1, a: 8, b: 0, ag: 0, bg: 0, bias: 0, acc: 0, kb: 2 },
  ...shortOperands(),
  ...scaledOperands(),
];

/** Every kind of operand with every other, in the three products of a linear. */
function shortOperands(): Dims[] {
  const none = { a: 0, b: 0, ag: 0, bg: 0 };
  const kinds = [0, 1, 2].flatMap((ka) => [0, 1, 2].map((kb) => ({ ...none, ka, kb })));
  return kinds.slice(1).flatMap((kind, i) => [
    { ...kind, M: 19, N: 24, K: 40, ta: 0, tb: 1, bias: i % 2, acc: 0, out: 0 },
    { ...kind, M: 136, N: 130, K: 264, ta: 0, tb: 1, bias: 0, acc: i % 2, out: 1 },
    { ...kind, M: 72, N: 268, K: 64, ta: 0, tb: 1, bias: 1, acc: 0, out: 1 },
    { ...kind, M: 24, N: 16, K: 72, ta: 0, tb: 0, bias: 0, acc: (i + 1) % 2, out: 0 },
    { ...kind, M: 33, N: 17, K: 21, ta: 1, tb: 0, bias: 0, acc: 0, out: 1 },
    { ...kind, M: 64, N: 128, K: 96, ta: 1, tb: 0, bias: 0, acc: 1, out: 1 },
  ]);
}

/** One number for a, for b, or for both, beside every kind of the other operand. */
function scaledOperands(): Dims[] {
  const none = { a: 0, b: 0, ag: 0, bg: 0 };
  return [
    { ...none, M: 1, N: 1, K: 1, ta: 0, tb: 0, bias: 1, acc: 0, as: 1 },
    { ...none, M: 19, N: 24, K: 48, ta: 0, tb: 1, bias: 1, acc: 0, ka: 1, kb: 1, as: 1, bs: 1 },
    { ...none, M: 33, N: 40, K: 64, ta: 0, tb: 1, bias: 1, acc: 1, ka: 1, kb: 1, as: 1, bs: 1 },
    { ...none, M: 24, N: 16, K: 72, ta: 0, tb: 0, bias: 0, acc: 1, kb: 1, bs: 1, out: 1 },
    { ...none, M: 33, N: 17, K: 21, ta: 1, tb: 0, bias: 0, acc: 0, ka: 1, as: 1, out: 1 },
    { ...none, M: 9, N: 130, K: 72, ta: 0, tb: 1, bias: 1, acc: 0, ka: 2, kb: 1, bs: 1 },
    { ...none, M: 11, N: 20, K: 33, ta: 0, tb: 1, b: 3, bias: 1, acc: 0, ka: 1, as: 1, f: 3 },
    { ...none, M: 150, N: 140, K: 600, ta: 0, tb: 1, bias: 1, acc: 1, ka: 1, kb: 1, as: 1, bs: 1 },
    // Large tiles that all end beyond the matrices.
    { ...none, M: 300, N: 264, K: 328, ta: 0, tb: 1, bias: 1, acc: 0, ka: 1, kb: 1, as: 1, bs: 1 },
    { ...none, M: 270, N: 536, K: 328, ta: 0, tb: 0, bias: 0, acc: 1, ka: 1, kb: 1, bs: 1, out: 1 },
    { ...none, M: 392, N: 312, K: 300, ta: 1, tb: 0, bias: 1, acc: 0, ka: 1, kb: 1, as: 1, out: 1 },
    { ...none, M: 264, N: 280, K: 272, ta: 1, tb: 1, bias: 0, acc: 1, ka: 1, kb: 1 },
  ];
}

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
  ...linear(2048, 4096, 4096, 0, 0, 0)
    .slice(0, 1)
    .map((dims) => ({ ...dims, ka: 1, kb: 1, as: 1, bs: 1 })),
];

function gridOf(draw: Draw, x: Value, bits: number, group: number): readonly (Value | undefined)[] {
  if (bits === 0) return [undefined, undefined];
  const [M, K] = x.shape as [number, number];
  const options = { M, K, group, bits, symmetric: false, floor: WEIGHT_FLOOR, roundF16: false };
  const [scale, zero] = drawGrid(draw, x, undefined, options);
  if (!draw.short) return [scale, zero];
  // Numbers of few bits often lie right between two codes of the grid that they span, where f32 and
  // f64 may round in different directions.
  return [
    draw.value(
      scale.data.map((s) => 1.0137 * s),
      scale.shape,
    ),
    zero,
  ];
}

/** An operand of a kind (ka, kb) with its scale and zero. */
function drawOperand(
  draw: Draw,
  shape: readonly number[],
  { kind, isWeight }: { readonly kind: number; readonly isWeight: boolean },
  make: (x: Value) => readonly (Value | undefined)[],
): readonly [Value, readonly (Value | undefined)[]] {
  if (!draw.short || kind === 0) {
    const x = isWeight ? draw.stored(draw.normal(shape)) : draw.normal(shape);
    return [x, make(x)];
  }
  if (kind === 1) return [draw.stored(draw.normal(shape)), [undefined, undefined]];
  const codes = draw.integers(shape, 15, "i8");
  const scale = draw.uniform([shape[0] as number], 0.05, 0.2);
  return [{ ...codes, data: codes.data.map((code) => code - 7) }, [scale, undefined]];
}

/** Scale and zero of an operand that may have a number instead. */
function withNumber(
  grid: readonly (Value | undefined)[],
  number: Value | undefined,
): readonly (Value | undefined)[] {
  return number ? [number, undefined] : grid;
}

/** The operand as the product sees it. */
function used(call: Call, side: 0 | 1): Float64Array {
  const given = input(call, side);
  if (given.dtype === "i8") {
    const columns = given.shape[1] as number;
    const rows = input(call, 2 + 2 * side).data;
    return given.data.map((code, i) => code * (rows[Math.floor(i / columns)] ?? 0));
  }
  const x = side === 1 ? scaled(given, call.inputs[8], call.inputs[9]) : given;
  const [scale, zero] = [call.inputs[2 + 2 * side], call.inputs[3 + 2 * side]];
  if (scale && !zero) return x.data.map((value) => value * (scale.data[0] ?? 0));
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
  short: true,
  sets: SETS,
  real: REAL,
  make: (draw, dims) => {
    const [M, N, K] = [dim(dims, "M"), dim(dims, "N"), dim(dims, "K")];
    const [ta, tb] = [dim(dims, "ta"), dim(dims, "tb")];
    const [aBits, bBits] = [dim(dims, "a"), dim(dims, "b")];
    const [a, aGrid] = drawOperand(
      draw,
      ta ? [K, M] : [M, K],
      { kind: aBits ? 0 : (dims["ka"] ?? 0), isWeight: false },
      (x) => gridOf(draw, x, aBits, dim(dims, "ag")),
    );
    let factors: ReturnType<typeof drawFactors> = [undefined, undefined];
    const bShape = tb ? [N, K] : [K, N];
    const [b, bGrid] = drawOperand(
      draw,
      bShape,
      { kind: bBits ? 0 : (dims["kb"] ?? 0), isWeight: bBits > 0 },
      (x) => {
        factors = drawFactors(draw, dims, x);
        return gridOf(draw, scaled(x, ...factors), bBits, dim(dims, "bg"));
      },
    );
    const number = (name: string, low: number) =>
      dims[name] === 1 ? draw.uniform([1], low, 2 * low) : undefined;
    const isShort = draw.short !== undefined && dims["out"] === 1;
    const call: Call = {
      inputs: [
        a,
        b,
        ...withNumber(aGrid, number("as", 0.3)),
        ...withNumber(bGrid, number("bs", 1.2)),
        dim(dims, "bias") ? draw.normal([N]) : undefined,
        drawOffset(draw, dims, b),
        ...factors,
      ],
      params: {
        trans_a: ta,
        trans_b: tb,
        a_bits: aBits,
        a_group: dim(dims, "ag"),
        b_bits: bBits,
        b_group: dim(dims, "bg"),
        accumulate: dim(dims, "acc"),
        bf16: isShort ? 1 : 0,
      },
    };
    if (!dim(dims, "acc")) return call;
    const before = draw.normal([M, N]);
    return { ...call, outs: [isShort ? draw.gradient(before) : before] };
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
