// Cases of rms_norm, layer_norm, silu_mul, relu and their gradients.
import {
  layerNorm as layerNormReference,
  reluGradient,
  relu as reluReference,
  rmsNorm as rmsNormReference,
  siluMul as siluMulReference,
} from "../reference/block.ts";
import { differences } from "../reference/finite-differences.ts";
import {
  CLOSE,
  DIFFERENCES,
  type Dims,
  dim,
  EXACT,
  input,
  type OpCase,
  param,
  SUMMED,
} from "./case.ts";

// ---------------------------------------------------------------- rms_norm

const NORM_SETS: readonly Dims[] = [
  { M: 1, C: 1 },
  { M: 3, C: 7 },
  { M: 5, C: 64 },
  { M: 33, C: 19 },
];
const NORM_REAL: readonly Dims[] = [
  { M: 2048, C: 512 },
  { M: 2048, C: 4096 },
];
const EPS = 1e-5;

const normElements = (dims: Dims) => dim(dims, "M") * dim(dims, "C");

const rmsNorm: OpCase = {
  op: "rms_norm",
  // b: with the bias that a shift makes.
  sets: [...NORM_SETS, { M: 5, C: 64, b: 1 }, { M: 33, C: 19, b: 1 }],
  real: NORM_REAL,
  make: (draw, dims) => {
    const C = dim(dims, "C");
    return {
      inputs: [
        draw.normal([dim(dims, "M"), C], 2),
        draw.normal([C], 0.2, 1),
        dims["b"] === 1 ? draw.normal([C]) : undefined,
      ],
      params: { eps: EPS },
    };
  },
  reference: (call) => {
    const [x, w, b] = [input(call, 0).data, input(call, 1).data, call.inputs[2]?.data];
    const { y, rstd } = rmsNormReference(x, w, EPS, b);
    return [y, rstd];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => 2 * normElements(dims) * size,
  flops: (dims) => 4 * normElements(dims),
  bound: "memory",
};

const rmsNormGrad: OpCase = {
  op: "rms_norm_grad",
  gradient: { forward: "rms_norm", kind: "smooth" },
  // gx 0 and gb 1: what is wanted besides gw.
  sets: [
    ...NORM_SETS,
    { M: 33, C: 20, gb: 1 },
    { M: 9, C: 132, gx: 0, gb: 1 },
    { M: 5, C: 19, gx: 0, gb: 1 },
  ],
  real: NORM_REAL,
  make: (draw, dims) => {
    const [x, w] = rmsNorm.make(draw, dims).inputs;
    if (!x || !w) throw new Error("rms_norm has two inputs");
    const rstd = draw.value(rmsNormReference(x.data, w.data, EPS).rstd, [dim(dims, "M")]);
    const params = { need_gx: dims["gx"] ?? 1, need_gb: dims["gb"] ?? 0 };
    return { inputs: [x, w, rstd, draw.normal(x.shape)], params };
  },
  reference: (call) => {
    const [x, w, g] = [input(call, 0).data, input(call, 1).data, input(call, 3).data];
    const b = new Float64Array(w.length);
    const forward = ([xs, ws, bs]: readonly Float64Array[]) => [
      rmsNormReference(xs ?? x, ws ?? w, EPS, bs ?? b).y,
    ];
    const wanted = [param(call, "need_gx"), 1, param(call, "need_gb")];
    return wanted.map((isWanted, which) =>
      isWanted === 1 ? differences(forward, [x, w, b], which, [g]) : new Float64Array(0),
    );
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 3 * normElements(dims) * size,
  flops: (dims) => 9 * normElements(dims),
  bound: "memory",
};

// ---------------------------------------------------------------- layer_norm

const layerNorm: OpCase = {
  op: "layer_norm",
  sets: NORM_SETS,
  real: NORM_REAL,
  make: (draw, dims) => {
    const C = dim(dims, "C");
    // A mean away from zero: a variance taken as a difference of sums would lose digits.
    return {
      inputs: [
        draw.normal([dim(dims, "M"), C], 2, 3),
        draw.normal([C], 0.2, 1),
        draw.normal([C], 0.5),
      ],
      params: { eps: EPS },
    };
  },
  reference: (call) => {
    const [x, w, b] = [input(call, 0).data, input(call, 1).data, input(call, 2).data];
    const { y, mean, rstd } = layerNormReference(x, w, b, EPS);
    return [y, mean, rstd];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => 2 * normElements(dims) * size,
  flops: (dims) => 8 * normElements(dims),
  bound: "memory",
};

const layerNormGrad: OpCase = {
  op: "layer_norm_grad",
  gradient: { forward: "layer_norm", kind: "smooth" },
  // A single channel has no variance: its rstd is 1 / sqrt(eps), and differences see only noise.
  sets: [...NORM_SETS.filter(({ C }) => C !== 1), { M: 4, C: 2 }],
  real: NORM_REAL,
  make: (draw, dims) => {
    const [x, w, b] = layerNorm.make(draw, dims).inputs;
    if (!x || !w || !b) throw new Error("layer_norm has three inputs");
    const rows = [dim(dims, "M")];
    const mean = draw.derive(rows, () => layerNormReference(x.data, w.data, b.data, EPS).mean);
    const rstd = draw.derive(rows, () => layerNormReference(x.data, w.data, b.data, EPS).rstd);
    return { inputs: [x, w, mean, rstd, draw.normal(x.shape)], params: {} };
  },
  reference: (call) => {
    const [x, w, g] = [input(call, 0).data, input(call, 1).data, input(call, 4).data];
    const b = new Float64Array(w.length);
    const forward = ([xs, ws, bs]: readonly Float64Array[]) => [
      layerNormReference(xs ?? x, ws ?? w, bs ?? b, EPS).y,
    ];
    return [0, 1, 2].map((which) => differences(forward, [x, w, b], which, [g]));
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 3 * normElements(dims) * size,
  flops: (dims) => 14 * normElements(dims),
  bound: "memory",
};

// ---------------------------------------------------------------- silu_mul

const SILU_SETS: readonly Dims[] = [
  { M: 1, F: 1 },
  { M: 3, F: 7 },
  { M: 17, F: 129 },
];
const SILU_REAL: readonly Dims[] = [
  { M: 2048, F: 1376 },
  { M: 2048, F: 11008 },
];

const siluElements = (dims: Dims) => dim(dims, "M") * dim(dims, "F");

const siluMul: OpCase = {
  op: "silu_mul",
  sets: SILU_SETS,
  real: SILU_REAL,
  make: (draw, dims) => {
    const shape = [dim(dims, "M"), dim(dims, "F")];
    return { inputs: [draw.normal(shape, 4), draw.normal(shape)], params: {} };
  },
  reference: (call) => [siluMulReference(input(call, 0).data, input(call, 1).data)],
  tolerance: CLOSE,
  bytes: (dims, size) => 3 * siluElements(dims) * size,
  flops: (dims) => 22 * siluElements(dims),
  bound: "memory",
};

const siluMulGrad: OpCase = {
  op: "silu_mul_grad",
  gradient: { forward: "silu_mul", kind: "smooth" },
  // Differences of n elements cost n^2: fewer elements than forward.
  sets: [
    { M: 1, F: 1 },
    { M: 3, F: 7 },
    { M: 5, F: 51 },
  ],
  short: true,
  real: SILU_REAL,
  make: (draw, dims) => {
    const forward = siluMul.make(draw, dims);
    const g = draw.normal(input(forward, 0).shape);
    return { inputs: [...forward.inputs, g], params: { bf16: draw.short === "bf16" ? 1 : 0 } };
  },
  reference: (call) => {
    const [gate, up, g] = [input(call, 0).data, input(call, 1).data, input(call, 2).data];
    const forward = ([a, b]: readonly Float64Array[]) => [siluMulReference(a ?? gate, b ?? up)];
    return [0, 1].map((which) => differences(forward, [gate, up], which, [g]));
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 5 * siluElements(dims) * size,
  flops: (dims) => 28 * siluElements(dims),
  bound: "memory",
};

// ---------------------------------------------------------------- relu

const relu: OpCase = {
  op: "relu",
  sets: SILU_SETS,
  real: SILU_REAL,
  make: (draw, dims) => ({
    inputs: [draw.normal([dim(dims, "M"), dim(dims, "F")])],
    params: {},
  }),
  reference: (call) => [reluReference(input(call, 0).data)],
  tolerance: EXACT,
  bytes: (dims, size) => 2 * siluElements(dims) * size,
  flops: () => 0,
  bound: "memory",
};

const reluGrad: OpCase = {
  op: "relu_grad",
  // By the written rule: differences mean nothing at the zeros, which are half of the elements.
  gradient: { forward: "relu", kind: "rule" },
  sets: SILU_SETS,
  real: SILU_REAL,
  make: (draw, dims) => {
    const [x] = relu.make(draw, dims).inputs;
    if (!x) throw new Error("relu has one input");
    return {
      inputs: [draw.value(reluReference(x.data), x.shape), draw.normal(x.shape)],
      params: {},
    };
  },
  reference: (call) => [reluGradient(input(call, 0).data, input(call, 1).data)],
  tolerance: EXACT,
  bytes: (dims, size) => 3 * siluElements(dims) * size,
  flops: () => 0,
  bound: "memory",
};

export const CASES: readonly OpCase[] = [
  rmsNorm,
  rmsNormGrad,
  layerNorm,
  layerNormGrad,
  siluMul,
  siluMulGrad,
  relu,
  reluGrad,
];
