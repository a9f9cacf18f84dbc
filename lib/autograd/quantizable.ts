/**
 * The result of an op that a quantizer right behind it can become part of: on a GPU, where memory is what
 * limits both, the result itself then never exists. Whoever reads `value` gets it, by the op alone.
 */

import { dtypeCode } from "../tensor/dtype.ts";
import { invoke } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { FLOAT4_FORMATS, Float4, type Float4Name } from "./float4.ts";
import type { BackwardContext, Forward, Graph, Value, Var } from "./graph.ts";

/** A quantizer of rows: to whole numbers, for products of such, or of each head, whose grid attention applies. */
export interface RowCodes {
  readonly bits: number;
  /** Smallest scale. */
  readonly floor: number;
}

/** A quantizer of rows to 4-bit floats, without clipping. */
export interface RowFloats {
  readonly format: Float4Name;
  /** The global scale is the result's own. */
  readonly isOwn: boolean;
}

/** With the global scale that they are to have, if it is not their own and the format has one. */
type QuantizeFloats = (global: Var | undefined, floats: RowFloats) => Var;

export class QuantizableVar implements Var {
  /** Columns of a head, where quantizers of heads are meant; 0: those of whole rows, to whole numbers. */
  readonly group: number;
  /** The quantized result, with one clipping logit for all rows or none. */
  readonly quantize: (clip: Var | undefined, codes: RowCodes) => Var;
  /** The result in 4-bit floats; absent where the op has no such form. */
  readonly quantizeFloats: QuantizeFloats | undefined;
  readonly #inputs: readonly (Var | undefined)[];
  readonly #make: () => Var;
  #dense: Var | undefined;

  constructor(
    inputs: readonly (Var | undefined)[],
    make: () => Var,
    quantize: (clip: Var | undefined, codes: RowCodes) => Var,
    { group = 0, quantizeFloats }: Partial<Pick<QuantizableVar, "group" | "quantizeFloats">> = {},
  ) {
    this.#inputs = inputs;
    this.#make = make;
    this.quantize = quantize;
    this.group = group;
    this.quantizeFloats = quantizeFloats;
  }

  /** Whether the result itself was asked for already. */
  get isMade(): boolean {
    return this.#dense !== undefined;
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

/** Parameters of an op that gives 4-bit floats: of bf16, as its products read them. */
export const floatParams = ({ format, isOwn }: RowFloats): Record<string, number> => ({
  format: FLOAT4_FORMATS[format],
  dtype: dtypeCode("bf16"),
  own: isOwn ? 1 : 0,
});

/**
 * The value of rows that became 4-bit floats where they were made, from the op's outputs: what the op in front
 * stored, and global scale, scales, factor and numbers, of which the first is stored too.
 */
export function rowFloats(made: readonly Tensor[]): Forward {
  const [scale, factor, values] = made.slice(-3);
  if (!scale || !factor || !values) throw new TypeError("rows become 4-bit floats in four outputs");
  return {
    // Float4 owns the numbers.
    tensor: values.view(0, values.shape),
    float4: new Float4({ scale, factor, values }),
    saved: made.slice(0, -3),
  };
}

/** The gradients of such an op, by the op `name`; the last of the inputs is the global scale, a constant. */
export function floatGradients<P extends RowFloats>(
  name: string,
  { g, inputs, output, saved, params: { format }, needs }: BackwardContext<P>,
  own: Readonly<Record<string, number>>,
): readonly (Tensor | undefined)[] {
  const global = format === "nvfp4" ? saved.at(-1) : undefined;
  const { scale } = (output.float4 as Float4).made;
  const given = inputs.slice(0, -1).map((x) => x?.tensor);
  const gradients = invoke(name, [...given, global, ...saved.slice(0, -1), scale, g], {
    format: FLOAT4_FORMATS[format],
    ...own,
  });
  return [...wanted(gradients, needs), undefined];
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
