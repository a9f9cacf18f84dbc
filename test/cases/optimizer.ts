// Cases of adam, masked_adam, keep_away and sign_step.
import { as, type Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { gradualMask } from "../reference/fold.ts";
import {
  type AdamOptions,
  adam as adamReference,
  keepAway as keepAwayReference,
  maskedAdam as maskedAdamReference,
  signStep as signStepReference,
} from "../reference/linalg.ts";
import { type Call, CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";

const RATES = { lr: 5e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

/** Inputs before an optimizer's own. */
const CONTROL = 2;

/**
 * Guard and schedule of sets that say so: guard 1 or 0 is given as such (absent: none), schedule 1
 * gives a rate of a half at step 5.
 */
function drawControl(dims: Dims): readonly (Value | undefined)[] {
  const guard = dims["guard"];
  return [
    guard === undefined
      ? undefined
      : { data: Float64Array.of(guard), shape: [1], dtype: "i32" as const },
    dims["schedule"] === 1
      ? { data: Float64Array.of(0.5, 5), shape: [2], dtype: "f64" as const }
      : undefined,
  ];
}

/** Whether the guard lets the op change anything. */
const mayChange = (call: Call): boolean => (call.inputs[0]?.data[0] ?? 1) !== 0;

/** The rate of a step, and its number where the op counts them. */
function scheduled(call: Call): { readonly lr: number; readonly step: number | undefined } {
  const [rate = 1, step] = call.inputs[1]?.data ?? [];
  return { lr: param(call, "lr") * rate, step };
}

/** Sets of every kind of control, of one set. */
function controlled(dims: Dims): Dims[] {
  return [
    { ...dims, guard: 1 },
    { ...dims, guard: 0 },
    { ...dims, guard: 1, schedule: 1 },
  ];
}

function rates(call: Call): AdamOptions {
  const { lr, step } = scheduled(call);
  return {
    lr,
    beta1: param(call, "beta1"),
    beta2: param(call, "beta2"),
    eps: param(call, "eps"),
    weightDecay: param(call, "weight_decay"),
    step: step ?? param(call, "step"),
  };
}

/** State of the group whose first input is `first`. */
const state = (call: Call, first: number) => ({
  p: input(call, first).data,
  m: input(call, first + 2).data,
  v: input(call, first + 3).data,
});

function moments(draw: Draw, shape: readonly number[]): readonly [Value, Value] {
  return [draw.normal(shape, 0.1), draw.uniform(shape, 0.01, 0.1)];
}

/** Sizes of the groups of a call: each after the first is a little longer. */
const groupSizes = (dims: Dims): number[] =>
  Array.from({ length: dims["groups"] ?? 1 }, (_, i) => dim(dims, "N") + 5 * i);

const adam: OpCase = {
  op: "adam",
  sets: [
    { N: 1, step: 1 },
    { N: 37, step: 1 },
    { N: 1001, step: 7 },
    { N: 33000, step: 640 },
    { N: 3, step: 2, groups: 2 },
    { N: 130, step: 4, groups: 70 },
    ...controlled({ N: 37, step: 3, groups: 3 }),
  ],
  real: [
    { N: 8 * 64 * 64, step: 9 },
    { N: 4096 * 4096, step: 9 },
    { N: 8192, step: 9, groups: 19 },
  ],
  make: (draw, dims) => {
    const group = (n: number): Value[] => {
      const [m, v] = moments(draw, [n]);
      return [draw.normal([n]), draw.normal([n]), m, v];
    };
    return {
      inputs: [...drawControl(dims), ...groupSizes(dims).flatMap(group)],
      params: { ...RATES, step: dim(dims, "step") },
    };
  },
  reference: (call) => {
    const results: Float64Array[] = [];
    for (let first = CONTROL; first < call.inputs.length; first += 4) {
      const old = state(call, first);
      const { p, m, v } = mayChange(call)
        ? adamReference(old, input(call, first + 1).data, rates(call))
        : old;
      results.push(p, m, v);
    }
    return results;
  },
  writes: [CONTROL, CONTROL + 2, CONTROL + 3],
  repeatFrom: CONTROL,
  tolerance: { f32: { rtol: 5e-6, atol: 1e-6 }, f64: { rtol: 1e-12, atol: 1e-13 } },
  bytes: (dims, size) => 7 * groupSizes(dims).reduce((sum, n) => sum + n, 0) * size,
  flops: (dims) => 14 * groupSizes(dims).reduce((sum, n) => sum + n, 0),
  bound: "memory",
};

/** Entries of a D x D matrix within the band. */
function inBand(D: number, band: number): number {
  const width = Math.min(band, D - 1);
  return D + 2 * width * D - width * (width + 1);
}

const maskedAdam: OpCase = {
  op: "masked_adam",
  // off: size of the off-diagonal entries; large ones make the projection work. copies: 1: with a, 2: and
  // with its copy; they hold what would show if more than the band were written.
  sets: [
    { B: 1, D: 1, band: 0, off: 0.1 },
    { B: 2, D: 7, band: 2, off: 0.1 },
    { B: 3, D: 8, band: 7, off: 20 },
    { B: 2, D: 33, band: 12, off: 8 },
    { B: 2, D: 20, band: 50, off: 3 },
    { B: 1, D: 9, band: 4, off: 30, limit: 0 },
    ...controlled({ B: 2, D: 33, band: 12, off: 8 }),
    { B: 2, D: 33, band: 12, off: 8, copies: 1 },
    { B: 1, D: 64, band: 9, off: 3, limit: 0, floor: 0.05, copies: 2 },
    ...controlled({ B: 2, D: 40, band: 10, off: 8, copies: 2 }),
  ],
  real: [
    { B: 8, D: 64, band: 16, off: 0.1 },
    { B: 8, D: 64, band: 64, off: 0.1 },
    { B: 32, D: 128, band: 32, off: 0.1 },
    { B: 32, D: 128, band: 128, off: 0.1 },
    { B: 1, D: 4096, band: 128, off: 0.1 },
    { B: 1, D: 4096, band: 512, off: 0.1 },
    { B: 1, D: 4096, band: 4096, off: 0.1 },
    { B: 1, D: 4096, band: 128, off: 0.1, copies: 2 },
    { B: 1, D: 4096, band: 512, off: 0.1, copies: 2 },
    { B: 1, D: 4096, band: 4096, off: 0.1, copies: 2 },
  ],
  make: (draw, dims) => {
    const [B, D, band] = [dim(dims, "B"), dim(dims, "D"), dim(dims, "band")];
    const [shape, copies] = [[B, D, D], dims["copies"] ?? 0];
    const p = draw.normal(shape, dim(dims, "off")).data.slice();
    for (let row = 0; row < B * D; row++) p[row * D + (row % D)] = 1 + 0.25 * Math.cos(row);
    const [m, v] = moments(draw, shape);
    return {
      inputs: [
        ...[...drawControl(dims), draw.value(p, shape), draw.normal(shape), m, v],
        copies > 0 ? draw.normal(shape) : undefined,
        copies > 1 ? as(draw.normal(shape), "bf16") : undefined,
      ],
      params: {
        ...{ ...RATES, step: 3, sf: 0.1, band },
        ...{ limit: dims["limit"] ?? 0.9, floor: dims["floor"] ?? 0 },
      },
    };
  },
  reference: (call) => {
    const old = state(call, CONTROL);
    const [B = 0, D = 0] = input(call, CONTROL).shape;
    const copies = call.inputs.slice(CONTROL + 4).flatMap((copy) => (copy ? [copy.data] : []));
    if (!mayChange(call)) {
      return [new Float64Array(B).fill(Number.NaN), old.p, old.m, old.v, ...copies];
    }
    const g = input(call, CONTROL + 1).data;
    const [band, sf] = [param(call, "band"), param(call, "sf")];
    const { p, m, v, margin } = maskedAdamReference(old, g, rates(call), {
      ...{ D, band, sf },
      limit: param(call, "limit"),
      floor: param(call, "floor"),
    });
    const a = gradualMask(p, D, band, sf);
    const isLive = (i: number) => Math.abs((Math.floor(i / D) % D) - (i % D)) <= band;
    const shown = copies.map((copy) => copy.map((x, i) => (isLive(i) ? (a[i] as number) : x)));
    return [margin, p, m, v, ...shown];
  },
  writes: [CONTROL, CONTROL + 2, CONTROL + 3, CONTROL + 4, CONTROL + 5],
  tolerance: { f32: { rtol: 1e-5, atol: 2e-6 }, f64: { rtol: 1e-11, atol: 1e-12 } },
  bytes: (dims: Dims, size) => {
    const copies = dims["copies"] ?? 0;
    const each = 7 * size + (copies > 0 ? size : 0) + (copies > 1 ? 2 : 0);
    return dim(dims, "B") * inBand(dim(dims, "D"), dim(dims, "band")) * each;
  },
  flops: (dims) => 17 * dim(dims, "B") * inBand(dim(dims, "D"), dim(dims, "band")),
  bound: "memory",
};

const keepAway: OpCase = {
  op: "keep_away",
  sets: [{ N: 1 }, { N: 37 }, { N: 33000 }],
  real: [{ N: 512 * 512 }, { N: 4096 * 4096 }],
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    const p = draw.normal(shape, 0.3).data.map((value, i) => (i % 5 === 4 ? 0 : value));
    return { inputs: [draw.value(p, shape)], params: { limit: 0.25 } };
  },
  reference: (call) => [keepAwayReference(input(call, 0).data, param(call, "limit"))],
  writes: [0],
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * dim(dims, "N") * size,
  flops: (dims) => 3 * dim(dims, "N"),
  bound: "memory",
};

const signStep: OpCase = {
  op: "sign_step",
  short: true,
  // Offsets start anywhere within a limit of 0.5, so that some reach it; every third has no gradient.
  sets: [
    { N: 1, lr: 0.01 },
    { N: 37, lr: 0.3 },
    { N: 1001, lr: 0.004 },
    { N: 33000, lr: 0.1 },
    { N: 130, lr: 0.1, groups: 40 },
    ...controlled({ N: 99, lr: 0.2, groups: 2 }),
  ],
  real: [
    { N: 1376 * 512, lr: 0.01 },
    { N: 4096 * 4096, lr: 0.01 },
  ],
  make: (draw, dims) => {
    const group = (n: number): Value[] => {
      const g = draw.normal([n]).data.map((value, i) => (i % 3 === 2 ? 0 : value));
      return [draw.uniform([n], -0.5, 0.5), draw.gradient(draw.value(g, [n]))];
    };
    return {
      inputs: [...drawControl(dims), ...groupSizes(dims).flatMap(group)],
      params: { lr: dim(dims, "lr"), limit: 0.5 },
    };
  },
  reference: (call) => {
    const results: Float64Array[] = [];
    const { lr } = scheduled(call);
    for (let first = CONTROL; first < call.inputs.length; first += 2) {
      const [v, g] = [input(call, first).data, input(call, first + 1).data];
      results.push(
        mayChange(call) ? signStepReference(v, g, { lr, limit: param(call, "limit") }) : v,
      );
    }
    return results;
  },
  writes: [CONTROL],
  repeatFrom: CONTROL,
  tolerance: CLOSE,
  bytes: (dims, size) => 3 * groupSizes(dims).reduce((sum, n) => sum + n, 0) * size,
  flops: (dims) => 4 * groupSizes(dims).reduce((sum, n) => sum + n, 0),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [adam, maskedAdam, keepAway, signStep];
