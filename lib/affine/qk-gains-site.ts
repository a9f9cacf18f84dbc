/**
 * qk-gains: where q and k have a norm over the features of each head, a positive r for each frequency pair
 * (i, i + D/2) between the two gains, one for all heads: q's gain is divided by r, k's multiplied. Exact
 * with rotary positions, which turn the two features of a pair and keep a factor that both have. A map of
 * Wq and Wk as qk-pairs has it is none here, since the norms cancel its scales and no gain can turn.
 * Parameter: log r [1, D/2], from 0, no mask. It moves ranges of q and k alone, and learns where these
 * are quantized.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { reshape } from "../autograd/ops/reshape.ts";
import { rotatePairs } from "../autograd/ops/rotate-pairs.ts";
import type { SiteSpec } from "../models/family.ts";
import { invoke } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type SiteKind, weightOf } from "./site.ts";

type Spec = Extract<SiteSpec, { kind: "qk-gains" }>;

/** A gain [D] times r^signR, a pair's factor at both of its features: seen as a column, without a turn. */
function scalePairs(graph: Graph, gain: Var, logR: Var, signR: 1 | -1): Var {
  const { shape, dtype, device } = logR.value.tensor;
  const still = Tensor.empty(shape, dtype, device);
  invoke("fill", [still], { value: 0 });
  const size = gain.value.tensor.size;
  const column = reshape(graph, gain, [size, 1]);
  const scaled = rotatePairs(graph, column, logR, graph.constant(still), { heads: 1, signR });
  return reshape(graph, scaled, [size]);
}

export const qkGainsSite: SiteKind<Spec> = {
  start: (_spec, { shape: { headDim } }) => ({
    log_r: { data: new Float32Array(headDim / 2), shape: [1, headDim / 2], masked: false },
  }),

  fold(spec, { graph, weights }, { log_r }) {
    if (!log_r) throw new TypeError("qk-gains needs log_r");
    weights[spec.k] = scalePairs(graph, weightOf(weights, spec.k), log_r, 1);
    weights[spec.q] = scalePairs(graph, weightOf(weights, spec.q), log_r, -1);
  },

  describe: (spec, { headDim }) => ({
    map: `factors of pairs, [${headDim / 2}] for all heads`,
    parameters: headDim / 2,
    foldsInto: [`gain of ${spec.q}`, `gain of ${spec.k}`],
  }),
};
