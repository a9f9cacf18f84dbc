/** Tensors that a block has beside those of its architecture. */

import type { Graph, Var } from "../autograd/graph.ts";
import { throughInverse } from "../autograd/ops/through-inverse.ts";
import type { TensorSpec, Weights } from "./family.ts";

/** Those of a block's possible tensors that it has. */
export function pick(
  specs: readonly TensorSpec[],
  keys: readonly string[] | undefined,
): readonly TensorSpec[] {
  return specs.filter(({ key }) => keys?.includes(key));
}

/**
 * A norm's output h [..., C] times its residue R [C, C] where the block has one: h Rt, like any
 * linear. With R = B^-1 and W B in the linears behind it, h R^T (W B)^T = h W^T.
 */
export function withResidue(graph: Graph, h: Var, w: Weights, norm: string): Var {
  const residue = w[`${norm}.residue`];
  return residue ? throughInverse(graph, h, residue) : h;
}
