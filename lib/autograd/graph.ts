/**
 * What model code is written against: values, operations with gradients, and a graph that is either
 * eager (nothing is recorded) or a tape.
 */

import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Float4 } from "./float4.ts";

/** The quantization grid of a matrix: scale and zero [M, G] for groups of `group` (0 = whole rows). */
export interface Grid {
  readonly scale: Tensor;
  readonly zero: Tensor;
  /** Learned rounding: added to x / scale before it is rounded. Not the grid's own, as x is not. */
  readonly offset?: Tensor | undefined;
  /** Factors of the matrix's rows [M] and columns [K]: what is quantized is their product with it. */
  readonly rows?: Tensor | undefined;
  readonly columns?: Tensor | undefined;
  readonly bits: number;
  readonly group: number;
  /**
   * The quantized matrix, where it was made for products: i8 whole numbers, which stand for their
   * number times the scale of their row, or values in the type of the products. It is the value's own
   * tensor where the matrix itself never was.
   */
  readonly quantized?: Tensor | undefined;
}

/** What packed codes (int4_pack, int8_pack) of a matrix [O, I] stand for; the value's tensor holds them. */
export interface PackedCodes {
  /** Which pack. */
  readonly bits: 4 | 8;
  /** In the packed order, f16 and u8. */
  readonly scale: Tensor;
  readonly zero: Tensor;
  /** O */
  readonly outputs: number;
  /** Columns that share a scale; 0 = the whole row. */
  readonly group: number;
}

/** What packed 4-bit floats (fp4_pack) of a matrix [O, I] stand for. */
export interface PackedFloats {
  readonly kind: "fp4";
  /** As the ops number them: 0 NVFP4, 1 MXFP4. */
  readonly format: 0 | 1;
  /** Bytes, in the packed order. */
  readonly scale: Tensor;
  /** 1 / g [1] of NVFP4. */
  readonly factor?: Tensor | undefined;
  /** O */
  readonly outputs: number;
}

export type Packed = PackedCodes | PackedFloats;

/**
 * A tensor, or, with a grid, its fake-quantized form. The latter is not computed: the op that uses
 * the value applies the grid while it loads the tensor, so the quantized copy never exists.
 */
export interface Value {
  readonly tensor: Tensor;
  readonly grid?: Grid | undefined;
  /** The same for 4-bit floats. */
  readonly float4?: Float4 | undefined;
  /** The tensor is codes: only a linear's weight can be such, and has no gradient. */
  readonly packed?: Packed | undefined;
  /**
   * The tensor in the type of a GPU's products, kept by the first product that wants it; beside a
   * quantized matrix of whole numbers, its values.
   */
  rounded?: Tensor | undefined;
}

/** What a forward pass returns; `saved` is what its backward needs besides inputs and output. */
export interface Forward extends Value {
  readonly saved?: readonly Tensor[];
}

/** What a backward pass is given. */
export interface BackwardContext<P> {
  /** Gradient of the loss with respect to the output (to its quantized form, if it has a grid). */
  readonly g: Tensor;
  /** Nothing looks at g afterwards, unless it is returned: a kernel may leave anything in it. */
  readonly isSpent: boolean;
  readonly inputs: readonly (Value | undefined)[];
  readonly output: Value;
  readonly saved: readonly Tensor[];
  readonly params: P;
  /** Which inputs want a gradient. */
  readonly needs: readonly boolean[];
  /** Gradients that inputs already have and that may be added to in place; return the same tensor then. */
  readonly existing: readonly (Tensor | undefined)[];
}

/** An operation and its gradient, side by side. */
export interface OpPair<P> {
  readonly name: string;
  forward(inputs: readonly (Value | undefined)[], params: P): Forward;
  /**
   * One gradient per input, undefined where it is not needed (one that came anyway is disposed).
   * Each is a new tensor, or `g` itself, or the one in `existing` after adding to it.
   */
  backward(context: BackwardContext<P>): readonly (Tensor | undefined)[];
}

/** A value in a graph. */
export interface Var {
  readonly value: Value;
  readonly needsGrad: boolean;
}

/** Where operations are applied. Model code takes a Graph and is written once. */
export interface Graph {
  /** Gradients will be asked for: what can be left to a later op should be. */
  readonly records?: boolean;
  /** A value without a gradient. */
  constant(tensor: Tensor): Var;
  apply<P>(op: OpPair<P>, inputs: readonly (Var | undefined)[], params: P): Var;
}

/** The tensor of an input that the op cannot do without. */
export function tensorOf(inputs: readonly (Value | undefined)[], i: number): Tensor {
  const value = inputs[i];
  if (!value) throw new TypeError(`input ${i} is missing`);
  return value.tensor;
}

/** The type of a value's gradient: what was quantized where it was made stands for f32. */
export function gradientType({ tensor, float4 }: Value): DType {
  const isMade = tensor.dtype === "i8" || (float4 && !float4.source);
  return isMade ? "f32" : tensor.dtype;
}

/** Frees all that a value holds. */
export function disposeValue({ tensor, grid, float4, rounded }: Value): void {
  float4?.dispose();
  for (const held of [tensor, grid?.scale, grid?.zero, grid?.quantized, rounded]) held?.dispose();
}

/** A value's own tensor, with its grid applied if it has one. */
export function materialize(value: Value): Tensor {
  const { tensor, grid, float4 } = value;
  if (float4) return materializeFloats(float4);
  if (!grid) return tensor;
  if (grid.rows || grid.columns) {
    const { rows, columns, ...rest } = grid;
    const scaled = invokeOne("scale_weight", [tensor, rows, columns]);
    const quantized = materialize({ tensor: scaled, grid: rest });
    scaled.dispose();
    return quantized;
  }
  return invokeOne("fake_quant", [tensor, grid.scale, grid.zero, grid.offset], {
    bits: grid.bits,
    group: grid.group,
  });
}

function materializeFloats(float4: Float4): Tensor {
  const { values, factor } = float4.made;
  const wide = invokeOne("cast", [values], { dtype: dtypeCode(factor.dtype) });
  const flat = wide.reshape([1, wide.size]);
  const scaled = invokeOne("scale_weight", [flat, factor, undefined]);
  const result = scaled.reshape(values.shape);
  for (const held of [wide, flat, scaled]) held.dispose();
  return result;
}

/** Computes at once and keeps nothing: evaluation, targets, folding. */
export class Eager implements Graph {
  constant(tensor: Tensor): Var {
    return { value: { tensor }, needsGrad: false };
  }

  apply<P>(op: OpPair<P>, inputs: readonly (Var | undefined)[], params: P): Var {
    const result = op.forward(
      inputs.map((input) => input?.value),
      params,
    );
    for (const tensor of result.saved ?? []) tensor.dispose();
    const { tensor, grid, float4 } = result;
    return { value: { tensor, grid, float4 }, needsGrad: false };
  }
}
