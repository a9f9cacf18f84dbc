// Cases of 4-bit floats as a linear reads them: their gradient is the written rule.

import type { Float4Name } from "../../lib/autograd/float4.ts";
import { fakeFloat4, globalScale } from "../../lib/autograd/ops/fake-float4.ts";
import { linear } from "../../lib/autograd/ops/linear.ts";
import { mse } from "../../lib/autograd/ops/mse.ts";
import type { Value } from "../helpers/value.ts";
import {
  fp4Gradient,
  fp4Quantize,
  fp4Values,
  globalScale as referenceGlobal,
} from "../reference/fp4.ts";
import { matmul } from "../reference/linalg.ts";
import { at, constant, draw, type GraphCase } from "./graph-case.ts";

/** Tokens, and a weight with clipping and learned rounding, that share nothing. */
function floatsLinear(format: Float4Name): GraphCase {
  const [M, N, K, number] = [5, 4, format === "nvfp4" ? 48 : 64, format === "nvfp4" ? 0 : 1];
  const groups = K / (number === 0 ? 16 : 32);
  const [x, w] = [draw.normal([M, K]), draw.normal([N, K])];
  const clip = draw.normal([N, groups], 0.5, 2);
  const offset = draw.uniform([N, K], -0.5, 0.5);
  const target = draw.normal([M, N]);
  const product = (
    a: Float64Array,
    b: Float64Array,
    [rows, cols, inner]: readonly [number, number, number],
    transA: boolean,
    transB: boolean,
  ) => matmul(a, b, { B: 1, M: rows, N: cols, K: inner }, { alpha: 1, transA, transB });
  const operand = ({ data }: Value, rows: number, learned: object) => {
    const g = number === 0 ? referenceGlobal(data, Number.POSITIVE_INFINITY) : 1;
    const options = { M: rows, K, format: number, g, ...learned };
    const { codes, scale } = fp4Quantize(data, options);
    return {
      used: fp4Values(codes, scale, options),
      pass: (grad: Float64Array) => fp4Gradient(data, grad, options),
    };
  };
  return {
    pairs: ["fake-float4", "linear", "mse"],
    title: `a linear of ${format} tokens and learnedly rounded ${format} weights`,
    inputs: [x, w, clip, offset],
    loss: (graph, vars) => {
      const [a, b] = [at(vars, 0), at(vars, 1)];
      const global = (v: typeof a) => (number === 0 ? globalScale(graph, [v]) : undefined);
      const tokens = fakeFloat4(graph, a, { format, global: global(a) });
      const weights = fakeFloat4(graph, b, {
        format,
        global: global(b),
        clip: at(vars, 2),
        offset: at(vars, 3),
      });
      return mse(graph, linear(graph, tokens, weights), constant(graph, target));
    },
    rule: () => {
      const tokens = operand(x, M, {});
      const weights = operand(w, N, { clip: clip.data, v: offset.data });
      const y = product(tokens.used, weights.used, [M, N, K], false, true);
      const g = y.map((value, i) => (2 * (value - (target.data[i] ?? 0))) / y.length);
      const gx = tokens.pass(product(g, weights.used, [M, K, N], false, false));
      const gw = weights.pass(product(g, tokens.used, [N, K, M], true, false));
      return [gx.gx, gw.gx, gw.gclip, gw.gv];
    },
  };
}

export const FLOAT4: readonly GraphCase[] = [floatsLinear("nvfp4"), floatsLinear("mxfp4")];
