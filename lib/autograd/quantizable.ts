/**
 * The result of an op that a quantizer right behind it can become part of: on a GPU, where memory is what
 * limits both, the result itself then never exists. Whoever reads `value` gets it, by the op alone.
 */

import { precisionOf } from "../tensor/precision.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Forward, Graph, Value, Var } from "./graph.ts";

/** A quantizer of rows: to whole numbers, for products of such, or of each head, whose grid attention applies. */
export interface RowCodes {
  readonly bits: number;
  /** Smallest scale. */
  readonly floor: number;
}

export class QuantizableVar implements Var {
  /** Columns of a head, where quantizers of heads are meant; 0: those of whole rows, to whole numbers. */
  readonly group: number;
  /** The quantized result, with one clipping logit for all rows or none. */
  readonly quantize: (clip: Var | undefined, codes: RowCodes) => Var;
  readonly #inputs: readonly (Var | undefined)[];
  readonly #make: () => Var;
  #dense: Var | undefined;

  constructor(
    inputs: readonly (Var | undefined)[],
    make: () => Var,
    quantize: (clip: Var | undefined, codes: RowCodes) => Var,
    group = 0,
  ) {
    this.#inputs = inputs;
    this.#make = make;
    this.quantize = quantize;
    this.group = group;
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

/** The value of rows that were quantized where they were made: scale, zero and whole numbers. */
export function rowCodes([scale, zero, codes]: readonly Tensor[], bits: number): Forward {
  if (!scale || !zero || !codes) throw new TypeError("rows are quantized to three outputs");
  return { tensor: codes, grid: { scale, zero, bits, group: 0, quantized: codes } };
}

/** Whether gradients towards linears, whose products would round them anyway, come in bf16. */
export function isRounded(g: Tensor): boolean {
  return g.dtype === "f32" && precisionOf(g.device) === "bf16";
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
