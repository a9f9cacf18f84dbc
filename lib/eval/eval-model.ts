/** A model that can be run. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { AqConfig } from "../export/aq-config.ts";
import type { Model } from "../models/family.ts";
import type { ActivationHook } from "../quant/activations.ts";
import type { QuantScheme } from "../quant/scheme.ts";

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
    /** Global scales by activation, for each block, in NVFP4. */
    readonly globals?: readonly Readonly<Record<string, number>>[] | undefined;
    /** Keys of each block's linears that are not quantized. */
    readonly kept?: readonly (readonly string[])[] | undefined;
    /** May be a whole scheme: its weights then say how tokens are best multiplied. */
    readonly style?: Partial<QuantScheme>;
    /** What is done instead, where somebody else's rules apply. */
    readonly hook?: ActivationHook | undefined;
  };
}

/** The activation quantizers that a folder's aq_config.json describes, at `bits`. */
export function describedActivations(
  config: AqConfig | null,
  bits: number,
  hook?: ActivationHook,
): EvalModel["activations"] {
  if (bits >= 16) return null;
  const { tokenClips = [], inputGlobals, kept, scheme = {} } = config ?? {};
  return { bits, clips: tokenClips, globals: inputGlobals, kept, style: scheme, hook };
}
