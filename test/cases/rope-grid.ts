// Cases of rope with the grids of its heads, and of the gradient through both.
import type { Value } from "../helpers/value.ts";
import { rope as ropeReference } from "../reference/block.ts";
import { quantGrid } from "../reference/quantize.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";
import { drawLogit } from "./block-operand.ts";
import { type Call, CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";
import { TOKEN_FLOOR } from "./quantize.ts";
import { makeRope } from "./rope.ts";

/** clip: with a logit. */
const SETS: readonly Dims[] = [
  { B: 1, T: 1, heads: 1, D: 2, bits: 4 },
  { B: 2, T: 5, heads: 3, D: 6, bits: 4, clip: 1 },
  { B: 1, T: 9, heads: 5, D: 32, bits: 3, clip: 1 },
  { B: 2, T: 7, heads: 3, D: 64, bits: 7, clip: 1 },
  { B: 1, T: 5, heads: 6, D: 128, bits: 4, clip: 1 },
  { B: 1, T: 3, heads: 1, D: 256, bits: 4 },
];
const REAL: readonly Dims[] = [
  { B: 1, T: 2048, heads: 8, D: 64, bits: 4, clip: 1 },
  { B: 1, T: 2048, heads: 32, D: 128, bits: 4, clip: 1 },
];

const elements = (dims: Dims): number =>
  dim(dims, "B") * dim(dims, "T") * dim(dims, "heads") * dim(dims, "D");

function sizes(call: Call) {
  const [T, half] = input(call, 1).shape as [number, number];
  return { T, heads: param(call, "heads"), D: 2 * half };
}

function gridOptions(call: Call) {
  const { heads, D } = sizes(call);
  const [K, bits] = [heads * D, param(call, "bits")];
  const M = input(call, 0).data.length / K;
  return { M, K, group: D, bits, symmetric: false, floor: TOKEN_FLOOR, roundF16: false };
}

const turned = (call: Call, data: Float64Array, inverse: boolean): Float64Array =>
  ropeReference(data, input(call, 1).data, input(call, 2).data, sizes(call), inverse);

const ropeGrid: OpCase = {
  op: "rope_grid",
  sets: SETS,
  real: REAL,
  make: (draw, dims) => ({
    inputs: [...makeRope(draw, dims), drawLogit(draw, dims)],
    params: { heads: dim(dims, "heads"), floor: TOKEN_FLOOR, bits: dim(dims, "bits") },
  }),
  reference: (call) => {
    const y = turned(call, input(call, 0).data, false);
    const { scale, zero } = quantGrid(y, call.inputs[3]?.data, gridOptions(call));
    return [y, scale, zero];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * elements(dims) * size,
  flops: (dims) => 6 * elements(dims),
  bound: "memory",
};

const ropeGridGrad: OpCase = {
  op: "rope_grid_grad",
  gradient: { forward: "rope_grid", kind: "rule" },
  short: true,
  sets: SETS,
  real: REAL,
  make: (draw, dims) => {
    const forward = ropeGrid.make(draw, dims);
    const [x, cos, sin, clip] = forward.inputs as [Value, Value, Value, Value | undefined];
    const y = draw.value(turned(forward, x.data, false), x.shape);
    const { scale, zero } = quantGrid(y.data, clip?.data, gridOptions(forward));
    const rows = [dim(dims, "B") * dim(dims, "T"), dim(dims, "heads")];
    const grid = [scale, zero].map((data) => draw.value(data, rows));
    return {
      inputs: [y, cos, sin, clip, ...grid, draw.normal(x.shape)],
      params: { ...forward.params, bf16: draw.short === "bf16" ? 1 : 0 },
    };
  },
  reference: (call) => {
    const clip = call.inputs[3]?.data;
    const options = gridOptions(call);
    const through = fakeQuantGradient(input(call, 0).data, clip, input(call, 6).data, options);
    return [turned(call, through.gx, true), through.gclip];
  },
  tolerance: { f32: { rtol: 2e-4, atol: 2e-4 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => 3 * elements(dims) * size,
  flops: (dims) => 22 * elements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [ropeGrid, ropeGridGrad];
