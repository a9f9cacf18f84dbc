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
  /** Keys of each block's linears that are not quantized; empty where all blocks quantize all. */
  readonly kept: readonly (readonly string[])[];
}

/** Is the linear not quantized in any block? */
export function isKeptEverywhere({ model, kept }: Setting, key: string): boolean {
  return kept.length === model.shape.blocks && kept.every((keys) => keys.includes(key));
}

/** Names of the linears that are not quantized, without ".weight", block after block. */
export function keptNames({ model, kept }: Setting): string[] {
  return kept.flatMap((keys, block) =>
    model
      .blockTensors(block)
      .filter(({ key }) => keys.includes(key))
      .map(({ name }) => name.replace(/\.weight$/, "")),
  );
}

/**
 * Linears that servers run as one, of which some are kept and some are not, by their keys; or nothing.
 */
export function tornLinears({ model, kept }: Setting): readonly string[] | undefined {
  return model.residual.reads
    .map(({ consumers }) => consumers)
    .find((consumers) =>
      kept.some((keys) => {
        const among = consumers.filter((key) => keys.includes(key)).length;
        return among > 0 && among < consumers.length;
      }),
    );
}

/** Is every zero point 2^(b-1)? The published symmetric grid lies one lower. */
export function isMidpoint({ symmetric, grids }: QuantScheme): boolean {
  return symmetric && grids !== "published";
}
