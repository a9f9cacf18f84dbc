/**
 * qk-pairs: for each kv head and frequency pair (i, i + D/2), k is scaled by r and rotated by t, q by
 * 1/r and t. Exact with rotary positions, since scaled rotations of a pair commute with RoPE's; a
 * general matrix, as the paper uses, does not. Parameters: log r and t [Hkv, D/2], from 0, no mask.
 */

import { rotatePairs } from "../autograd/ops/rotate-pairs.ts";
import type { SiteSpec } from "../models/family.ts";
import { mapRows, type SiteKind } from "./site.ts";

type Spec = Extract<SiteSpec, { kind: "qk-pairs" }>;

export const qkPairsSite: SiteKind<Spec> = {
  start(_spec, { shape: { kvHeads, headDim } }) {
    const shape = [kvHeads, headDim / 2];
    const zeros = (): Float32Array => new Float32Array((kvHeads * headDim) / 2);
    return {
      log_r: { data: zeros(), shape, masked: false },
      theta: { data: zeros(), shape, masked: false },
    };
  },

  fold(spec, { graph, weights, shape }, { log_r, theta }) {
    if (!log_r || !theta) throw new TypeError("qk-pairs needs log_r and theta");
    mapRows(weights, spec.k, (w) =>
      rotatePairs(graph, w, log_r, theta, { heads: shape.kvHeads, signR: 1 }),
    );
    mapRows(weights, spec.q, (w) =>
      rotatePairs(graph, w, log_r, theta, { heads: shape.heads, signR: -1 }),
    );
  },

  describe: (spec, { kvHeads, headDim }) => ({
    map: `scaled rotations of pairs, 2 x [${kvHeads}, ${headDim / 2}]`,
    parameters: kvHeads * headDim,
    foldsInto: [`rows of ${spec.q}`, `rows of ${spec.k}`],
  }),
};
