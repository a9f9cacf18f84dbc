/**
 * The result of an op that a quantizer right behind it can become part of: on a GPU, where memory is what
 * limits both, the result itself then never exists. Whoever reads `value` gets it, by the op alone.
 */

import { precisionOf } from "../tensor/precision.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Graph, Value, Var } from "./graph.ts";

/** Whole numbers in whole rows, for products of such. */
export interface RowCodes {
  readonly bits: number;
  /** Smallest scale. */
  readonly floor: number;
}

export class QuantizableVar implements Var {
  /** The quantized result, with one clipping logit for all rows or none. */
  readonly quantize: (clip: Var | undefined, codes: RowCodes) => Var;
  readonly #inputs: readonly (Var | undefined)[];
  readonly #make: () => Var;
  #dense: Var | undefined;

  constructor(
    inputs: readonly (Var | undefined)[],
    make: () => Var,
    quantize: (clip: Var | undefined, codes: RowCodes) => Var,
  ) {
    this.#inputs = inputs;
    this.#make = make;
    this.quantize = quantize;
  }

  /** The result itself, computed when it is first asked for. */
  get dense(): Var {
    this.#dense ??= this.#make();
    return this.#dense;
  }

  get value(): Value {
    return this.dense.value;
  }

  get needsGrad(): boolean {
    return this.#inputs.some((v) => v?.needsGrad);
  }
}

/** Whether what is made of x should wait for its quantizer: a CPU's products quantize while they load. */
export function waitsForQuantizer(graph: Graph, x: Var): boolean {
  if (!graph.records) return false;
  const { tensor } = x.value;
  return tensor.dtype === "f32" && precisionOf(tensor.device) !== "f32";
}

/** The gradients that are wanted; the others are disposed. */
export function wanted(
  gradients: readonly Tensor[],
  needs: readonly (boolean | undefined)[],
): (Tensor | undefined)[] {
  return gradients.map((gradient, i) => {
    if (needs[i]) return gradient;
    gradient.dispose();
    return undefined;
  });
}
