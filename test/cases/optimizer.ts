// Cases of adam, masked_adam, keep_away and sign_step.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import {
  type AdamOptions,
  adam as adamReference,
  keepAway as keepAwayReference,
  maskedAdam as maskedAdamReference,
  signStep as signStepReference,
} from "../reference/linalg.ts";
import { type Call, CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";

const RATES = { lr: 5e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

function rates(call: Call): AdamOptions {
  return {
    lr: param(call, "lr"),
    beta1: param(call, "beta1"),
    beta2: param(call, "beta2"),
    eps: param(call, "eps"),
    weightDecay: param(call, "weight_decay"),
    step: param(call, "step"),
  };
}

const state = (call: Call) => ({
  p: input(call, 0).data,
  m: input(call, 2).data,
  v: input(call, 3).data,
});

function moments(draw: Draw, shape: readonly number[]): readonly [Value, Value] {
  return [draw.normal(shape, 0.1), draw.uniform(shape, 0.01, 0.1)];
}

const adam: OpCase = {
  op: "adam",
  sets: [
    { N: 1, step: 1 },
    { N: 37, step: 1 },
    { N: 1001, step: 7 },
    { N: 33000, step: 640 },
  ],
  real: [
    { N: 8 * 64 * 64, step: 9 },
    { N: 4096 * 4096, step: 9 },
  ],
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    const [m, v] = moments(draw, shape);
    return {
      inputs: [draw.normal(shape), draw.normal(shape), m, v],
      params: { ...RATES, step: dim(dims, "step") },
    };
  },
  reference: (call) => {
    const { p, m, v } = adamReference(state(call), input(call, 1).data, rates(call));
    return [p, m, v];
  },
  writes: [0, 2, 3],
  tolerance: { f32: { rtol: 5e-6, atol: 1e-6 }, f64: { rtol: 1e-12, atol: 1e-13 } },
  bytes: (dims, size) => 7 * dim(dims, "N") * size,
  flops: (dims) => 14 * dim(dims, "N"),
  bound: "memory",
};

/** Entries of a D x D matrix within the band. */
function inBand(D: number, band: number): number {
  const width = Math.min(band, D - 1);
  return D + 2 * width * D - width * (width + 1);
}

const maskedAdam: OpCase = {
  op: "masked_adam",
  // off: size of the off-diagonal entries; large ones make the projection work.
  sets: [
    { B: 1, D: 1, band: 0, off: 0.1 },
    { B: 2, D: 7, band: 2, off: 0.1 },
    { B: 3, D: 8, band: 7, off: 20 },
    { B: 2, D: 33, band: 12, off: 8 },
    { B: 2, D: 20, band: 50, off: 3 },
    { B: 1, D: 9, band: 4, off: 30, limit: 0 },
  ],
  real: [
    { B: 8, D: 64, band: 16, off: 0.1 },
    { B: 8, D: 64, band: 64, off: 0.1 },
    { B: 32, D: 128, band: 32, off: 0.1 },
    { B: 32, D: 128, band: 128, off: 0.1 },
  ],
  make: (draw, dims) => {
    const [B, D, band] = [dim(dims, "B"), dim(dims, "D"), dim(dims, "band")];
    const shape = [B, D, D];
    const p = draw.normal(shape, dim(dims, "off")).data.slice();
    for (let row = 0; row < B * D; row++) p[row * D + (row % D)] = 1 + 0.25 * Math.cos(row);
    const [m, v] = moments(draw, shape);
    return {
      inputs: [draw.value(p, shape), draw.normal(shape), m, v],
      params: { ...RATES, sf: 0.1, limit: dims["limit"] ?? 0.9, step: 3, band },
    };
  },
  reference: (call) => {
    const { p, m, v, margin } = maskedAdamReference(state(call), input(call, 1).data, rates(call), {
      D: input(call, 0).shape[1] ?? 0,
      band: param(call, "band"),
      sf: param(call, "sf"),
      limit: param(call, "limit"),
    });
    return [margin, p, m, v];
  },
  writes: [0, 2, 3],
  tolerance: { f32: { rtol: 1e-5, atol: 2e-6 }, f64: { rtol: 1e-11, atol: 1e-12 } },
  bytes: (dims: Dims, size) =>
    7 * dim(dims, "B") * inBand(dim(dims, "D"), dim(dims, "band")) * size,
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
  // Offsets start anywhere within a limit of 0.5, so that some reach it; every third has no gradient.
  sets: [
    { N: 1, lr: 0.01 },
    { N: 37, lr: 0.3 },
    { N: 1001, lr: 0.004 },
    { N: 33000, lr: 0.1 },
  ],
  real: [
    { N: 1376 * 512, lr: 0.01 },
    { N: 4096 * 4096, lr: 0.01 },
  ],
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    const g = draw.normal(shape).data.map((value, i) => (i % 3 === 2 ? 0 : value));
    return {
      inputs: [draw.uniform(shape, -0.5, 0.5), draw.value(g, shape)],
      params: { lr: dim(dims, "lr"), limit: 0.5 },
    };
  },
  reference: (call) => [
    signStepReference(input(call, 0).data, input(call, 1).data, {
      lr: param(call, "lr"),
      limit: param(call, "limit"),
    }),
  ],
  writes: [0],
  tolerance: CLOSE,
  bytes: (dims, size) => 3 * dim(dims, "N") * size,
  flops: (dims) => 4 * dim(dims, "N"),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [adam, maskedAdam, keepAway, signStep];
