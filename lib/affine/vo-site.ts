/**
 * vo: one D x D matrix A = S o M for each kv head, between v and o, shared by the head's query group.
 * Wv <- A^-T Wv, bv <- bv A^-1, Wo <- Wo At for every head of the group. Exact: softmax rows sum to
 * one and A is block-diagonal by head. Where shifts are everywhere, a shift d leaves v and enters o:
 * bv - d and bo + Wo d, both before A. Parameters: S [Hkv, D, D], under the gradual mask, and d [H*D].
 */

import { headMatmul } from "../autograd/ops/head-matmul.ts";
import { inverse } from "../autograd/ops/lu-inverse.ts";
import { reshape } from "../autograd/ops/reshape.ts";
import type { SiteSpec } from "../models/family.ts";
import { absorbShift, mapRows, maskedMatrices, minus, type SiteKind, weightOf } from "./site.ts";
import { diagonalMatrices, shiftStart, startScale, startSources } from "./starts.ts";

type Spec = Extract<SiteSpec, { kind: "vo" }>;

/** Largest entry over the query heads of each kv head: [H*D] -> [Hkv*D]. */
function groupMax(
  perHead: Float32Array,
  heads: number,
  kvHeads: number,
  headDim: number,
): Float32Array {
  const group = heads / kvHeads;
  return Float32Array.from({ length: kvHeads * headDim }, (_, at) => {
    const first = Math.floor(at / headDim) * group;
    let max = 0;
    for (let h = first; h < first + group; h++)
      max = Math.max(max, perHead[h * headDim + (at % headDim)] as number);
    return max;
  });
}

export const voSite: SiteKind<Spec> = {
  start(spec, context) {
    const { heads, kvHeads, headDim: d } = context.shape;
    const o = weightOf(context.weights, spec.o);
    const sources = startSources(context, spec.activation, [o], o);
    const activation = groupMax(sources.activation, heads, kvHeads, d);
    const weight = groupMax(sources.weight, heads, kvHeads, d);
    // After a Hadamard rotation of the heads all channels are alike, and the identity is the start.
    const diagonal = context.rotated
      ? new Float32Array(kvHeads * d).fill(1)
      : startScale(activation, weight, context.alpha);
    const S = diagonalMatrices(diagonal, d);
    if (context.style.shifts !== "everywhere") return { S };
    return { S, shift: shiftStart(context, spec.activation, heads * d) };
  },

  fold(spec, fold, { S, shift }) {
    if (!S) throw new TypeError("vo needs S");
    const { graph, weights, shape } = fold;
    if (shift) {
      const bias = `${spec.v}.bias`;
      const column = reshape(graph, shift, [shift.value.tensor.size, 1]);
      absorbShift({ graph, weights }, [spec.o], shift);
      weights[bias] = minus(graph, weights[bias], column);
    }
    const a = maskedMatrices(fold, S);
    const inverted = inverse(graph, a);
    mapRows(weights, spec.v, (w) =>
      headMatmul(graph, w, inverted, { side: "rows", transpose: true, heads: shape.kvHeads }),
    );
    weights[spec.o] = headMatmul(graph, weightOf(weights, spec.o), a, {
      side: "columns",
      transpose: true,
      heads: shape.heads,
    });
  },

  adds: (spec, { shifts }) => (shifts === "everywhere" ? [`${spec.v}.bias`, `${spec.o}.bias`] : []),

  describe: (spec, { kvHeads, headDim }) => ({
    map: `matrices [${kvHeads}, ${headDim}, ${headDim}], gradual mask`,
    parameters: kvHeads * headDim * headDim,
    foldsInto: [`rows of ${spec.v}`, `columns of ${spec.o}`],
  }),
};
