/** A model that can be run. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { Model } from "../models/family.ts";
import type { GridStyle } from "../quant/scheme.ts";
import type { ActivationHook } from "../quant/tokens.ts";

/** A model to measure: a checkpoint, and the activation quantizers that belong to it, if any. */
export interface EvalModel {
  readonly checkpoint: Checkpoint;
  readonly model: Model;
  /** Where it runs; the CPU where absent. */
  readonly device?: string | undefined;
  readonly activations: null | {
    readonly bits: number;
    /** Clipping logits by activation, for each block; absent blocks are not clipped. */
    readonly clips: readonly Readonly<Record<string, number>>[];
    readonly style?: GridStyle;
    /** What is done instead, where somebody else's rules apply. */
    readonly hook?: ActivationHook | undefined;
  };
}
