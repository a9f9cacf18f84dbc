/**
 * norm: a diagonal between a norm and the linears that read it, and, for LayerNorm, a shift. The gain
 * is divided by s, columns of the linears multiplied; the shift d leaves the norm's bias and enters
 * the linears': (b - d) / s, and b + W d. Exact: a diagonal commutes with the gain. A shift helps the
 * token quantizer, so it is there only where activations are quantized.
 *
 * Parameters: log s [C], d [C].
 */

import { add } from "../autograd/ops/add.ts";
import { exp } from "../autograd/ops/exp.ts";
import { linear } from "../autograd/ops/linear.ts";
import { mul } from "../autograd/ops/mul.ts";
import { scaleWeight } from "../autograd/ops/scale-weight.ts";
import { sub } from "../autograd/ops/sub.ts";
import type { SiteSpec } from "../models/family.ts";
import { quantizesTokens } from "../quant/scheme.ts";
import {
  columnMax,
  type SiteKind,
  type StartValue,
  startScale,
  statistic,
  weightOf,
} from "./site.ts";

type Spec = Extract<SiteSpec, { kind: "norm" }>;

export const normSite: SiteKind<Spec> = {
  start(spec, context) {
    const weight = columnMax(spec.consumers.map((key) => weightOf(context.weights, key)));
    const scale = startScale(statistic(context, spec.activation), weight, context.alpha);
    const shape = [scale.length];
    const parameters: Record<string, StartValue> = {
      log_s: { data: scale.map(Math.log), shape, masked: false },
    };
    const middle = context.statistics.middle.get(spec.activation);
    if (hasShift(spec, context.weights) && quantizesTokens(context.scheme) && middle) {
      parameters["shift"] = { data: middle.slice(), shape, masked: false };
    }
    return parameters;
  },

  fold(spec, { graph, weights }, { log_s, shift }) {
    if (!log_s) throw new TypeError("norm needs log_s");
    const inverse = exp(graph, log_s, -1);
    const beta = `${spec.norm}.beta`;
    if (shift) {
      weights[beta] = sub(graph, weightOf(weights, beta), shift);
      for (const key of spec.consumers) {
        // W d as a column: W read as rows of inputs, d as the one row of a weight.
        const moved = linear(graph, weightOf(weights, key), shift);
        weights[`${key}.bias`] = add(graph, weightOf(weights, `${key}.bias`), moved);
      }
    }
    weights[spec.norm] = mul(graph, weightOf(weights, spec.norm), inverse);
    const shifted = weights[beta];
    if (shifted) weights[beta] = mul(graph, shifted, inverse);
    const columns = exp(graph, log_s);
    for (const key of spec.consumers) {
      weights[key] = scaleWeight(graph, weightOf(weights, key), { columns });
    }
  },

  describe: (spec, { hidden }) => ({
    map: `diagonal [${hidden}]`,
    parameters: hidden,
    foldsInto: [`gain of ${spec.norm}`, ...spec.consumers.map((key) => `columns of ${key}`)],
  }),
};

/** The norm has a bias that gives the shift up, and every consumer one that takes it. */
function hasShift(spec: Spec, weights: Readonly<Record<string, unknown>>): boolean {
  return `${spec.norm}.beta` in weights && spec.consumers.every((key) => `${key}.bias` in weights);
}
