// Cases of rope, which turns back as well.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { rope as ropeReference } from "../reference/block.ts";
import { CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";

const ropeElements = (dims: Dims) =>
  dim(dims, "B") * dim(dims, "T") * dim(dims, "heads") * dim(dims, "D");

/** Rows of heads, and the tables of their positions. */
export function makeRope(draw: Draw, dims: Dims): readonly Value[] {
  const [B, T] = [dim(dims, "B"), dim(dims, "T")];
  const [heads, D] = [dim(dims, "heads"), dim(dims, "D")];
  const angles = Float64Array.from({ length: (T * D) / 2 }, (_, i) => {
    const pair = i % (D / 2);
    return Math.floor(i / (D / 2)) * 10000 ** ((-2 * pair) / D);
  });
  const table = [T, D / 2];
  return [
    draw.normal([B, T, heads * D]),
    draw.value(angles.map(Math.cos), table),
    draw.value(angles.map(Math.sin), table),
  ];
}

const rope: OpCase = {
  op: "rope",
  short: true,
  sets: [
    { B: 1, T: 1, heads: 1, D: 2, inverse: 0 },
    { B: 2, T: 5, heads: 3, D: 6, inverse: 0 },
    { B: 3, T: 4, heads: 1, D: 16, inverse: 1 },
    { B: 1, T: 9, heads: 2, D: 34, inverse: 0 },
  ],
  real: [
    { B: 1, T: 2048, heads: 8, D: 64, inverse: 0 },
    { B: 1, T: 2048, heads: 32, D: 128, inverse: 1 },
  ],
  make: (draw, dims) => ({
    inputs: makeRope(draw, dims),
    params: {
      heads: dim(dims, "heads"),
      inverse: dim(dims, "inverse"),
      bf16: draw.short === "bf16" ? 1 : 0,
    },
  }),
  reference: (call) => {
    const [x, cos, sin] = [input(call, 0), input(call, 1), input(call, 2)];
    const [T, half] = cos.shape as [number, number];
    const sizes = { T, heads: param(call, "heads"), D: 2 * half };
    return [ropeReference(x.data, cos.data, sin.data, sizes, param(call, "inverse") !== 0)];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * ropeElements(dims) * size,
  flops: (dims) => 3 * ropeElements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [rope];
