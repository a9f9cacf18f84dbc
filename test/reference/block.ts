// The parts of a decoder block in float64.
import { at, sigmoid } from "./numbers.ts";
import { fakeQuant, type Grid } from "./quantize.ts";

/** x / rms(x) * w per row, and 1 / rms. */
export function rmsNorm(
  x: Float64Array,
  w: Float64Array,
  eps: number,
  b?: Float64Array,
): { readonly y: Float64Array; readonly rstd: Float64Array } {
  const C = w.length;
  const rstd = new Float64Array(x.length / C);
  const y = new Float64Array(x.length);
  for (let row = 0; row < rstd.length; row++) {
    let squares = 0;
    for (let c = 0; c < C; c++) squares += at(x, row * C + c) ** 2;
    const factor = 1 / Math.sqrt(squares / C + eps);
    rstd[row] = factor;
    for (let c = 0; c < C; c++) {
      y[row * C + c] = at(x, row * C + c) * factor * at(w, c) + (b ? at(b, c) : 0);
    }
  }
  return { y, rstd };
}

/** (x - mean) / sqrt(variance + eps) * w + b per row, the mean, and 1 / sqrt(variance + eps). */
export function layerNorm(
  x: Float64Array,
  w: Float64Array,
  b: Float64Array,
  eps: number,
): { readonly y: Float64Array; readonly mean: Float64Array; readonly rstd: Float64Array } {
  const C = w.length;
  const mean = new Float64Array(x.length / C);
  const rstd = new Float64Array(x.length / C);
  const y = new Float64Array(x.length);
  for (let row = 0; row < rstd.length; row++) {
    const values = x.subarray(row * C, (row + 1) * C);
    const center = values.reduce((sum, value) => sum + value, 0) / C;
    const variance = values.reduce((sum, value) => sum + (value - center) ** 2, 0) / C;
    const factor = 1 / Math.sqrt(variance + eps);
    mean[row] = center;
    rstd[row] = factor;
    values.forEach((value, c) => {
      y[row * C + c] = (value - center) * factor * at(w, c) + at(b, c);
    });
  }
  return { y, mean, rstd };
}

/** Rotary positions on [M, heads D]; row m is position m mod T. */
export function rope(
  x: Float64Array,
  cos: Float64Array,
  sin: Float64Array,
  sizes: { readonly T: number; readonly heads: number; readonly D: number },
  inverse: boolean,
): Float64Array {
  const { T, heads, D } = sizes;
  const half = D / 2;
  const y = new Float64Array(x.length);
  for (let index = 0; index < x.length; index++) {
    const row = Math.floor(index / (heads * D));
    const inHead = index % D;
    const pair = inHead % half;
    const c = at(cos, (row % T) * half + pair);
    const s = at(sin, (row % T) * half + pair) * (inverse ? -1 : 1);
    const partner = inHead < half ? -at(x, index + half) : at(x, index - half);
    y[index] = at(x, index) * c + partner * s;
  }
  return y;
}

/** Sizes of an attention call. */
export interface AttentionSizes {
  readonly B: number;
  readonly T: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly D: number;
  readonly scale: number;
}

/** Values of x [B, T, heads D] on a grid per token and head, or x itself without one. */
export function onHeadGrid(
  x: Float64Array,
  grid: Grid | undefined,
  bits: number,
  row: { readonly heads: number; readonly D: number },
): Float64Array {
  if (!grid) return x;
  const K = row.heads * row.D;
  return fakeQuant(x, grid, bits, { M: x.length / K, K, group: row.D });
}

/** Causal softmax(scale q kT) v with grouped heads, and the log-sum-exp of the scaled logits. */
export function attention(
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  { B, T, heads, kvHeads, D, scale }: AttentionSizes,
): { readonly o: Float64Array; readonly lse: Float64Array } {
  const o = new Float64Array(q.length);
  const lse = new Float64Array(B * heads * T);
  for (let b = 0; b < B; b++) {
    for (let head = 0; head < heads; head++) {
      const kv = Math.floor(head / (heads / kvHeads));
      for (let t = 0; t < T; t++) {
        const query = ((b * T + t) * heads + head) * D;
        const key = (past: number) => ((b * T + past) * kvHeads + kv) * D;
        const logits: number[] = [];
        for (let past = 0; past <= t; past++) {
          let dot = 0;
          for (let d = 0; d < D; d++) dot += at(q, query + d) * at(k, key(past) + d);
          logits.push(scale * dot);
        }
        const top = Math.max(...logits);
        const total = logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0);
        lse[(b * heads + head) * T + t] = top + Math.log(total);
        logits.forEach((logit, past) => {
          const weight = Math.exp(logit - top) / total;
          for (let d = 0; d < D; d++)
            o[query + d] = at(o, query + d) + weight * at(v, key(past) + d);
        });
      }
    }
  }
  return { o, lse };
}

/** gate sigmoid(gate) up */
export function siluMul(gate: Float64Array, up: Float64Array): Float64Array {
  return gate.map((value, i) => value * sigmoid(value) * at(up, i));
}

/** max(x, 0) */
export function relu(x: Float64Array): Float64Array {
  return x.map((value) => Math.max(value, 0));
}

/** g where y, the output of relu, is positive; 0 elsewhere. */
export function reluGradient(y: Float64Array, g: Float64Array): Float64Array {
  return y.map((value, i) => (value > 0 ? at(g, i) : 0));
}

/** From the gradient of the norm's result to x, w and b; a mean of null is none. */
export function normGradient(
  x: Float64Array,
  w: Float64Array,
  [mean, rstd]: readonly [Float64Array | null, Float64Array],
  g: Float64Array,
): readonly [Float64Array, Float64Array, Float64Array] {
  const C = w.length;
  const [gx, gw, gb] = [new Float64Array(x.length), new Float64Array(C), new Float64Array(C)];
  for (const [row, root] of rstd.entries()) {
    const grad = g.subarray(row * C, (row + 1) * C);
    const normed = x.subarray(row * C, (row + 1) * C).map((v) => (v - (mean?.[row] ?? 0)) * root);
    const us = grad.map((value, c) => value * (w[c] as number));
    const level = mean ? us.reduce((sum, u) => sum + u, 0) / C : 0;
    const slope = us.reduce((sum, u, c) => sum + u * (normed[c] as number), 0) / C;
    for (const [c, u] of us.entries()) {
      const value = normed[c] as number;
      gx[row * C + c] = root * (u - level - value * slope);
      gw[c] = (gw[c] as number) + (grad[c] as number) * value;
      gb[c] = (gb[c] as number) + (grad[c] as number);
    }
  }
  return [gx, gw, gb];
}

/** From the gradient of the gate's result to gate and up. */
export function gateGradient(
  gate: Float64Array,
  up: Float64Array,
  g: Float64Array,
): Float64Array[] {
  const sigmoid = gate.map((x) => 1 / (1 + Math.exp(-x)));
  const at = (all: Float64Array, i: number): number => all[i] as number;
  return [
    gate.map((x, i) => {
      const s = at(sigmoid, i);
      return at(g, i) * at(up, i) * s * (1 + x * (1 - s));
    }),
    gate.map((x, i) => at(g, i) * x * at(sigmoid, i)),
  ];
}
