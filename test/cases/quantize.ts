// Cases of the quantizers: quant_grid, fake_quant, quantize, dequantize.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { scaleWeight } from "../reference/fold.ts";
import * as reference from "../reference/quantize.ts";
import { type Call, CLOSE, type Dims, dim, EXACT, input, type OpCase, param } from "./case.ts";

/** Smallest scales: of weights and of tokens. */
export const WEIGHT_FLOOR = 2 ** -14;
export const TOKEN_FLOOR = 1e-6;

/** clip 0: none, 1: one logit, 2: logits [2, M, G]. */
export const GRID_SETS: readonly Dims[] = [
  { M: 1, K: 1, group: 0, bits: 4, symmetric: 0, clip: 0 },
  { M: 5, K: 7, group: 0, bits: 4, symmetric: 0, clip: 2 },
  { M: 3, K: 64, group: 32, bits: 3, symmetric: 0, clip: 2 },
  { M: 4, K: 45, group: 16, bits: 2, symmetric: 0, clip: 2 },
  { M: 2, K: 33, group: 8, bits: 8, symmetric: 0, clip: 1 },
  { M: 9, K: 31, group: 0, bits: 4, symmetric: 0, clip: 1 },
  { M: 3, K: 20, group: 20, bits: 4, symmetric: 0, clip: 0 },
  { M: 4, K: 29, group: 12, bits: 4, symmetric: 1, clip: 2 },
  { M: 6, K: 17, group: 0, bits: 3, symmetric: 1, clip: 1 },
  { M: 2, K: 50, group: 25, bits: 2, symmetric: 1, clip: 0 },
  { M: 3, K: 19, group: 6, bits: 8, symmetric: 1, clip: 2 },
  { M: 2, K: 6, group: 1, bits: 4, symmetric: 0, clip: 2 },
];

/** Grids of the published code; groups of one or two values mostly have one sign. */
export const PUBLISHED_SETS: readonly Dims[] = [
  { M: 1, K: 1, group: 0, bits: 4, symmetric: 0, clip: 0, rule: 1 },
  ...GRID_SETS.map((dims) => ({ ...dims, rule: 1 })),
  { M: 9, K: 26, group: 2, bits: 3, symmetric: 0, clip: 2, rule: 1 },
  { M: 9, K: 26, group: 2, bits: 3, symmetric: 1, clip: 2, rule: 1 },
];

/** Weights per channel and in groups, tokens, of llama-23m and of a 7B model. */
export const GRID_REAL: readonly Dims[] = [
  { M: 1376, K: 512, group: 0, bits: 4, symmetric: 0, clip: 2 },
  { M: 1376, K: 512, group: 32, bits: 2, symmetric: 0, clip: 2 },
  { M: 2048, K: 512, group: 0, bits: 4, symmetric: 0, clip: 1 },
  { M: 2048, K: 512, group: 64, bits: 4, symmetric: 0, clip: 1 },
  { M: 4096, K: 4096, group: 128, bits: 4, symmetric: 0, clip: 2 },
];

/** Clipping logits of a set, away from their start so that they matter. */
export function drawClip(draw: Draw, dims: Dims): Value | undefined {
  const M = dim(dims, "M");
  const G = reference.groupCount({ M, K: dim(dims, "K"), group: dim(dims, "group") });
  switch (dim(dims, "clip")) {
    case 0:
      return undefined;
    case 1:
      return draw.normal([1], 0.5, 2);
    default:
      return draw.normal([2, M, G], 0.7, 2);
  }
}

/** What the grid of a set depends on; one logit is how tokens clip, so it brings their floor. */
export function gridOptions(dims: Dims): reference.GridOptions {
  return {
    M: dim(dims, "M"),
    K: dim(dims, "K"),
    group: dim(dims, "group"),
    bits: dim(dims, "bits"),
    symmetric: dim(dims, "symmetric") === 1,
    floor: dim(dims, "clip") === 1 ? TOKEN_FLOOR : WEIGHT_FLOOR,
    roundF16: dims["f16"] === 1,
    published: dims["rule"] === 1,
  };
}

/** Scale and zero of x on the grid of a set. */
export function drawGrid(
  draw: Draw,
  x: Value,
  clip: Value | undefined,
  options: reference.GridOptions,
): readonly [Value, Value] {
  const { scale, zero } = reference.quantGrid(x.data, clip?.data, options);
  const shape = [options.M, reference.groupCount(options)];
  return [draw.value(scale, shape), draw.value(zero, shape)];
}

/** Factors r of x's rows (f 1), c of its columns (f 2) or both (f 3), for sets that say so. */
export function drawFactors(
  draw: Draw,
  dims: Dims,
  x: Value,
): readonly [Value | undefined, Value | undefined] {
  const [rows, columns] = x.shape as [number, number];
  const f = dims["f"] ?? 0;
  return [
    f & 1 ? draw.normal([rows], 0.3, 1) : undefined,
    f & 2 ? draw.normal([columns]) : undefined,
  ];
}

/** r_m x_mk c_k. */
export function scaled(x: Value, r: Value | undefined, c: Value | undefined): Value {
  const data = scaleWeight(x.data, r?.data, c?.data, x.shape as [number, number]);
  return { ...x, data };
}

/** Sets with factors. */
export const FACTOR_SETS: readonly Dims[] = [
  { M: 1, K: 1, group: 0, bits: 4, symmetric: 0, clip: 0, f: 3 },
  { M: 5, K: 37, group: 0, bits: 4, symmetric: 0, clip: 2, f: 1 },
  { M: 6, K: 64, group: 32, bits: 3, symmetric: 0, clip: 2, f: 2 },
  { M: 4, K: 45, group: 16, bits: 2, symmetric: 0, clip: 2, f: 3 },
  { M: 9, K: 130, group: 0, bits: 4, symmetric: 1, clip: 1, f: 3 },
  { M: 70, K: 260, group: 128, bits: 3, symmetric: 0, clip: 2, f: 3 },
  { M: 33, K: 129, group: 0, bits: 3, symmetric: 0, clip: 2, f: 2, rule: 1 },
];

/** Rounding offsets of x for sets that say v: 1. */
export function drawOffset(draw: Draw, dims: Dims, x: Value): Value | undefined {
  return dims["v"] === 1 ? draw.uniform(x.shape, -0.5, 0.5) : undefined;
}

/** The sets of grids, some of them again with rounding offsets. */
export const OFFSET_SETS: readonly Dims[] = [
  ...GRID_SETS,
  ...GRID_SETS.filter(({ bits }) => bits !== 8).map((dims) => ({ ...dims, v: 1 })),
];
const [channels, groups] = GRID_REAL as readonly [Dims, Dims];
/** The real sets, weights also with rounding offsets. */
export const OFFSET_REAL: readonly Dims[] = [
  ...GRID_REAL,
  { ...channels, v: 1 },
  { ...groups, v: 1 },
];

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "K");

const quantGrid: OpCase = {
  op: "quant_grid",
  short: true,
  sets: [
    ...GRID_SETS,
    ...FACTOR_SETS,
    { M: 7, K: 48, group: 16, bits: 3, symmetric: 0, clip: 2, f16: 1 },
    { M: 7, K: 48, group: 0, bits: 4, symmetric: 1, clip: 0, f16: 1 },
    ...PUBLISHED_SETS,
    { M: 7, K: 48, group: 16, bits: 3, symmetric: 0, clip: 2, f16: 1, rule: 1 },
  ],
  real: GRID_REAL,
  make: (draw, dims) => {
    const options = gridOptions(dims);
    const x = draw.stored(draw.normal([options.M, options.K]));
    return {
      inputs: [x, drawClip(draw, dims), ...drawFactors(draw, dims, x)],
      params: {
        bits: options.bits,
        group: options.group,
        symmetric: dim(dims, "symmetric"),
        rule: dims["rule"] ?? 0,
        round_f16: dims["f16"] ?? 0,
        floor: options.floor,
      },
    };
  },
  reference: (call) => {
    const [M, K] = input(call, 0).shape as [number, number];
    const x = scaled(input(call, 0), call.inputs[2], call.inputs[3]);
    const { scale, zero } = reference.quantGrid(x.data, call.inputs[1]?.data, {
      M,
      K,
      group: param(call, "group"),
      bits: param(call, "bits"),
      symmetric: param(call, "symmetric") === 1,
      floor: param(call, "floor"),
      roundF16: param(call, "round_f16") === 1,
      published: param(call, "rule") === 1,
    });
    return [scale, zero];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * size,
  flops: (dims) => 2 * elements(dims),
  bound: "memory",
};

/** Inputs x, scale, zero, v and the parameters bits and group of a set. */
function makeOnGrid(draw: Draw, dims: Dims): Call {
  const options = gridOptions(dims);
  const x = draw.normal([options.M, options.K]);
  const grid = drawGrid(draw, x, drawClip(draw, dims), options);
  return {
    inputs: [x, ...grid, drawOffset(draw, dims, x)],
    params: { bits: options.bits, group: options.group },
  };
}

function gridOf(call: Call): reference.Grid {
  return { scale: input(call, 1).data, zero: input(call, 2).data };
}

function groupsOf(call: Call): reference.Groups {
  const [M, K] = input(call, 0).shape as [number, number];
  return { M, K, group: param(call, "group") };
}

const fakeQuant: OpCase = {
  op: "fake_quant",
  sets: OFFSET_SETS,
  real: OFFSET_REAL,
  make: makeOnGrid,
  reference: (call) => [
    reference.fakeQuant(
      input(call, 0).data,
      gridOf(call),
      param(call, "bits"),
      groupsOf(call),
      call.inputs[3]?.data,
    ),
  ],
  tolerance: CLOSE,
  bytes: (dims, size) => (2 + (dims["v"] ?? 0)) * elements(dims) * size,
  flops: (dims) => 7 * elements(dims),
  bound: "memory",
};

const quantize: OpCase = {
  op: "quantize",
  sets: OFFSET_SETS,
  real: OFFSET_REAL,
  make: makeOnGrid,
  reference: (call) => [
    reference.quantize(
      input(call, 0).data,
      gridOf(call),
      param(call, "bits"),
      groupsOf(call),
      call.inputs[3]?.data,
    ),
  ],
  tolerance: EXACT,
  bytes: (dims, size) => elements(dims) * (size + 1 + (dims["v"] ?? 0) * size),
  flops: (dims) => 5 * elements(dims),
  bound: "memory",
};

const dequantize: OpCase = {
  op: "dequantize",
  sets: GRID_SETS,
  real: GRID_REAL,
  make: (draw, dims) => {
    const { inputs, params } = makeOnGrid(draw, dims);
    const codes = draw.integers([dim(dims, "M"), dim(dims, "K")], 2 ** dim(dims, "bits"), "u8");
    return { inputs: [codes, ...inputs.slice(1, 3)], params: { group: params["group"] ?? 0 } };
  },
  reference: (call) => [reference.dequantize(input(call, 0).data, gridOf(call), groupsOf(call))],
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * (size + 1),
  flops: (dims) => 2 * elements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [quantGrid, fakeQuant, quantize, dequantize];
