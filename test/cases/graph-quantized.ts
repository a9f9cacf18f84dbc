// Cases of pairs that quantize: their gradient is the written rule, for differences mean nothing there.
import type { Var } from "../../lib/autograd/graph.ts";
import { attention } from "../../lib/autograd/ops/attention.ts";
import { type FakeQuantParams, fakeQuant } from "../../lib/autograd/ops/fake-quant.ts";
import { linear } from "../../lib/autograd/ops/linear.ts";
import { mse } from "../../lib/autograd/ops/mse.ts";
import type { Value } from "../helpers/value.ts";
import { attention as attentionReference } from "../reference/block.ts";
import { differences } from "../reference/finite-differences.ts";
import { matmul } from "../reference/linalg.ts";
import { fakeQuant as fakeQuantReference, quantGrid } from "../reference/quantize.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";
import { at, constant, draw, type GraphCase } from "./graph-case.ts";

/** A quantized operand: its values on the grid, and how a gradient passes through them. */
function onGrid(
  x: Value,
  clip: Value,
  sizes: { M: number; K: number },
  params: FakeQuantParams,
  offset?: Value,
) {
  const options = { ...sizes, ...params, roundF16: false };
  const grid = quantGrid(x.data, clip.data, options);
  return {
    used: fakeQuantReference(x.data, grid, params.bits, options, offset?.data),
    pass: (g: Float64Array) => fakeQuantGradient(x.data, clip.data, g, options, offset?.data),
  };
}

/** Gradient of the mean squared error. */
function errorGradient(y: Float64Array, target: Value): Float64Array {
  return y.map((value, i) => (2 * (value - (target.data[i] ?? 0))) / y.length);
}

/** With `rounding`, the weight's rounding is learned too. */
function quantizedLinear(rounding: boolean): GraphCase {
  const [M, N, K] = [6, 5, 9];
  const token: FakeQuantParams = { bits: 4, group: 0, symmetric: false, floor: 1e-6 };
  const weight: FakeQuantParams = { bits: 3, group: 4, symmetric: false, floor: 2 ** -14 };
  const [x, w] = [draw.normal([M, K]), draw.normal([N, K])];
  const [xClip, wClip] = [draw.normal([1], 0.1, 2), draw.normal([2, N, 3], 0.5, 2)];
  const offset = rounding ? draw.uniform([N, K], -0.5, 0.5) : undefined;
  const target = draw.normal([M, N]);
  return {
    pairs: ["fake-quant", "linear", "mse"],
    title: `a linear of quantized tokens and ${rounding ? "learnedly rounded " : ""}weights`,
    inputs: [x, xClip, w, wClip, ...(offset ? [offset] : [])],
    loss: (graph, vars) => {
      const tokens = fakeQuant(graph, at(vars, 0), at(vars, 1), token);
      const weights = fakeQuant(graph, at(vars, 2), at(vars, 3), weight, vars[4]);
      return mse(graph, linear(graph, tokens, weights), constant(graph, target));
    },
    rule: () => {
      const tokens = onGrid(x, xClip, { M, K }, token);
      const weights = onGrid(w, wClip, { M: N, K }, weight, offset);
      const product = (
        a: Float64Array,
        b: Float64Array,
        [rows, cols, inner]: readonly [number, number, number],
        transA: boolean,
        transB: boolean,
      ) => {
        const sizes = { B: 1, M: rows, N: cols, K: inner };
        return matmul(a, b, sizes, { alpha: 1, transA, transB });
      };
      const y = product(tokens.used, weights.used, [M, N, K], false, true);
      const g = errorGradient(y, target);
      const gx = tokens.pass(product(g, weights.used, [M, K, N], false, false));
      const gw = weights.pass(product(g, tokens.used, [N, K, M], true, false));
      return [gx.gx, gx.gclip, gw.gx, gw.gclip, ...(offset ? [gw.gv] : [])];
    },
  };
}

/** With grids per token and head, or with one for all heads of a token. */
function quantizedAttention(together: boolean): GraphCase {
  const [T, heads, kvHeads, D] = [5, 4, 2, 3];
  const group = together ? 0 : D;
  const params: FakeQuantParams = { bits: 4, group, symmetric: false, floor: 1e-6 };
  const counts = [heads, kvHeads, kvHeads];
  const values = counts.map((count) => draw.normal([1, T, count * D]));
  const clips = counts.map(() => draw.normal([1], 0.2, 2));
  const target = draw.normal([1, T, heads * D]);
  const sizes = { B: 1, T, heads, kvHeads, D, scale: 0.7 };
  return {
    pairs: ["fake-quant", "attention", "mse"],
    title: `attention on heads quantized ${together ? "together" : "one by one"}`,
    inputs: [...values, ...clips],
    loss: (graph, vars) => {
      const [q, k, v] = [0, 1, 2].map((i) =>
        fakeQuant(graph, at(vars, i), at(vars, 3 + i), params),
      ) as [Var, Var, Var];
      return mse(graph, attention(graph, q, k, v, sizes), constant(graph, target));
    },
    rule: () => {
      const grids = values.map((x, i) =>
        onGrid(x, clips[i] as Value, { M: T, K: (counts[i] ?? 0) * D }, params),
      );
      const used = grids.map((grid) => grid.used);
      const forward = ([q, k, v]: readonly Float64Array[]) => [
        attentionReference(q as Float64Array, k as Float64Array, v as Float64Array, sizes).o,
      ];
      const g = errorGradient(forward(used)[0] as Float64Array, target);
      const passed = grids.map((grid, i) => grid.pass(differences(forward, used, i, [g])));
      return [...passed.map(({ gx }) => gx), ...passed.map(({ gclip }) => gclip)];
    },
  };
}

export const QUANTIZED: readonly GraphCase[] = [
  quantizedLinear(false),
  quantizedLinear(true),
  quantizedAttention(false),
  quantizedAttention(true),
];
