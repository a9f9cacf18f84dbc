/** What formats have to know of a run before it begins. */

import type { Model } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import type { JsonObject } from "../util/json.ts";

/** What a run is, as far as a format has to care: known before it begins. */
export interface Setting {
  /** With what the run adds to the architecture. */
  readonly model: Model;
  /** Where its tokenizer and generation files are. */
  readonly folder: string;
  /** The config.json there. */
  readonly config: JsonObject;
  readonly scheme: QuantScheme;
  /** Keys of tensors that each block has beside its architecture's. */
  readonly added: readonly string[];
  /** Clipping of the activations is learned. */
  readonly tokenClips: boolean;
}

/** Is every zero point 2^(b-1)? The published symmetric grid lies one lower. */
export function isMidpoint({ symmetric, grids }: QuantScheme): boolean {
  return symmetric && grids !== "published";
}
