// Cases of the ops that quantize what a norm, a gate or a relu gives in the pass that makes it. Rows up to the
// longest that a block of a GPU keeps, and some that go through memory there.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { gateGradient, layerNorm, normGradient, rmsNorm, siluMul } from "../reference/block.ts";
import { fakeQuant, quantGrid } from "../reference/quantize.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";
import { CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";
import { TOKEN_FLOOR } from "./quantize.ts";

const EPS = 1e-5;

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "C");

export function drawLogit(draw: Draw, dims: Dims): Value | undefined {
  return dims["clip"] === 1 ? draw.normal([1], 0.5, 2) : undefined;
}

export const gridOptions = (M: number, K: number, bits: number) => ({
  M,
  K,
  group: 0,
  bits,
  symmetric: false,
  floor: TOKEN_FLOOR,
  roundF16: false,
});

/** Scale, zero and whole numbers of the rows of y. */
export function codesOf(
  y: Float64Array,
  clip: Value | undefined,
  [M, K]: readonly number[],
  bits: number,
) {
  const options = gridOptions(M as number, K as number, bits);
  const grid = quantGrid(y, clip?.data, options);
  const values = fakeQuant(y, grid, bits, options);
  const codes = values.map((value, i) =>
    Math.round(value / (grid.scale[Math.floor(i / (K as number))] as number)),
  );
  return { ...grid, codes };
}

// ---------------------------------------------------------------- rms_norm_operand

/** b: with a bias; clip: with a logit. */
const NORM_SETS: readonly Dims[] = [
  { M: 1, C: 1, bits: 4 },
  { M: 3, C: 7, bits: 4, b: 1, clip: 1 },
  { M: 33, C: 19, bits: 3, clip: 1 },
  { M: 11, C: 128, bits: 4, b: 1, clip: 1 },
  { M: 19, C: 132, bits: 4, b: 1, clip: 1 },
  { M: 9, C: 512, bits: 7, clip: 1 },
  { M: 5, C: 516, bits: 4, b: 1 },
  { M: 3, C: 4096, bits: 4, b: 1, clip: 1 },
  { M: 2, C: 4100, bits: 2, clip: 1 },
];
const NORM_REAL: readonly Dims[] = [
  { M: 2048, C: 512, bits: 4, b: 1, clip: 1 },
  { M: 2048, C: 4096, bits: 4, b: 1, clip: 1 },
];

const rmsNormOperand: OpCase = {
  op: "rms_norm_operand",
  sets: NORM_SETS,
  real: NORM_REAL,
  make: (draw, dims) => {
    const C = dim(dims, "C");
    return {
      inputs: [
        draw.normal([dim(dims, "M"), C], 2),
        draw.normal([C], 0.2, 1),
        dims["b"] === 1 ? draw.normal([C], 0.3) : undefined,
        drawLogit(draw, dims),
      ],
      params: { eps: EPS, floor: TOKEN_FLOOR, bits: dim(dims, "bits") },
    };
  },
  reference: (call) => {
    const [x, w, b] = [input(call, 0), input(call, 1).data, call.inputs[2]?.data];
    const { y, rstd } = rmsNorm(x.data, w, EPS, b);
    const { scale, zero, codes } = codesOf(y, call.inputs[3], x.shape, param(call, "bits"));
    return [rstd, scale, zero, codes];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * (size + 1),
  flops: (dims) => 13 * elements(dims),
  bound: "memory",
};

const layerNormOperand: OpCase = {
  ...rmsNormOperand,
  op: "layer_norm_operand",
  sets: NORM_SETS.map((dims) => ({ ...dims, b: 1 })),
  reference: (call) => {
    const [x, w, b] = [input(call, 0), input(call, 1).data, input(call, 2).data];
    const { y, mean, rstd } = layerNorm(x.data, w, b, EPS);
    const { scale, zero, codes } = codesOf(y, call.inputs[3], x.shape, param(call, "bits"));
    return [mean, rstd, scale, zero, codes];
  },
  flops: (dims) => 15 * elements(dims),
};

const NONE = new Float64Array(0);

const rmsNormOperandGrad: OpCase = {
  op: "rms_norm_operand_grad",
  gradient: { forward: "rms_norm_operand", kind: "rule" },
  // x 0: x is a constant, as in the first norm of a block.
  sets: [
    ...NORM_SETS,
    { M: 6, C: 132, bits: 4, clip: 1, x: 0 },
    { M: 5, C: 31, bits: 4, b: 1, x: 0 },
    { M: 300, C: 132, bits: 4, b: 1, clip: 1 },
  ],
  real: [...NORM_REAL, { M: 2048, C: 4096, bits: 4, b: 1, clip: 1, x: 0 }],
  make: (draw, dims) => {
    const { inputs } = rmsNormOperand.make(draw, dims);
    const [x, w, b, clip] = inputs as [Value, Value, Value | undefined, Value | undefined];
    const { y, rstd } = rmsNorm(x.data, w.data, EPS, b?.data);
    const [M, bits] = [dim(dims, "M"), dim(dims, "bits")];
    const { scale, zero } = codesOf(y, clip, x.shape, bits);
    const saved = [rstd, scale, zero].map((data, i) => draw.value(data, i === 0 ? [M] : [M, 1]));
    return {
      inputs: [...inputs, ...saved, draw.normal(x.shape)],
      params: { floor: TOKEN_FLOOR, bits, need_gx: dims["x"] ?? 1 },
    };
  },
  reference: (call) => {
    const [x, w, g] = [input(call, 0), input(call, 1).data, input(call, 7).data];
    const [b, clip] = [call.inputs[2]?.data, call.inputs[3]?.data];
    const { y, rstd } = rmsNorm(x.data, w, EPS, b);
    const options = gridOptions(x.shape[0] as number, w.length, param(call, "bits"));
    const through = fakeQuantGradient(y, clip, g, options);
    const [gx, gw, gb] = normGradient(x.data, w, [null, rstd], through.gx);
    return [param(call, "need_gx") === 1 ? gx : NONE, gw, b ? gb : NONE, through.gclip];
  },
  tolerance: { f32: { rtol: 2e-4, atol: 2e-4 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => (2 + (dims["x"] ?? 1)) * elements(dims) * size,
  flops: (dims) => 27 * elements(dims),
  bound: "memory",
};

const layerNormOperandGrad: OpCase = {
  ...rmsNormOperandGrad,
  op: "layer_norm_operand_grad",
  gradient: { forward: "layer_norm_operand", kind: "rule" },
  sets: rmsNormOperandGrad.sets.filter(({ C = 1 }) => C > 1).map((dims) => ({ ...dims, b: 1 })),
  make: (draw, dims) => {
    const { inputs } = layerNormOperand.make(draw, dims);
    const [x, w, b, clip] = inputs as [Value, Value, Value, Value | undefined];
    const { y, mean, rstd } = layerNorm(x.data, w.data, b.data, EPS);
    const [M, bits] = [dim(dims, "M"), dim(dims, "bits")];
    const { scale, zero } = codesOf(y, clip, x.shape, bits);
    const saved = [mean, rstd, scale, zero].map((data, i) =>
      draw.value(data, i < 2 ? [M] : [M, 1]),
    );
    return {
      inputs: [...inputs, ...saved, draw.normal(x.shape)],
      params: { floor: TOKEN_FLOOR, bits, need_gx: dims["x"] ?? 1 },
    };
  },
  reference: (call) => {
    const [x, w, g] = [input(call, 0), input(call, 1).data, input(call, 8).data];
    const { y, mean, rstd } = layerNorm(x.data, w, input(call, 2).data, EPS);
    const options = gridOptions(x.shape[0] as number, w.length, param(call, "bits"));
    const through = fakeQuantGradient(y, call.inputs[3]?.data, g, options);
    const [gx, gw, gb] = normGradient(x.data, w, [mean, rstd], through.gx);
    return [param(call, "need_gx") === 1 ? gx : NONE, gw, gb, through.gclip];
  },
  flops: (dims) => 33 * elements(dims),
};

// ---------------------------------------------------------------- silu_mul_operand

const GATE_SETS: readonly Dims[] = [
  { M: 1, C: 1, bits: 4 },
  { M: 3, C: 7, bits: 4, clip: 1 },
  { M: 17, C: 129, bits: 3, clip: 1 },
  { M: 4, C: 516, bits: 4, clip: 1 },
  { M: 3, C: 2052, bits: 7 },
  { M: 2, C: 4608, bits: 4, clip: 1 },
  { M: 2, C: 11008, bits: 4, clip: 1 },
  { M: 2, C: 14336, bits: 4 },
  { M: 1, C: 14340, bits: 4, clip: 1 },
];
const GATE_REAL: readonly Dims[] = [
  { M: 2048, C: 1376, bits: 4, clip: 1 },
  { M: 2048, C: 11008, bits: 4, clip: 1 },
];

const siluMulOperand: OpCase = {
  op: "silu_mul_operand",
  sets: GATE_SETS,
  real: GATE_REAL,
  make: (draw, dims) => {
    const shape = [dim(dims, "M"), dim(dims, "C")];
    return {
      inputs: [draw.normal(shape, 4), draw.normal(shape), drawLogit(draw, dims)],
      params: { floor: TOKEN_FLOOR, bits: dim(dims, "bits") },
    };
  },
  reference: (call) => {
    const [gate, up] = [input(call, 0), input(call, 1)];
    const y = siluMul(gate.data, up.data);
    const { scale, zero, codes } = codesOf(y, call.inputs[2], gate.shape, param(call, "bits"));
    return [scale, zero, codes];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => elements(dims) * (2 * size + 1),
  flops: (dims) => 31 * elements(dims),
  bound: "memory",
};

const siluMulOperandGrad: OpCase = {
  op: "silu_mul_operand_grad",
  gradient: { forward: "silu_mul_operand", kind: "rule" },
  short: true,
  sets: GATE_SETS,
  real: GATE_REAL,
  make: (draw, dims) => {
    const { inputs } = siluMulOperand.make(draw, dims);
    const [gate, up, clip] = inputs as [Value, Value, Value | undefined];
    const [M, bits] = [dim(dims, "M"), dim(dims, "bits")];
    const { scale, zero } = codesOf(siluMul(gate.data, up.data), clip, gate.shape, bits);
    const saved = [scale, zero].map((data) => draw.value(data, [M, 1]));
    return {
      inputs: [...inputs, ...saved, draw.normal(gate.shape)],
      params: { floor: TOKEN_FLOOR, bits, bf16: draw.short === "bf16" ? 1 : 0 },
    };
  },
  reference: (call) => {
    const [gate, up, g] = [input(call, 0), input(call, 1).data, input(call, 5).data];
    const [M, K] = gate.shape as [number, number];
    const y = siluMul(gate.data, up);
    const options = gridOptions(M, K, param(call, "bits"));
    const through = fakeQuantGradient(y, call.inputs[2]?.data, g, options);
    return [...gateGradient(gate.data, up, through.gx), through.gclip];
  },
  tolerance: { f32: { rtol: 2e-4, atol: 2e-4 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => 5 * elements(dims) * size,
  flops: (dims) => 42 * elements(dims),
  bound: "memory",
};

// ---------------------------------------------------------------- relu_operand

const relu = (x: Float64Array): Float64Array => x.map((value) => Math.max(value, 0));

const reluOperand: OpCase = {
  ...siluMulOperand,
  op: "relu_operand",
  make: (draw, dims) => ({
    inputs: [draw.normal([dim(dims, "M"), dim(dims, "C")]), drawLogit(draw, dims)],
    params: { floor: TOKEN_FLOOR, bits: dim(dims, "bits") },
  }),
  reference: (call) => {
    const x = input(call, 0);
    const { scale, zero, codes } = codesOf(
      relu(x.data),
      call.inputs[1],
      x.shape,
      param(call, "bits"),
    );
    return [scale, zero, codes];
  },
  bytes: (dims, size) => elements(dims) * (size + 1),
  flops: (dims) => 11 * elements(dims),
};

const reluOperandGrad: OpCase = {
  ...siluMulOperandGrad,
  op: "relu_operand_grad",
  gradient: { forward: "relu_operand", kind: "rule" },
  sets: [...GATE_SETS, { M: 2, C: 16384, bits: 4, clip: 1 }, { M: 1, C: 16388, bits: 4 }],
  make: (draw, dims) => {
    const { inputs } = reluOperand.make(draw, dims);
    const [x, clip] = inputs as [Value, Value | undefined];
    const [M, bits] = [dim(dims, "M"), dim(dims, "bits")];
    const { scale, zero } = codesOf(relu(x.data), clip, x.shape, bits);
    const saved = [scale, zero].map((data) => draw.value(data, [M, 1]));
    return {
      inputs: [...inputs, ...saved, draw.normal(x.shape)],
      params: { floor: TOKEN_FLOOR, bits, bf16: draw.short === "bf16" ? 1 : 0 },
    };
  },
  reference: (call) => {
    const [x, g] = [input(call, 0), input(call, 4).data];
    const [M, K] = x.shape as [number, number];
    const options = gridOptions(M, K, param(call, "bits"));
    const through = fakeQuantGradient(relu(x.data), call.inputs[1]?.data, g, options);
    const gx = through.gx.map((value, i) => ((x.data[i] as number) > 0 ? value : 0));
    return [gx, through.gclip];
  },
  bytes: (dims, size) => 3 * elements(dims) * size,
  flops: (dims) => 20 * elements(dims),
};

export const CASES: readonly OpCase[] = [
  rmsNormOperand,
  rmsNormOperandGrad,
  layerNormOperand,
  layerNormOperandGrad,
  siluMulOperand,
  siluMulOperandGrad,
  reluOperand,
  reluOperandGrad,
];
