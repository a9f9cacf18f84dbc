// Case of gptq: codes that make up for each other's errors.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { gptq as gptqReference } from "../reference/gptq.ts";
import { type Dims, dim, EXACT, input, type OpCase, param } from "./case.ts";
import { drawGrid, WEIGHT_FLOOR } from "./quantize.ts";

/**
 * tokens: h comes from so many random tokens, fewer than channels leave it without an inverse until
 * it is damped; 0: correlations that fall off with the distance of two channels; -1: no input at
 * all. dead 1: every fifth channel is silent.
 */
const SETS: readonly Dims[] = [
  { O: 1, I: 1, bits: 4, group: 0, block: 128, tokens: 9 },
  { O: 5, I: 7, bits: 3, group: 0, block: 128, tokens: 40 },
  { O: 9, I: 33, bits: 2, group: 8, block: 10, tokens: 12 },
  { O: 3, I: 20, bits: 4, group: 0, block: 128, tokens: -1 },
  { O: 17, I: 40, bits: 3, group: 16, block: 16, tokens: 60, dead: 1 },
  { O: 14, I: 130, bits: 4, group: 0, block: 128, tokens: 0 },
  { O: 6, I: 150, bits: 2, group: 32, block: 64, tokens: 0 },
];

/** Second moments of a layer's input. */
function drawMoments(draw: Draw, dims: Dims): Value {
  const [n, tokens] = [dim(dims, "I"), dim(dims, "tokens")];
  const h = new Float64Array(n * n);
  if (tokens > 0) {
    const x = draw.normal([tokens, n], 1, 0.2).data;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = 0;
        for (let t = 0; t < tokens; t++) sum += (x[t * n + i] ?? 0) * (x[t * n + j] ?? 0);
        h[i * n + j] = sum / tokens;
        h[j * n + i] = sum / tokens;
      }
    }
  } else if (tokens === 0) {
    const power = draw.uniform([n], 0.5, 1.5).data;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        h[i * n + j] = (power[i] ?? 0) * (power[j] ?? 0) * 0.9 ** Math.abs(i - j);
      }
    }
  }
  if (dims["dead"] === 1) {
    for (let i = 0; i < n * n; i++) if ((i % n) % 5 === 3 || Math.floor(i / n) % 5 === 3) h[i] = 0;
  }
  return draw.value(h, [n, n]);
}

const gptq: OpCase = {
  op: "gptq",
  sets: SETS,
  real: [
    { O: 1376, I: 512, bits: 3, group: 0, block: 128, tokens: 0 },
    { O: 512, I: 1376, bits: 3, group: 128, block: 128, tokens: 0 },
  ],
  make: (draw, dims) => {
    const [M, K] = [dim(dims, "O"), dim(dims, "I")];
    const [bits, group] = [dim(dims, "bits"), dim(dims, "group")];
    const w = draw.normal([M, K]);
    const rule = { symmetric: false, floor: WEIGHT_FLOOR, roundF16: true };
    const grid = drawGrid(draw, w, undefined, { M, K, group, bits, ...rule });
    return {
      inputs: [w, drawMoments(draw, dims), ...grid],
      params: { bits, group, damping: 0.01, block: dim(dims, "block") },
    };
  },
  reference: (call) => {
    const [w, h] = [input(call, 0), input(call, 1)];
    const [M, K] = w.shape as [number, number];
    const grid = { scale: input(call, 2).data, zero: input(call, 3).data };
    const options = { bits: param(call, "bits"), damping: param(call, "damping") };
    return [gptqReference(w.data, h.data, grid, { M, K, group: param(call, "group") }, options)];
  },
  // A value between two codes may fall to either side, and what follows then differs: the sets have
  // none so close that the order of additions decides.
  tolerance: EXACT,
  bytes: (dims, size) => {
    const [O, I] = [dim(dims, "O"), dim(dims, "I")];
    return O * I * (size + 1) + I * I * size;
  },
  // The factor, its inverse, and the products that pass the errors on.
  flops: (dims) => {
    const [O, I] = [dim(dims, "O"), dim(dims, "I")];
    return (2 / 3) * I ** 3 + O * I ** 2;
  },
  bound: "flops",
};

export const CASES: readonly OpCase[] = [gptq];
