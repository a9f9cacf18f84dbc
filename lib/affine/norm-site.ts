/**
 * norm: a diagonal between a norm and the linears that read it. The gain is divided by s, columns of
 * the linears multiplied. Exact: a diagonal commutes with the gain. Parameter: log s [C].
 */

import { exp } from "../autograd/ops/exp.ts";
import { mul } from "../autograd/ops/mul.ts";
import { scaleWeight } from "../autograd/ops/scale-weight.ts";
import type { SiteSpec } from "../models/family.ts";
import { columnMax, type SiteKind, startScale, statistic, weightOf } from "./site.ts";

type Spec = Extract<SiteSpec, { kind: "norm" }>;

export const normSite: SiteKind<Spec> = {
  start(spec, context) {
    const weight = columnMax(spec.consumers.map((key) => weightOf(context.weights, key)));
    const logs = startScale(statistic(context, spec.activation), weight, context.alpha).map(
      Math.log,
    );
    return { log_s: { data: logs, shape: [logs.length], masked: false } };
  },

  fold(spec, { graph, weights }, { log_s }) {
    if (!log_s) throw new TypeError("norm needs log_s");
    weights[spec.norm] = mul(graph, weightOf(weights, spec.norm), exp(graph, log_s, -1));
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
