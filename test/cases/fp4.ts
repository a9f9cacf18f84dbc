// Cases of the 4-bit floats: fp4_global, fp4_operand, fp4_values and fp4_grad.
import { DTYPES, type DType, dtypeCode } from "../../lib/tensor/dtype.ts";
import type { Draw } from "../helpers/random.ts";
import { sizeOf, type Value } from "../helpers/value.ts";
import * as reference from "../reference/fp4.ts";
import { CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";
import { drawFactors, drawOffset, scaled } from "./quantize.ts";

/** Middles between two e2m1 numbers, the largest number, and some that need no rounding. */
const TIES = [6, 0.25, -0.75, 1.25, 1.75, -2.5, 3.5, -5, 0, -0.25, 0.75, -1.75, 2.5, -3.5, 5, -6];

/** Magnitudes below the normal numbers. */
const TINY: Partial<Record<DType, number>> = { f64: 1e-310, f16: 2e-6 };

/**
 * x of a set. data 0: normal numbers; 1: zeros; 2: groups of zeros, of subnormal numbers, with one huge
 * outlier, and of normal numbers; 3: exactly on ties, with a scale of 4 where g is absent.
 */
function drawMatrix(draw: Draw, dims: Dims): Value {
  const [M, K] = [dim(dims, "M"), dim(dims, "K")];
  const normal = draw.normal([M, K]);
  const data = dims["data"] ?? 0;
  if (data === 0) return draw.stored(normal);
  const group = reference.groupSize(dim(dims, "format"));
  const tiny = TINY[draw.short ?? draw.dtype] ?? 1e-40;
  const change = (x: number, i: number): number => {
    if (data === 1) return 0;
    if (data === 3) return 4 * (TIES[i % TIES.length] as number);
    const kind = Math.floor(i / group) % 5;
    if (kind === 0) return 0;
    if (kind === 1) return tiny * x;
    return kind === 2 && i % group === 3 ? -1e4 : x;
  };
  return draw.stored(draw.value(normal.data.map(change), [M, K]));
}

/** g of a set by the place here, times what makes the largest scale 448; infinite: counts as 1. */
const GLOBALS = [undefined, 0.97, Number.POSITIVE_INFINITY, 5.3, 3e-7] as const;

/** A global scale of x, absent where the set says g: 0. */
function drawGlobal(draw: Draw, dims: Dims, x: Value): Value | undefined {
  let kind = dims["g"] ?? 0;
  // Numbers of few bits often lie right between two others where g is 1, and there f32 and f64 may
  // round in different directions.
  const isExact = dim(dims, "format") === 1 || dims["data"] === 3;
  if (draw.short && !isExact && GLOBALS[kind] !== 5.3) kind = 1;
  const factor = GLOBALS[kind];
  if (factor === undefined) return undefined;
  return draw.value([factor * reference.globalScale(x.data, Number.POSITIVE_INFINITY)], [1]);
}

/** Clipping logits: none, one, or [M, G]. */
function drawClip(draw: Draw, dims: Dims): Value | undefined {
  const G = dim(dims, "K") / reference.groupSize(dim(dims, "format"));
  switch (dims["clip"] ?? 0) {
    case 0:
      return undefined;
    case 1:
      return draw.normal([1], 0.5, 2);
    default:
      return draw.normal([dim(dims, "M"), G], 0.7, 2);
  }
}

/** Matrices that are quantized: sizes of a few groups, everything learned, and what is easy to get wrong. */
const SETS: readonly Dims[] = [
  { M: 1, K: 16, format: 0 },
  { M: 5, K: 48, format: 0, g: 1 },
  { M: 3, K: 160, format: 0, g: 1, clip: 1 },
  { M: 7, K: 48, format: 0, g: 1, clip: 2 },
  { M: 5, K: 160, format: 0, g: 1, clip: 2, v: 1 },
  { M: 9, K: 48, format: 0, g: 1, v: 1 },
  { M: 3, K: 48, format: 0, g: 1, clip: 2, f: 1 },
  { M: 5, K: 160, format: 0, g: 1, clip: 1, f: 2 },
  { M: 35, K: 48, format: 0, g: 1, clip: 2, v: 1, f: 3 },
  { M: 3, K: 160, format: 0, g: 2 },
  { M: 3, K: 160, format: 0, g: 3, clip: 2 },
  { M: 3, K: 160, format: 0, g: 4, clip: 2, v: 1 },
  { M: 3, K: 48, format: 0, g: 1, data: 1 },
  { M: 3, K: 48, format: 0, clip: 2, data: 1 },
  { M: 3, K: 160, format: 0, g: 1, data: 2 },
  { M: 3, K: 160, format: 0, g: 1, data: 2, clip: 2, v: 1 },
  { M: 3, K: 48, format: 0, data: 3 },
  { M: 1, K: 32, format: 1 },
  { M: 5, K: 96, format: 1, clip: 2 },
  { M: 3, K: 160, format: 1, clip: 1 },
  { M: 9, K: 96, format: 1, v: 1 },
  { M: 5, K: 160, format: 1, clip: 2, v: 1, f: 3 },
  { M: 35, K: 32, format: 1, clip: 2, f: 1 },
  { M: 3, K: 64, format: 1, data: 1, clip: 2 },
  { M: 3, K: 160, format: 1, data: 2 },
  { M: 3, K: 160, format: 1, data: 2, clip: 2, v: 1 },
  { M: 3, K: 96, format: 1, data: 3 },
  // More than a piece of a row.
  { M: 3, K: 1104, format: 0, g: 1, clip: 2, v: 1, f: 3 },
  { M: 2, K: 2080, format: 1, clip: 1, f: 2 },
];

/** Weights and tokens of a 7B model. */
const REAL: readonly Dims[] = [
  { M: 4096, K: 4096, format: 0, g: 1, clip: 2 },
  { M: 4096, K: 4096, format: 0, g: 1, clip: 2, v: 1 },
  { M: 4096, K: 4096, format: 0, g: 1, clip: 2, f: 3 },
  { M: 2048, K: 4096, format: 0, g: 1 },
  { M: 4096, K: 4096, format: 1, clip: 2 },
  { M: 2048, K: 4096, format: 1 },
];

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "K");
const factors = (dims: Dims) => (dims["f"] ?? 0) > 0;

const fp4Global: OpCase = {
  op: "fp4_global",
  short: true,
  // before: g of the matrices before, larger (1) or smaller (2) than this one's own, infinite (3) or
  // NaN (4). nan 1: x holds one.
  sets: [
    { M: 1, K: 1 },
    { M: 5, K: 7, before: 1 },
    { M: 3, K: 48, before: 2 },
    { M: 2, K: 33, before: 3, f: 1 },
    { M: 7, K: 1300, f: 2 },
    { M: 37, K: 130, before: 1, f: 3 },
    { M: 3, K: 16, before: 4 },
    { M: 3, K: 16, data: 1 },
    { M: 3, K: 16, data: 1, before: 2 },
    { M: 3, K: 131, nan: 1 },
    { M: 40, K: 1040, nan: 1, before: 2 },
  ],
  real: [
    { M: 4096, K: 4096, before: 1 },
    { M: 4096, K: 4096, before: 1, f: 3 },
    { M: 2048, K: 4096 },
  ],
  make: (draw, dims) => {
    let x = drawMatrix(draw, { ...dims, format: 0 });
    if (dims["nan"]) x = { ...x, data: x.data.map((n, i) => (i === x.data.length >> 1 ? NaN : n)) };
    const before = [undefined, 1e6, 0.125, Number.POSITIVE_INFINITY, Number.NaN][
      dims["before"] ?? 0
    ];
    return {
      inputs: [x, before && draw.value([before], [1]), ...drawFactors(draw, dims, x)].map(
        (value) => value || undefined,
      ),
      params: {},
    };
  },
  reference: (call) => {
    const x = scaled(input(call, 0), call.inputs[2], call.inputs[3]);
    const before = call.inputs[1]?.data[0] ?? Number.POSITIVE_INFINITY;
    return [Float64Array.of(reference.globalScale(x.data, before))];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * size,
  flops: (dims) => (factors(dims) ? 4 : 2) * elements(dims),
  bound: "memory",
};

const fp4Operand: OpCase = {
  op: "fp4_operand",
  short: true,
  // y: the type of the quantized matrix; 0 the float type under test, 1 bf16 with f32, 2 codes.
  sets: SETS.flatMap((dims, i) => [
    { ...dims, y: i % 2 },
    { ...dims, y: 2 },
  ]),
  real: REAL.flatMap((dims, i) => (i === 0 ? [0, 1, 2] : [1]).map((y) => ({ ...dims, y }))),
  make: (draw, dims) => {
    const x = drawMatrix(draw, dims);
    const [r, c] = drawFactors(draw, dims, x);
    const types: readonly DType[] = [draw.dtype, draw.dtype === "f32" ? "bf16" : "f64", "u8"];
    return {
      inputs: [
        x,
        drawGlobal(draw, dims, scaled(x, r, c)),
        drawClip(draw, dims),
        drawOffset(draw, dims, x),
        r,
        c,
      ],
      params: { format: dim(dims, "format"), dtype: dtypeCode(types[dim(dims, "y")] as DType) },
    };
  },
  reference: (call) => {
    const [M, K] = input(call, 0).shape as [number, number];
    const x = scaled(input(call, 0), call.inputs[4], call.inputs[5]);
    const format = param(call, "format");
    const g = reference.globalOf(call.inputs[1]?.data);
    const [clip, v] = [call.inputs[2]?.data, call.inputs[3]?.data];
    const { scale, codes } = reference.fp4Quantize(x.data, { M, K, format, g, clip, v });
    const isCodes = DTYPES[param(call, "dtype")] === "u8";
    const y = isCodes ? codes : reference.fp4Values(codes, scale, { K, format, g: 1 });
    return [scale, Float64Array.of(1 / g), y];
  },
  tolerance: CLOSE,
  bytes: (dims, size) =>
    elements(dims) * (size * (1 + (dims["v"] ?? 0)) + (dim(dims, "y") === 2 ? 1 : size)),
  flops: (dims) => 16 * elements(dims),
  bound: "memory",
};

const fp4Values: OpCase = {
  op: "fp4_values",
  sets: [
    { M: 1, K: 16, format: 0 },
    { M: 5, K: 48, format: 0, g: 1 },
    { M: 3, K: 160, format: 0, g: 2 },
    { M: 5, K: 96, format: 1 },
  ],
  real: [
    { M: 4096, K: 4096, format: 0, g: 1 },
    { M: 4096, K: 4096, format: 1 },
  ],
  make: (draw, dims) => {
    const [M, K, format] = [dim(dims, "M"), dim(dims, "K"), dim(dims, "format")];
    const shape = [M, K / reference.groupSize(format)];
    const a = draw.uniform(shape, 0.1, 2000);
    const scale = a.data.map((n) => reference.scaleOf(n, 1, format));
    const g = [undefined, 37.7, Number.POSITIVE_INFINITY][dims["g"] ?? 0];
    return {
      inputs: [
        draw.integers([M, K], 16, "u8"),
        draw.value(scale, shape),
        g ? draw.value([g], [1]) : undefined,
      ],
      params: { format },
    };
  },
  reference: (call) => {
    const K = input(call, 0).shape[1] as number;
    const g = reference.globalOf(call.inputs[2]?.data);
    const format = param(call, "format");
    return [reference.fp4Values(input(call, 0).data, input(call, 1).data, { K, format, g })];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * (size + 1),
  flops: (dims) => 2 * elements(dims),
  bound: "memory",
};

const fp4Grad: OpCase = {
  op: "fp4_grad",
  short: true,
  gradient: { forward: "fp4_operand", kind: "rule" },
  // x 0: x is a constant and wants no gradient, as while rounding is learned.
  sets: [...SETS, ...SETS.filter(({ M }) => M !== 1).map((dims) => ({ ...dims, x: 0 }))],
  real: REAL.map((dims) => (dims["v"] === 1 ? { ...dims, x: 0 } : dims)),
  make: (draw, dims) => {
    const [M, K, format] = [dim(dims, "M"), dim(dims, "K"), dim(dims, "format")];
    const x = drawMatrix(draw, dims);
    const [r, c] = drawFactors(draw, dims, x);
    const used = scaled(x, r, c);
    const g = drawGlobal(draw, dims, used);
    const clip = drawClip(draw, dims);
    const shape = [M, K / reference.groupSize(format)];
    const scale = draw.derive(shape, () => {
      const options = { M, K, format, g: reference.globalOf(g?.data), clip: clip?.data };
      return reference.fp4Quantize(used.data, options).scale;
    });
    const offset = drawOffset(draw, dims, x);
    const grad = draw.gradient(draw.normal([M, K]));
    return {
      inputs: [x, scale, g, grad, clip, offset, r, c],
      params: { format, need_gx: dims["x"] ?? 1, spends_grad: 0 },
    };
  },
  reference: (call) => {
    const [x, grad, r, c] = [input(call, 0), input(call, 3), call.inputs[6], call.inputs[7]];
    const [M, K] = x.shape as [number, number];
    const format = param(call, "format");
    const g = reference.globalOf(call.inputs[2]?.data);
    const [clip, v] = [call.inputs[4]?.data, call.inputs[5]?.data];
    const options = { M, K, format, g, clip, v };
    const { gx, gclip, gv } = reference.fp4Gradient(scaled(x, r, c).data, grad.data, options);
    // r x c was quantized: each factor gathers the gradient times the other two.
    const gr = new Float64Array(r ? M : 0);
    const gc = new Float64Array(c ? K : 0);
    for (let i = 0; i < sizeOf(x.shape); i++) {
      const [m, k] = [Math.floor(i / K), i % K];
      const [rm, ck] = [r?.data[m] ?? 1, c?.data[k] ?? 1];
      const product = (gx[i] as number) * (x.data[i] as number);
      if (r) gr[m] = (gr[m] as number) + product * ck;
      if (c) gc[k] = (gc[k] as number) + product * rm;
      gx[i] = (gx[i] as number) * rm * ck;
    }
    return [param(call, "need_gx") === 1 ? gx : new Float64Array(0), gclip, gv, gr, gc];
  },
  tolerance: { f32: { rtol: 1e-4, atol: 5e-5 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => (2 + (dims["x"] ?? 1) + 2 * (dims["v"] ?? 0)) * elements(dims) * size,
  flops: (dims) => 24 * elements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [fp4Global, fp4Operand, fp4Values, fp4Grad];
