/** Activation statistics, taken while the full-precision stream passes through a block. */

import type { ActivationStatistics } from "../affine/site.ts";
import type { Graph, Var } from "../autograd/graph.ts";
import type { ActivationHook } from "../quant/tokens.ts";
import { invoke } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";

/** Windows that one step of the running mean covers. */
const BATCH = 4;
/** Weight of the old value in the running mean. */
const KEEP = 0.9;

interface Range {
  max: Float32Array;
  min: Float32Array;
}

/** A hook that watches every activation that the block names; call `endWindow` after each window. */
export class StatisticsHook implements ActivationHook, ActivationStatistics {
  readonly max: Map<string, Float32Array> = new Map();
  readonly middle: Map<string, Float32Array> = new Map();
  readonly #batch = new Map<string, Range>();
  #windows = 0;

  apply(_graph: Graph, name: string, x: Var, group: number): Var {
    // Per-head activations (q, k, v) have no site that starts from statistics.
    if (group !== 0) return x;
    const seen = scope(() => {
      const [absMax, max, min] = invoke("channel_stats", [x.value.tensor]).map((t) => t.floats());
      return { absMax, max, min } as { absMax: Float32Array; max: Float32Array; min: Float32Array };
    });
    this.max.set(name, larger(this.max.get(name), seen.absMax));
    const batch = this.#batch.get(name);
    this.#batch.set(name, {
      max: larger(batch?.max, seen.max),
      min: batch ? batch.min.map((v, i) => Math.min(v, seen.min[i] as number)) : seen.min,
    });
    return x;
  }

  /** Ends a window; every fourth one, and the last, moves the running mean. */
  endWindow(last: boolean): void {
    this.#windows++;
    if (this.#windows % BATCH !== 0 && !last) return;
    for (const [name, { max, min }] of this.#batch) {
      const middle = max.map((v, i) => (v + (min[i] as number)) / 2);
      const known = this.middle.get(name);
      this.middle.set(
        name,
        known ? known.map((v, i) => KEEP * v + (1 - KEEP) * (middle[i] as number)) : middle,
      );
    }
    this.#batch.clear();
  }
}

function larger(known: Float32Array | undefined, seen: Float32Array): Float32Array {
  return known ? known.map((v, i) => Math.max(v, seen[i] as number)) : seen;
}
