/** Activation quantizers: what a decoder block does with the activations that it names. */

import type { Graph, Var } from "../autograd/graph.ts";
import { fakeQuant } from "../autograd/ops/fake-quant.ts";
import { type GridStyle, multipliesCodes, type QuantScheme, scaleFloors } from "./scheme.ts";

/**
 * A block calls `apply` on every activation that may be quantized: the inputs of its linears (group
 * 0: one scale a token) and q, k, v (group D: one scale per token and head).
 */
export interface ActivationHook {
  apply(graph: Graph, name: string, x: Var, group: number): Var;
}

/** Full precision. */
export const passThrough: ActivationHook = { apply: (_graph, _name, x) => x };

/**
 * Dynamic per-token quantization to `bits`, asymmetric, with one learned clipping logit for each
 * activation (a name without one is not clipped).
 */
export class TokenQuantizers implements ActivationHook {
  readonly #bits: number;
  readonly #clips: ReadonlyMap<string, Var>;
  readonly #style: GridStyle & Partial<QuantScheme>;

  /** `style` may be a whole scheme: its weights then say how tokens are best multiplied. */
  constructor(
    bits: number,
    clips: ReadonlyMap<string, Var> = new Map(),
    style: GridStyle & Partial<QuantScheme> = {},
  ) {
    this.#bits = bits;
    this.#clips = clips;
    this.#style = style;
  }

  apply(graph: Graph, name: string, x: Var, group: number): Var {
    const { wbits = 16, groupSize = 0, symmetric = false, ...style } = this.#style;
    const scheme = { wbits, groupSize, symmetric, ...style, abits: this.#bits };
    return fakeQuant(graph, x, this.#clips.get(name), {
      bits: this.#bits,
      group: this.#style.heads === "together" ? 0 : group,
      symmetric: false,
      floor: scaleFloors(this.#style).token,
      published: this.#style.grids === "published",
      // q, k and v, which have a group, go into attention.
      operand: group === 0 && multipliesCodes(scheme) ? "codes" : undefined,
    });
  }
}
