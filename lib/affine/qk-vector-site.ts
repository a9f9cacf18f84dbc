/**
 * qk-vector: a diagonal between q and k, as the published weight-only recipe has it. Rows of k are
 * multiplied by s, rows of q divided. Exact without rotary positions; with them only where both
 * channels of a pair have one s, which nothing here keeps. Parameter: s [H*D], from 1.
 */

import { scaleWeight } from "../autograd/ops/scale-weight.ts";
import type { SiteSpec } from "../models/family.ts";
import { diagonalOf, mapRows, type SiteKind } from "./site.ts";
import { startDiagonal } from "./starts.ts";

type Spec = Extract<SiteSpec, { kind: "qk-matrix" | "qk-vector" }>;

export const qkVectorSite: SiteKind<Spec> = {
  start: (_spec, { shape: { heads, headDim }, style }) => ({
    ...startDiagonal(style, new Float32Array(heads * headDim).fill(1)),
  }),

  fold(spec, { graph, weights }, parameters) {
    const { scale, inverse } = diagonalOf(graph, parameters);
    mapRows(weights, spec.k, (w) => scaleWeight(graph, w, { rows: scale }));
    mapRows(weights, spec.q, (w) => scaleWeight(graph, w, { rows: inverse }));
  },

  describe: (spec, { heads, headDim }) => ({
    map: `diagonal [${heads * headDim}]`,
    parameters: heads * headDim,
    foldsInto: [`rows of ${spec.q}`, `rows of ${spec.k}`],
  }),
};
