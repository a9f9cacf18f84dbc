/**
 * norm-full: one C x C matrix B = S o M between a norm and the linears that read it, and a shift where
 * `norm` has one. Columns of the linears are multiplied, W <- W B. Its inverse commutes with nothing
 * that stands before it, so it stays as a matrix of the run time: the *residue* R = B^-1 [C, C] by
 * which the block multiplies the norm's output, h Rt. Exact: h Rt (W B)t = h Wt. The shift d leaves
 * the norm's bias before the matrix, b - d.
 *
 * B is the transpose of the A that the paper writes, so that the residue lies like a linear's weight.
 * Parameters: S [1, C, C] under the gradual mask of size C, d [C].
 */

import { headMatmul } from "../autograd/ops/head-matmul.ts";
import { residueOf } from "../autograd/ops/lu-inverse.ts";
import type { SiteSpec } from "../models/family.ts";
import { foldShift, shiftAdds, startShift } from "./norm-shift.ts";
import { maskedMatrices, type SiteKind, weightOf } from "./site.ts";
import { diagonalMatrices, startOf } from "./starts.ts";

type Spec = Extract<SiteSpec, { kind: "norm" | "norm-full" }>;

export const normFullSite: SiteKind<Spec> = {
  start(spec, context) {
    const consumers = spec.consumers.map((key) => weightOf(context.weights, key));
    const lead = weightOf(context.weights, spec.lead ?? (spec.consumers[0] as string));
    const scale = startOf(context, spec.activation, consumers, lead);
    const { shift } = startShift(spec, context);
    const S = { ...diagonalMatrices(scale, context.shape.hidden), multiplied: true };
    return { S, ...(shift ? { shift } : {}) };
  },

  fold(spec, fold, { S, shift }) {
    if (!S) throw new TypeError("norm-full needs S");
    const { graph, weights, inverses } = fold;
    foldShift(spec, fold, shift);
    const b = maskedMatrices(fold, S);
    for (const key of spec.consumers) {
      const w = weightOf(weights, key);
      weights[key] = headMatmul(graph, w, b, { side: "columns", transpose: false, heads: 1 });
    }
    const warm = inverses && { last: inverses, name: spec.norm };
    weights[`${spec.norm}.residue`] = residueOf(graph, b, warm);
  },

  adds: (spec, style) => [`${spec.norm}.residue`, ...shiftAdds(spec, style)],

  describe: (spec, { hidden }) => ({
    map: `matrix [${hidden}, ${hidden}], gradual mask, its inverse at run time`,
    parameters: hidden * hidden,
    foldsInto: spec.consumers.map((key) => `columns of ${key}`),
  }),
};
