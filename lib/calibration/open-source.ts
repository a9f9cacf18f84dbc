/** Opens the model that a run starts from. */

import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { AqError } from "../errors.ts";
import { AQ_CONFIG_NAME, readAqConfig } from "../export/aq-config.ts";
import { checkOwnType } from "../export/own-type.ts";
import type { Model } from "../models/family.ts";
import { randomHadamard } from "../models/hadamard-down.ts";
import { checkWeights } from "../models/load.ts";
import { openModel } from "../models/registry.ts";
import { quantizationName } from "../packed/open.ts";
import { schemeName } from "../quant/scheme.ts";
import type { RunSettings } from "./settings.ts";

/** The caller closes the checkpoint. Throws: AQ_MODEL if it already is quantized. */
export function openSource(dir: string): { checkpoint: Checkpoint; model: Model } {
  const checkpoint = openCheckpoint(dir);
  try {
    const own = readAqConfig(dir);
    checkOwnType(dir, checkpoint.config, own);
    const packed = quantizationName(checkpoint);
    if (packed !== null || own) {
      const what = own ? `by aq-native, ${schemeName(own.scheme)}: ${AQ_CONFIG_NAME}` : packed;
      throw new AqError(
        "AQ_MODEL",
        `${dir} is already quantized (${what}); quantizing what was rounded before loses more than either does, so start from the full-precision checkpoint that it was made of`,
      );
    }
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
    // A weight that is missing or misshapen shows now, and not when its block comes.
    checkWeights(checkpoint, model);
    return { checkpoint, model };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

/** The model with what the settings add to what its blocks compute. */
export function modelFor(
  checkpoint: Checkpoint,
  model: Model,
  { hadamardDown, seed }: Pick<RunSettings, "hadamardDown" | "seed">,
): Model {
  if (!hadamardDown) return model;
  const transform = randomHadamard(model.shape.mlp, seed);
  const has = (name: string): boolean => checkpoint.has(name);
  return openModel(checkpoint.config, has, { hadamardDown: transform });
}
