/**
 * vo: one D x D matrix A = S o M for each kv head, between v and o, shared by the head's query group.
 * Wv <- A^-T Wv, bv <- bv A^-1, Wo <- Wo At for every head of the group. Exact: softmax rows sum to
 * one and A is block-diagonal by head. Parameter: S [Hkv, D, D], under the gradual mask.
 */

import { gradualMask } from "../autograd/ops/gradual-mask.ts";
import { headMatmul } from "../autograd/ops/head-matmul.ts";
import { inverse } from "../autograd/ops/inverse.ts";
import type { SiteSpec } from "../models/family.ts";
import { columnMax, mapRows, type SiteKind, startScale, statistic, weightOf } from "./site.ts";

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
    const activation = groupMax(statistic(context, spec.activation), heads, kvHeads, d);
    const weight = groupMax(columnMax([weightOf(context.weights, spec.o)]), heads, kvHeads, d);
    // After a Hadamard rotation of the heads all channels are alike, and the identity is the start.
    const diagonal = context.rotated
      ? new Float32Array(kvHeads * d).fill(1)
      : startScale(activation, weight, context.alpha);
    const data = new Float32Array(kvHeads * d * d);
    for (const [at, value] of diagonal.entries()) {
      data[Math.floor(at / d) * d * d + (at % d) * (d + 1)] = value;
    }
    return { S: { data, shape: [kvHeads, d, d], masked: true } };
  },

  fold(spec, { graph, weights, shape, mask }, { S }) {
    if (!S) throw new TypeError("vo needs S");
    const a = gradualMask(graph, S, mask);
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

  describe: (spec, { kvHeads, headDim }) => ({
    map: `matrices [${kvHeads}, ${headDim}, ${headDim}], gradual mask`,
    parameters: kvHeads * headDim * headDim,
    foldsInto: [`rows of ${spec.v}`, `columns of ${spec.o}`],
  }),
};
