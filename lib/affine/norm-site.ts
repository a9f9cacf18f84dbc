/**
 * norm: a diagonal between a norm and the linears that read it, and, for LayerNorm, a shift. The gain
 * is divided by s, columns of the linears multiplied; the shift d leaves the norm's bias and enters
 * the linears': (b - d) / s, and b + W d. Exact: a diagonal commutes with the gain.
 *
 * Parameters: log s or s [C], d [C].
 */

import { mul } from "../autograd/ops/mul.ts";
import { scaleWeight } from "../autograd/ops/scale-weight.ts";
import type { SiteSpec } from "../models/family.ts";
import { foldShift, shiftAdds, startShift } from "./norm-shift.ts";
import { diagonalOf, type SiteKind, weightOf } from "./site.ts";
import { startDiagonal, startOf } from "./starts.ts";

type Spec = Extract<SiteSpec, { kind: "norm" | "norm-full" }>;

export const normSite: SiteKind<Spec> = {
  start(spec, context) {
    const consumers = spec.consumers.map((key) => weightOf(context.weights, key));
    const lead = weightOf(context.weights, spec.lead ?? (spec.consumers[0] as string));
    const scale = startOf(context, spec.activation, consumers, lead);
    const { shift } = startShift(spec, context);
    return { ...startDiagonal(context.style, scale), ...(shift ? { shift } : {}) };
  },

  fold(spec, fold, parameters) {
    const { graph, weights } = fold;
    const { scale, inverse } = diagonalOf(graph, parameters);
    foldShift(spec, fold, parameters["shift"]);
    const beta = `${spec.norm}.beta`;
    weights[spec.norm] = mul(graph, weightOf(weights, spec.norm), inverse);
    const shifted = weights[beta];
    if (shifted) weights[beta] = mul(graph, shifted, inverse);
    for (const key of spec.consumers) {
      weights[key] = scaleWeight(graph, weightOf(weights, key), { columns: scale });
    }
  },

  adds: shiftAdds,

  describe: (spec, { hidden }) => ({
    map: `diagonal [${hidden}]`,
    parameters: hidden,
    foldsInto: [`gain of ${spec.norm}`, ...spec.consumers.map((key) => `columns of ${key}`)],
  }),
};
