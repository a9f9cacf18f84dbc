/** What a decoder block does with the activations that it names. */

import type { Graph, Var } from "../autograd/graph.ts";

/**
 * A block calls `apply` on every activation that may be quantized: the inputs of its linears (group
 * 0: one scale a token) and q, k, v (group D: one scale per token and head).
 */
export interface ActivationHook {
  apply(graph: Graph, name: string, x: Var, group: number): Var;
}

/** Full precision. */
export const passThrough: ActivationHook = { apply: (_graph, _name, x) => x };

/** What is known of a block's activations. */
export interface TokenState {
  /** Learned clipping logits. */
  readonly clips?: ReadonlyMap<string, Var> | undefined;
  /** Global scales of NVFP4 [1], from calibration; one that is missing is taken from the values at hand. */
  readonly globals?: ReadonlyMap<string, Var> | undefined;
  /** Activations that are not quantized. */
  readonly plain?: ReadonlySet<string> | undefined;
}
