/**
 * updown: a positive diagonal between up and down (or fc1 and fc2). Rows and bias of up are divided
 * by s, columns of down multiplied. Exact: the gate multiplies elementwise, and relu is positively
 * homogeneous. Parameter: log s [F].
 */

import { exp } from "../autograd/ops/exp.ts";
import { scaleWeight } from "../autograd/ops/scale-weight.ts";
import type { SiteSpec } from "../models/family.ts";
import { mapRows, type SiteKind, weightOf } from "./site.ts";
import { columnMax, startScale, statistic } from "./starts.ts";

type Spec = Extract<SiteSpec, { kind: "updown" }>;

export const updownSite: SiteKind<Spec> = {
  start(spec, context) {
    const weight = columnMax([weightOf(context.weights, spec.down)]);
    const logs = startScale(statistic(context, spec.activation), weight, context.alpha).map(
      Math.log,
    );
    // Only ratios matter to the per-token quantizer, and centred logs leave the weights' size alone.
    const mean = logs.reduce((sum, x) => sum + x, 0) / logs.length;
    return { log_s: { data: logs.map((x) => x - mean), shape: [logs.length], masked: false } };
  },

  fold(spec, { graph, weights }, { log_s }) {
    if (!log_s) throw new TypeError("updown needs log_s");
    const inverse = exp(graph, log_s, -1);
    mapRows(weights, spec.up, (w) => scaleWeight(graph, w, { rows: inverse }));
    weights[spec.down] = scaleWeight(graph, weightOf(weights, spec.down), {
      columns: exp(graph, log_s),
    });
  },

  describe: (spec, { mlp }) => ({
    map: `diagonal [${mlp}]`,
    parameters: mlp,
    foldsInto: [`rows of ${spec.up}`, `columns of ${spec.down}`],
  }),
};
