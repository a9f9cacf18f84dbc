// Cases of the folds on the weight side: scale_weight, head_matmul, rotate_pairs and their
// gradients, gradual_mask.
import { as } from "../helpers/random.ts";
import { differences } from "../reference/finite-differences.ts";
import {
  gradualMask as gradualMaskReference,
  type HeadLayout,
  headMatmul as headMatmulReference,
  rotatePairs as rotatePairsReference,
  scaleWeight as scaleWeightReference,
} from "../reference/fold.ts";
import {
  type Call,
  CLOSE,
  DIFFERENCES,
  type Dims,
  dim,
  input,
  type OpCase,
  param,
  SUMMED,
} from "./case.ts";

// ---------------------------------------------------------------- scale_weight

const SCALE_SETS: readonly Dims[] = [
  { O: 1, I: 1, r: 1, c: 1 },
  { O: 5, I: 7, r: 1, c: 1 },
  { O: 17, I: 33, r: 1, c: 0 },
  { O: 33, I: 17, r: 0, c: 1 },
  { O: 3, I: 5, r: 0, c: 0 },
];
const SCALE_REAL: readonly Dims[] = [
  { O: 1376, I: 512, r: 1, c: 1 },
  { O: 11008, I: 4096, r: 1, c: 1 },
];

function scaleInputs(
  call: Call,
): readonly [Float64Array, Float64Array | undefined, Float64Array | undefined] {
  return [input(call, 0).data, call.inputs[1]?.data, call.inputs[2]?.data];
}

const scaleWeight: OpCase = {
  op: "scale_weight",
  short: true,
  sets: SCALE_SETS,
  real: SCALE_REAL,
  make: (draw, dims) => {
    const [O, I] = [dim(dims, "O"), dim(dims, "I")];
    const r = dim(dims, "r") ? draw.uniform([O], 0.5, 2) : undefined;
    const c = dim(dims, "c") ? draw.uniform([I], 0.5, 2) : undefined;
    return { inputs: [draw.stored(draw.normal([O, I])), r, c], params: {} };
  },
  reference: (call) => {
    const [w, r, c] = scaleInputs(call);
    return [scaleWeightReference(w, r, c, input(call, 0).shape as [number, number])];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * dim(dims, "O") * dim(dims, "I") * size,
  flops: (dims) => 2 * dim(dims, "O") * dim(dims, "I"),
  bound: "memory",
};

const scaleWeightGrad: OpCase = {
  op: "scale_weight_grad",
  short: true,
  gradient: { forward: "scale_weight", kind: "smooth" },
  sets: SCALE_SETS,
  real: SCALE_REAL,
  make: (draw, dims) => {
    const forward = scaleWeight.make(draw, dims);
    const g = draw.gradient(draw.normal(input(forward, 0).shape));
    return { inputs: [...forward.inputs, g], params: {} };
  },
  reference: (call) => {
    const [w, r, c] = scaleInputs(call);
    const [O, I] = input(call, 0).shape as [number, number];
    const [rows, cols] = [r ?? new Float64Array(O).fill(1), c ?? new Float64Array(I).fill(1)];
    const forward = ([row, col]: readonly Float64Array[]) => [
      scaleWeightReference(w, row, col, [O, I]),
    ];
    const g = [input(call, 3).data];
    return [0, 1].map((which) => differences(forward, [rows, cols], which, g));
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 2 * dim(dims, "O") * dim(dims, "I") * size,
  flops: (dims) => 5 * dim(dims, "O") * dim(dims, "I"),
  bound: "memory",
};

// ---------------------------------------------------------------- head_matmul

/** Both sides and both transposes, with and without grouped heads; I = 1 is a bias. */
const HEAD_SETS: readonly Dims[] = [
  { side: 0, transpose: 0, heads: 1, kv: 1, D: 1, other: 1 },
  { side: 0, transpose: 0, heads: 4, kv: 2, D: 4, other: 7 },
  { side: 0, transpose: 1, heads: 2, kv: 2, D: 6, other: 1 },
  { side: 1, transpose: 0, heads: 6, kv: 2, D: 3, other: 5 },
  { side: 1, transpose: 1, heads: 3, kv: 1, D: 5, other: 11 },
];
const HEAD_REAL: readonly Dims[] = [
  { side: 0, transpose: 1, heads: 8, kv: 8, D: 64, other: 512 },
  { side: 1, transpose: 1, heads: 8, kv: 8, D: 64, other: 512 },
  { side: 0, transpose: 1, heads: 32, kv: 32, D: 128, other: 4096 },
  { side: 1, transpose: 1, heads: 32, kv: 32, D: 128, other: 4096 },
];

function headShape(dims: Dims): readonly [number, number] {
  const wide = dim(dims, "heads") * dim(dims, "D");
  return dim(dims, "side") === 0 ? [wide, dim(dims, "other")] : [dim(dims, "other"), wide];
}

function headLayout(call: Call, kvHeads: number): HeadLayout {
  const [side, heads] = [param(call, "side"), param(call, "heads")];
  const D = (input(call, 0).shape[side] ?? 0) / heads;
  return { side, transpose: param(call, "transpose") !== 0, heads, kvHeads, D };
}

const headFlops = (dims: Dims) => 2 * dim(dims, "heads") * dim(dims, "D") ** 2 * dim(dims, "other");
const headBytes = (dims: Dims, size: number) =>
  2 * dim(dims, "heads") * dim(dims, "D") * dim(dims, "other") * size;

const headMatmul: OpCase = {
  op: "head_matmul",
  short: true,
  // ms: the matrices lie short.
  sets: [...HEAD_SETS, ...HEAD_SETS.slice(1, 4).map((dims) => ({ ...dims, ms: 1 }))],
  real: HEAD_REAL,
  make: (draw, dims) => {
    const D = dim(dims, "D");
    const w = draw.stored(draw.normal(headShape(dims)));
    const m = draw.normal([dim(dims, "kv"), D, D]);
    return {
      inputs: [w, dims["ms"] && draw.dtype === "f32" ? as(m, "bf16") : m],
      params: {
        side: dim(dims, "side"),
        transpose: dim(dims, "transpose"),
        heads: dim(dims, "heads"),
      },
    };
  },
  reference: (call) => {
    const [w, m] = [input(call, 0), input(call, 1)];
    const layout = headLayout(call, m.shape[0] ?? 0);
    return [headMatmulReference(w.data, m.data, w.shape as [number, number], layout)];
  },
  tolerance: SUMMED,
  bytes: headBytes,
  flops: headFlops,
  bound: "flops",
};

const headMatmulGrad: OpCase = {
  op: "head_matmul_grad",
  short: true,
  gradient: { forward: "head_matmul", kind: "smooth" },
  sets: [...HEAD_SETS, ...HEAD_SETS.slice(0, 4).map((dims) => ({ ...dims, acc: 1 }))],
  real: HEAD_REAL,
  make: (draw, dims) => {
    const shape = headShape(dims);
    const [kv, D, acc] = [dim(dims, "kv"), dim(dims, "D"), dims["acc"] ?? 0];
    const inputs = [draw.stored(draw.normal(shape)), draw.gradient(draw.normal(shape))];
    const params = {
      side: dim(dims, "side"),
      transpose: dim(dims, "transpose"),
      heads: dim(dims, "heads"),
      kv_heads: kv,
      accumulate: acc,
    };
    return { inputs, params, ...(acc ? { outs: [draw.normal([kv, D, D])] } : {}) };
  },
  reference: (call) => {
    const [w, g] = [input(call, 0), input(call, 1)];
    const layout = headLayout(call, param(call, "kv_heads"));
    const m = new Float64Array(layout.kvHeads * layout.D ** 2);
    const forward = ([matrices]: readonly Float64Array[]) => [
      headMatmulReference(w.data, matrices ?? m, w.shape as [number, number], layout),
    ];
    const gradient = differences(forward, [m], 0, [g.data]);
    const before = call.outs?.[0]?.data;
    return [before ? gradient.map((x, i) => x + (before[i] ?? 0)) : gradient];
  },
  tolerance: DIFFERENCES,
  bytes: headBytes,
  flops: headFlops,
  bound: "flops",
};

// ---------------------------------------------------------------- rotate_pairs

const ROTATE_SETS: readonly Dims[] = [
  { heads: 1, kv: 1, D: 2, I: 1, r: 1, theta: 1 },
  { heads: 4, kv: 2, D: 6, I: 5, r: -1, theta: 1 },
  { heads: 3, kv: 3, D: 8, I: 17, r: 1, theta: -1 },
  { heads: 6, kv: 2, D: 4, I: 3, r: -1, theta: -1 },
];
const ROTATE_REAL: readonly Dims[] = [
  { heads: 8, kv: 8, D: 64, I: 512, r: 1, theta: 1 },
  { heads: 32, kv: 32, D: 128, I: 4096, r: -1, theta: 1 },
];

function rotateLayout(call: Call, kvHeads: number) {
  const [rows, I] = input(call, 0).shape as [number, number];
  const heads = param(call, "heads");
  const [signR, signTheta] = [param(call, "sign_r"), param(call, "sign_theta")];
  return { heads, kvHeads, D: rows / heads, I, signR, signTheta };
}

const rotateElements = (dims: Dims) => dim(dims, "heads") * dim(dims, "D") * dim(dims, "I");

const rotatePairs: OpCase = {
  op: "rotate_pairs",
  short: true,
  sets: ROTATE_SETS,
  real: ROTATE_REAL,
  make: (draw, dims) => {
    const [heads, kv, D] = [dim(dims, "heads"), dim(dims, "kv"), dim(dims, "D")];
    return {
      inputs: [
        draw.stored(draw.normal([heads * D, dim(dims, "I")])),
        draw.normal([kv, D / 2], 0.3),
        draw.normal([kv, D / 2]),
      ],
      params: { heads, sign_r: dim(dims, "r"), sign_theta: dim(dims, "theta") },
    };
  },
  reference: (call) => {
    const [w, logR, theta] = [input(call, 0), input(call, 1), input(call, 2)];
    const layout = rotateLayout(call, logR.shape[0] ?? 0);
    return [rotatePairsReference(w.data, logR.data, theta.data, layout)];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * rotateElements(dims) * size,
  flops: (dims) => 3 * rotateElements(dims),
  bound: "memory",
};

const rotatePairsGrad: OpCase = {
  op: "rotate_pairs_grad",
  short: true,
  gradient: { forward: "rotate_pairs", kind: "smooth" },
  sets: ROTATE_SETS,
  real: ROTATE_REAL,
  make: (draw, dims) => {
    // The gradient depends on the output alone, so the output of zero parameters (w itself) is as
    // good as any: a second rotation adds its parameters to those of the first.
    const shape = [dim(dims, "heads") * dim(dims, "D"), dim(dims, "I")];
    return {
      inputs: [draw.stored(draw.normal(shape)), draw.gradient(draw.normal(shape))],
      params: {
        heads: dim(dims, "heads"),
        kv_heads: dim(dims, "kv"),
        sign_r: dim(dims, "r"),
        sign_theta: dim(dims, "theta"),
      },
    };
  },
  reference: (call) => {
    const layout = rotateLayout(call, param(call, "kv_heads"));
    const zeros = new Float64Array((layout.kvHeads * layout.D) / 2);
    const forward = ([logR, theta]: readonly Float64Array[]) => [
      rotatePairsReference(input(call, 0).data, logR ?? zeros, theta ?? zeros, layout),
    ];
    const g = [input(call, 1).data];
    return [0, 1].map((which) => differences(forward, [zeros, zeros], which, g));
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 2 * rotateElements(dims) * size,
  flops: (dims) => 4 * rotateElements(dims),
  bound: "memory",
};

// ---------------------------------------------------------------- gradual_mask

const gradualMask: OpCase = {
  op: "gradual_mask",
  sets: [
    { B: 1, D: 1, band: 0 },
    { B: 2, D: 7, band: 0 },
    { B: 3, D: 8, band: 3 },
    { B: 1, D: 33, band: 40 },
  ],
  real: [
    { B: 8, D: 64, band: 32 },
    { B: 32, D: 128, band: 64 },
  ],
  make: (draw, dims) => {
    const D = dim(dims, "D");
    return {
      inputs: [draw.normal([dim(dims, "B"), D, D])],
      params: { sf: 0.1, band: dim(dims, "band") },
    };
  },
  reference: (call) => {
    const s = input(call, 0);
    const D = s.shape[1] ?? 0;
    return [gradualMaskReference(s.data, D, param(call, "band"), param(call, "sf"))];
  },
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * dim(dims, "B") * dim(dims, "D") ** 2 * size,
  flops: (dims) => dim(dims, "B") * dim(dims, "D") ** 2,
  bound: "memory",
};

export const CASES: readonly OpCase[] = [
  scaleWeight,
  scaleWeightGrad,
  headMatmul,
  headMatmulGrad,
  rotatePairs,
  rotatePairsGrad,
  gradualMask,
];
