/** What export needs to know of a finished block. */

import type { QuantizedWeight } from "../quant/weights.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Codes, scales and zeros by linear. */
export type QuantizedByKey = Readonly<Record<string, QuantizedWeight>>;

export interface FinishedWeights {
  readonly quantized: QuantizedByKey;
  /** Folded gains and biases, f32, by key. */
  readonly others: Readonly<Record<string, Tensor>>;
}
