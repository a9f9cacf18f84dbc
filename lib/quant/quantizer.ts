/**
 * What a quantizer is: what a format of numbers does with weights and with activations, in training and
 * at the end. A quantizer is one file that exports one `Quantizer`, plus a line in quantizers.ts.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ActivationHook, TokenState } from "./activations.ts";
import type { QuantScheme } from "./scheme.ts";

/**
 * Codes u8 [O, I] with scale f32 [O, G]. Whole numbers have zero f32 [O, G] and a scale of float16 values:
 * w = (code - zero) scale. 4-bit floats have none, NVFP4 the matrix's global scale f32 [1]:
 * w = value(code) (scale / global).
 */
export interface QuantizedWeight {
  readonly codes: Tensor;
  readonly scale: Tensor;
  readonly zero?: Tensor | undefined;
  readonly global?: Tensor | undefined;
}

/** What is learned for a weight: clipping logits, and rounding offsets of its shape. */
export interface Learned<T> {
  readonly clip: T | undefined;
  readonly offset?: T | undefined;
}

/** A weight [O, I] with what was learned for it. */
export interface LearnedWeight extends Learned<Tensor> {
  readonly w: Tensor;
}

export interface Quantizer {
  /** Shape of the clipping logits of a weight whose groups have the grid [O, G]. */
  clipShape(grid: readonly [number, number]): number[];
  /** What weights that servers fuse into one share as long as they do not change, if anything. */
  shared(fused: readonly Tensor[]): Tensor | undefined;
  /**
   * Fake quantization of weights that servers fuse into one, lazily, with gradients to them and to what
   * is learned. What they share is found anew where it is not given.
   */
  fakeWeights(
    graph: Graph,
    fused: readonly Var[],
    scheme: QuantScheme,
    shared?: Tensor | undefined,
  ): (w: Var, learned: Learned<Var>) => Var;
  /**
   * Final codes of such weights, by key, in the order given. The caller owns the tensors.
   *
   * Throws: AQ_NUMERIC where a scale leaves the range of its type.
   */
  codes(
    weights: ReadonlyMap<string, LearnedWeight>,
    scheme: QuantScheme,
  ): Map<string, QuantizedWeight>;
  /** The weight that codes stand for, f32 [O, I]. */
  values(weight: QuantizedWeight, groupSize: number): Tensor;
  /** The quantizers of a block's activations. */
  tokens(scheme: QuantScheme, state: TokenState): ActivationHook;
}
