// Cases of attention and its gradient, with and without quantized heads.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import {
  type AttentionSizes,
  attention as attentionReference,
  onHeadGrid,
} from "../reference/block.ts";
import { differences } from "../reference/finite-differences.ts";
import { type Grid, quantGrid } from "../reference/quantize.ts";
import { type Call, DIFFERENCES, type Dims, dim, input, type OpCase, param } from "./case.ts";

/** quantized: a bit each for q (1), k (2) and v (4). */
const SETS: readonly Dims[] = [
  { B: 1, T: 1, heads: 1, kv: 1, D: 1, quantized: 0 },
  { B: 2, T: 5, heads: 4, kv: 2, D: 6, quantized: 0 },
  { B: 1, T: 9, heads: 3, kv: 1, D: 4, quantized: 7 },
  { B: 2, T: 7, heads: 2, kv: 2, D: 5, quantized: 6 },
  { B: 1, T: 17, heads: 2, kv: 1, D: 8, quantized: 1 },
];
/** Long enough to cross every tile edge; too large for differences. */
const LONG_SETS: readonly Dims[] = [
  { B: 1, T: 131, heads: 2, kv: 1, D: 16, quantized: 7 },
  { B: 1, T: 70, heads: 1, kv: 1, D: 64, quantized: 0 },
];
const REAL: readonly Dims[] = [
  { B: 1, T: 2048, heads: 8, kv: 8, D: 64, quantized: 0 },
  { B: 1, T: 2048, heads: 8, kv: 8, D: 64, quantized: 7 },
  { B: 1, T: 2048, heads: 32, kv: 32, D: 128, quantized: 7 },
];

const BITS = 4;

function gridOf(draw: Draw, x: Value, heads: number, D: number): readonly [Value, Value] {
  const K = heads * D;
  const M = x.data.length / K;
  const { scale, zero } = quantGrid(x.data, undefined, {
    M,
    K,
    group: D,
    bits: BITS,
    symmetric: false,
    floor: 1e-6,
    roundF16: false,
  });
  return [draw.value(scale, [M, heads]), draw.value(zero, [M, heads])];
}

/** q, k, v and their grids. */
export function makeAttention(draw: Draw, dims: Dims): Call {
  const [B, T, D] = [dim(dims, "B"), dim(dims, "T"), dim(dims, "D")];
  const [heads, kv] = [dim(dims, "heads"), dim(dims, "kv")];
  const quantized = dim(dims, "quantized");
  const counts = [heads, kv, kv];
  const values = counts.map((count) => draw.normal([B, T, count * D]));
  const grids = values.flatMap((x, i) =>
    quantized & (1 << i) ? gridOf(draw, x, counts[i] ?? 0, D) : [undefined, undefined],
  );
  return {
    inputs: [...values, ...grids],
    params: { scale: 1 / Math.sqrt(D), heads, kv_heads: kv, bits: quantized ? BITS : 16, keep: 0 },
  };
}

export function sizes(call: Call): AttentionSizes {
  const [B, T, wide] = input(call, 0).shape as [number, number, number];
  const heads = param(call, "heads");
  const [kvHeads, scale] = [param(call, "kv_heads"), param(call, "scale")];
  return { B, T, heads, kvHeads, D: wide / heads, scale };
}

/** q, k and v as the op uses them: on their grids. */
export function used(call: Call): readonly Float64Array[] {
  const { heads, kvHeads, D } = sizes(call);
  return [heads, kvHeads, kvHeads].map((count, i) => {
    const [scale, zero] = [call.inputs[3 + 2 * i], call.inputs[4 + 2 * i]];
    const grid: Grid | undefined = scale && zero && { scale: scale.data, zero: zero.data };
    return onHeadGrid(input(call, i).data, grid, param(call, "bits"), { heads: count, D });
  });
}

/** The result on values as the op uses them. */
export function run(call: Call, [q, k, v]: readonly Float64Array[]) {
  if (!q || !k || !v) throw new Error("attention has three inputs");
  return attentionReference(q, k, v, sizes(call));
}

/** Multiply-adds of half the T x T square, `products` times. */
const squareFlops = (dims: Dims, products: number) =>
  products * dim(dims, "B") * dim(dims, "heads") * dim(dims, "T") ** 2 * dim(dims, "D");
const rowElements = (dims: Dims) =>
  dim(dims, "B") * dim(dims, "T") * dim(dims, "D") * (2 * dim(dims, "heads") + 2 * dim(dims, "kv"));

export const attention: OpCase = {
  op: "attention",
  sets: [...SETS, ...LONG_SETS],
  real: REAL,
  make: makeAttention,
  reference: (call) => {
    const { o, lse } = run(call, used(call));
    return [o, lse, new Float64Array(0)];
  },
  tolerance: { f32: { rtol: 2e-5, atol: 5e-6 }, f64: { rtol: 1e-11, atol: 1e-12 } },
  bytes: (dims, size) => rowElements(dims) * size,
  flops: (dims) => squareFlops(dims, 2),
  bound: "flops",
};

/** In place of what forward passes in 16 bits keep, which products in f32 leave alone. */
export function drawKept(draw: Draw, dims: Dims): Value | undefined {
  if (dims["kept"] !== 1) return undefined;
  const heads = dim(dims, "B") * (dim(dims, "heads") + 2 * dim(dims, "kv"));
  const width = Math.max(32, 2 ** Math.ceil(Math.log2(dim(dims, "D"))));
  const bytes = 2 * heads * Math.ceil(dim(dims, "T") / 128) * 128 * width;
  return draw.integers([bytes], 256, "u8");
}

/** The sets, one of them with something kept. */
export const withKept = (sets: readonly Dims[]): readonly Dims[] =>
  sets.map((dims, i) => (i === 2 ? { ...dims, kept: 1 } : dims));

const attentionGrad: OpCase = {
  op: "attention_grad",
  gradient: { forward: "attention", kind: "smooth" },
  sets: withKept(SETS),
  real: REAL,
  make: (draw, dims) => {
    const forward = makeAttention(draw, dims);
    const shape = input(forward, 0).shape;
    const { B, T, heads } = sizes(forward);
    const o = draw.derive(shape, () => run(forward, used(forward)).o);
    const lse = draw.derive([B, heads, T], () => run(forward, used(forward)).lse);
    const { keep: _, ...params } = forward.params;
    return {
      inputs: [...forward.inputs, o, lse, draw.normal(shape), drawKept(draw, dims)],
      params,
    };
  },
  reference: (call) => {
    const g = [input(call, 11).data];
    const forward = (xs: readonly Float64Array[]) => [run(call, xs).o];
    return [0, 1, 2].map((which) => differences(forward, used(call), which, g));
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 2 * rowElements(dims) * size,
  flops: (dims) => squareFlops(dims, 5),
  bound: "flops",
};

export const CASES: readonly OpCase[] = [attention, attentionGrad];
