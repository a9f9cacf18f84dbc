/**
 * qk-matrix: one D x D matrix A = S o M for each kv head, between q and k, where no rotary positions
 * stand in between. Wk <- At Wk, bk <- bk A, Wq <- A^-1 Wq, bq <- A^-1 bq. Exact: q kT cancels it.
 * The published recipe has it before rotary positions too, where it changes the function.
 * Parameter: S [Hkv, D, D] from the identity, under the gradual mask.
 */

import { headMatmul } from "../autograd/ops/head-matmul.ts";
import { inverse } from "../autograd/ops/lu-inverse.ts";
import type { SiteSpec } from "../models/family.ts";
import { mapRows, maskedMatrices, type SiteKind } from "./site.ts";
import { diagonalMatrices } from "./starts.ts";

type Spec = Extract<SiteSpec, { kind: "qk-matrix" | "qk-vector" }>;

export const qkMatrixSite: SiteKind<Spec> = {
  start(_spec, { shape: { kvHeads, headDim: d } }) {
    return { S: diagonalMatrices(new Float32Array(kvHeads * d).fill(1), d) };
  },

  fold(spec, fold, { S }) {
    if (!S) throw new TypeError("qk-matrix needs S");
    const { graph, weights, shape } = fold;
    const a = maskedMatrices(fold, S);
    const inverted = inverse(graph, a);
    mapRows(weights, spec.k, (w) =>
      headMatmul(graph, w, a, { side: "rows", transpose: true, heads: shape.kvHeads }),
    );
    mapRows(weights, spec.q, (w) =>
      headMatmul(graph, w, inverted, { side: "rows", transpose: false, heads: shape.heads }),
    );
  },

  describe: (spec, { kvHeads, headDim }) => ({
    map: `matrices [${kvHeads}, ${headDim}, ${headDim}], gradual mask`,
    parameters: kvHeads * headDim * headDim,
    foldsInto: [`rows of ${spec.q}`, `rows of ${spec.k}`],
  }),
};
