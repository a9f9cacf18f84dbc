/** What export needs to know of a finished block. */

import type { QuantizedWeight } from "../quant/quantizer.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Codes, scales and zeros by linear. */
export type QuantizedByKey = Readonly<Record<string, QuantizedWeight>>;

/** Numbers that belong to a block's activations, by activation. */
export interface TokenNumbers {
  /** Learned clipping logits. */
  readonly tokenClips: Readonly<Record<string, number>>;
  /** Global scales of NVFP4, fixed by calibration. */
  readonly inputGlobals: Readonly<Record<string, number>>;
}

export interface FinishedWeights {
  readonly quantized: QuantizedByKey;
  /** Folded gains and biases, and linears that are not quantized, f32, by key. */
  readonly others: Readonly<Record<string, Tensor>>;
}
