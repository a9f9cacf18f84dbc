// Cases of the block's ops that give 4-bit floats. Rows up to the longest that a block of a GPU keeps, and some
// that go through memory there.
import { type DType, dtypeCode } from "../../lib/tensor/dtype.ts";
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { gateGradient, layerNorm, normGradient, rmsNorm, siluMul } from "../reference/block.ts";
import {
  fp4Gradient,
  fp4Quantize,
  fp4Values,
  globalOf,
  globalScale,
  groupSize,
} from "../reference/fp4.ts";
import { type Call, CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";

const EPS = 1e-5;
const NONE = new Float64Array(0);

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "C");

/** The global scale of y, nearly; absent where the set says g: 0 or own: 1, and for MXFP4. */
function drawGlobal(draw: Draw, dims: Dims, y: Float64Array): Value | undefined {
  if (dims["g"] === 0 || dims["own"] === 1 || dim(dims, "format") === 1) return undefined;
  return draw.value([0.97 * globalScale(y, Number.POSITIVE_INFINITY)], [1]);
}

/** y 1: bf16 with f32. */
const outputParams = (draw: Draw, dims: Dims) => {
  const type: DType = dims["y"] === 1 && draw.dtype === "f32" ? "bf16" : draw.dtype;
  return { format: dim(dims, "format"), dtype: dtypeCode(type), own: dims["own"] ?? 0 };
};

const optionsOf = (format: number, [M, K]: readonly number[], g: Value | undefined) => ({
  M: M as number,
  K: K as number,
  format,
  g: globalOf(g?.data),
});

/** Global scale, scale, factor and numbers of the rows of y. */
function floatsOf(y: Float64Array, call: Call, g: Value | undefined): Float64Array[] {
  const isOwn = param(call, "own") === 1;
  const global = isOwn ? globalScale(y, Number.POSITIVE_INFINITY) : (g?.data[0] ?? 1);
  const options = {
    ...optionsOf(param(call, "format"), input(call, 0).shape, undefined),
    g: globalOf(Float64Array.of(global)),
  };
  const { scale, codes } = fp4Quantize(y, options);
  return [
    Float64Array.of(global),
    scale,
    Float64Array.of(1 / options.g),
    fp4Values(codes, scale, { ...options, g: 1 }),
  ];
}

/** The scales of y that a gradient is given. */
function drawScale(draw: Draw, dims: Dims, y: Float64Array, g: Value | undefined): Value {
  const [M, K, format] = [dim(dims, "M"), dim(dims, "C"), dim(dims, "format")];
  const { scale } = fp4Quantize(y, optionsOf(format, [M, K], g));
  return draw.value(scale, [M, K / groupSize(format)]);
}

// ---------------------------------------------------------------- norms

/** b: with a bias; g 0: without a global scale; own 1: with its own. */
const NORM_SETS: readonly Dims[] = [
  { M: 1, C: 16, format: 0 },
  { M: 3, C: 48, format: 0, b: 1, y: 1 },
  { M: 9, C: 32, format: 1, y: 1 },
  { M: 19, C: 144, format: 0, b: 1, y: 1 },
  { M: 11, C: 160, format: 1, b: 1, y: 1 },
  { M: 9, C: 512, format: 0, g: 0, y: 1 },
  { M: 5, C: 528, format: 0, b: 1, y: 1 },
  { M: 3, C: 4096, format: 0, b: 1, y: 1 },
  { M: 5, C: 256, format: 0, own: 1, y: 1 },
  { M: 9, C: 1040, format: 0, b: 1, own: 1, y: 1 },
  { M: 3, C: 48, format: 0, own: 1 },
  { M: 3, C: 2080, format: 1 },
  { M: 2, C: 8208, format: 0, y: 1 },
  { M: 1, C: 16400, format: 0, b: 1, y: 1 },
];
const NORM_REAL: readonly Dims[] = [
  { M: 2048, C: 512, format: 0, b: 1, y: 1 },
  { M: 2048, C: 4096, format: 0, b: 1, y: 1 },
  { M: 2048, C: 4096, format: 0, own: 1, y: 1 },
];

const rmsNormFp4: OpCase = {
  op: "rms_norm_fp4",
  sets: NORM_SETS,
  real: NORM_REAL,
  make: (draw, dims) => {
    const C = dim(dims, "C");
    const x = draw.normal([dim(dims, "M"), C], 2);
    const w = draw.normal([C], 0.2, 1);
    const b = dims["b"] === 1 ? draw.normal([C], 0.3) : undefined;
    const { y } = rmsNorm(x.data, w.data, EPS, b?.data);
    return {
      inputs: [x, w, b, drawGlobal(draw, dims, y)],
      params: { eps: EPS, ...outputParams(draw, dims) },
    };
  },
  reference: (call) => {
    const [x, w, b] = [input(call, 0), input(call, 1).data, call.inputs[2]?.data];
    const { y, rstd } = rmsNorm(x.data, w, EPS, b);
    return [rstd, ...floatsOf(y, call, call.inputs[3])];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * (size + 2),
  flops: (dims) => 21 * elements(dims),
  bound: "memory",
};

const layerNormFp4: OpCase = {
  ...rmsNormFp4,
  op: "layer_norm_fp4",
  sets: NORM_SETS.map((dims) => ({ ...dims, b: 1 })),
  make: (draw, dims) => {
    const C = dim(dims, "C");
    const x = draw.normal([dim(dims, "M"), C], 2, 0.5);
    const [w, b] = [draw.normal([C], 0.2, 1), draw.normal([C], 0.3)];
    const { y } = layerNorm(x.data, w.data, b.data, EPS);
    return {
      inputs: [x, w, b, drawGlobal(draw, dims, y)],
      params: { eps: EPS, ...outputParams(draw, dims) },
    };
  },
  reference: (call) => {
    const [x, w, b] = [input(call, 0), input(call, 1).data, input(call, 2).data];
    const { y, mean, rstd } = layerNorm(x.data, w, b, EPS);
    return [mean, rstd, ...floatsOf(y, call, call.inputs[3])];
  },
  flops: (dims) => 23 * elements(dims),
};

const GRAD_SETS: readonly Dims[] = [
  ...NORM_SETS,
  // x 0: x is a constant, as in the first norm of a block.
  { M: 6, C: 144, format: 0, x: 0 },
  { M: 5, C: 32, format: 1, b: 1, x: 0 },
  { M: 300, C: 144, format: 0, b: 1 },
];

const rmsNormFp4Grad: OpCase = {
  op: "rms_norm_fp4_grad",
  gradient: { forward: "rms_norm_fp4", kind: "rule" },
  sets: GRAD_SETS,
  real: [...NORM_REAL, { M: 2048, C: 4096, format: 0, b: 1, x: 0 }],
  make: (draw, dims) => {
    const { inputs } = rmsNormFp4.make(draw, dims);
    const [x, w, b, g] = inputs as [Value, Value, Value | undefined, Value | undefined];
    const { y, rstd } = rmsNorm(x.data, w.data, EPS, b?.data);
    const saved = [draw.value(rstd, [dim(dims, "M")]), drawScale(draw, dims, y, g)];
    return {
      inputs: [...inputs, ...saved, draw.normal(x.shape)],
      params: { format: dim(dims, "format"), need_gx: dims["x"] ?? 1 },
    };
  },
  reference: (call) => {
    const [x, w, grad] = [input(call, 0), input(call, 1).data, input(call, 6).data];
    const b = call.inputs[2]?.data;
    const { y, rstd } = rmsNorm(x.data, w, EPS, b);
    const options = optionsOf(param(call, "format"), x.shape, call.inputs[3]);
    const through = fp4Gradient(y, grad, options).gx;
    const [gx, gw, gb] = normGradient(x.data, w, [null, rstd], through);
    return [param(call, "need_gx") === 1 ? gx : NONE, gw, b ? gb : NONE];
  },
  tolerance: { f32: { rtol: 2e-4, atol: 2e-4 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => (2 + (dims["x"] ?? 1)) * elements(dims) * size,
  flops: (dims) => 40 * elements(dims),
  bound: "memory",
};

const layerNormFp4Grad: OpCase = {
  ...rmsNormFp4Grad,
  op: "layer_norm_fp4_grad",
  gradient: { forward: "layer_norm_fp4", kind: "rule" },
  sets: GRAD_SETS.map((dims) => ({ ...dims, b: 1 })),
  make: (draw, dims) => {
    const { inputs } = layerNormFp4.make(draw, dims);
    const [x, w, b, g] = inputs as [Value, Value, Value, Value | undefined];
    const { y, mean, rstd } = layerNorm(x.data, w.data, b.data, EPS);
    const saved = [mean, rstd].map((data) => draw.value(data, [dim(dims, "M")]));
    return {
      inputs: [...inputs, ...saved, drawScale(draw, dims, y, g), draw.normal(x.shape)],
      params: { format: dim(dims, "format"), need_gx: dims["x"] ?? 1 },
    };
  },
  reference: (call) => {
    const [x, w, grad] = [input(call, 0), input(call, 1).data, input(call, 7).data];
    const { y, mean, rstd } = layerNorm(x.data, w, input(call, 2).data, EPS);
    const options = optionsOf(param(call, "format"), x.shape, call.inputs[3]);
    const through = fp4Gradient(y, grad, options).gx;
    const [gx, gw, gb] = normGradient(x.data, w, [mean, rstd], through);
    return [param(call, "need_gx") === 1 ? gx : NONE, gw, gb];
  },
  flops: (dims) => 46 * elements(dims),
};

// ---------------------------------------------------------------- silu_mul

const GATE_SETS: readonly Dims[] = [
  { M: 1, C: 16, format: 0 },
  { M: 17, C: 144, format: 0, y: 1 },
  { M: 5, C: 96, format: 1, y: 1 },
  { M: 4, C: 528, format: 0, y: 1 },
  { M: 3, C: 2080, format: 1, y: 1 },
  { M: 2, C: 4608, format: 0, g: 0, y: 1 },
  { M: 7, C: 1376, format: 0, own: 1, y: 1 },
  { M: 2, C: 11008, format: 0, y: 1 },
  { M: 2, C: 14336, format: 0, y: 1 },
  { M: 1, C: 14352, format: 0, y: 1 },
];
const GATE_REAL: readonly Dims[] = [
  { M: 2048, C: 1376, format: 0, y: 1 },
  { M: 2048, C: 11008, format: 0, y: 1 },
  { M: 2048, C: 11008, format: 0, own: 1, y: 1 },
];

const siluMulFp4: OpCase = {
  op: "silu_mul_fp4",
  sets: GATE_SETS,
  real: GATE_REAL,
  make: (draw, dims) => {
    const shape = [dim(dims, "M"), dim(dims, "C")];
    const [gate, up] = [draw.normal(shape, 4), draw.normal(shape)];
    const g = drawGlobal(draw, dims, siluMul(gate.data, up.data));
    return { inputs: [gate, up, g], params: outputParams(draw, dims) };
  },
  reference: (call) => {
    const y = siluMul(input(call, 0).data, input(call, 1).data);
    return floatsOf(y, call, call.inputs[2]);
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * (2 * size + 2),
  flops: (dims) => 38 * elements(dims),
  bound: "memory",
};

const siluMulFp4Grad: OpCase = {
  op: "silu_mul_fp4_grad",
  gradient: { forward: "silu_mul_fp4", kind: "rule" },
  short: true,
  sets: GATE_SETS,
  real: GATE_REAL,
  make: (draw, dims) => {
    const { inputs } = siluMulFp4.make(draw, dims);
    const [gate, up, g] = inputs as [Value, Value, Value | undefined];
    const scale = drawScale(draw, dims, siluMul(gate.data, up.data), g);
    return {
      inputs: [...inputs, scale, draw.normal(gate.shape)],
      params: { format: dim(dims, "format"), bf16: draw.short === "bf16" ? 1 : 0 },
    };
  },
  reference: (call) => {
    const [gate, up] = [input(call, 0), input(call, 1).data];
    const options = optionsOf(param(call, "format"), gate.shape, call.inputs[2]);
    const through = fp4Gradient(siluMul(gate.data, up), input(call, 4).data, options).gx;
    return gateGradient(gate.data, up, through);
  },
  tolerance: { f32: { rtol: 2e-4, atol: 2e-4 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => 5 * elements(dims) * size,
  flops: (dims) => 55 * elements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [
  rmsNormFp4,
  rmsNormFp4Grad,
  layerNormFp4,
  layerNormFp4Grad,
  siluMulFp4,
  siluMulFp4Grad,
];
