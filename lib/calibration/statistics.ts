/** Activation statistics, taken while the full-precision stream passes through a block. */

import type { Graph, Var } from "../autograd/graph.ts";
import type { ActivationHook } from "../quant/tokens.ts";
import { invoke } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** max |x| of every channel of every activation that the block names, over all it has seen. */
export class ActivationMax implements ActivationHook {
  readonly max: Map<string, Float32Array> = new Map();

  apply(_graph: Graph, name: string, x: Var, group: number): Var {
    // Per-head activations (q, k, v) have no site that starts from statistics.
    if (group === 0) {
      const seen = scope(() => ({
        data: (invoke("channel_stats", [x.value.tensor])[0] as Tensor).floats(),
      })).data;
      const known = this.max.get(name);
      this.max.set(
        name,
        known ? known.map((value, i) => Math.max(value, seen[i] as number)) : seen,
      );
    }
    return x;
  }
}
