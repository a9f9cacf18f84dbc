/** Opens a folder as a model that can be run: weights, tokenizer, and what belongs to it. */

import { openCheckpoint } from "../checkpoint/folder.ts";
import { hasFile, sourceFile } from "../checkpoint/source-files.ts";
import { loadTokenizer, type TextTokenizer } from "../data/tokenizer.ts";
import type { EvalModel } from "../eval/eval-model.ts";
import { folderActivations } from "../eval/folder-activations.ts";
import { extrasOf, readAqConfig } from "../export/aq-config.ts";
import { checkOwnType } from "../export/own-type.ts";
import { checkWeights } from "../models/load.ts";
import { openFolderModel } from "../packed/model.ts";
import { packedWeights } from "../packed/open.ts";
import { isJsonObject, readJsonFile } from "../util/json.ts";

/** A folder that was opened; `close` ends reading from it. */
export interface LanguageModel extends EvalModel {
  readonly device: string;
  readonly tokenizer: TextTokenizer;
  /** Ids after which a text is over. */
  readonly endIds: ReadonlySet<number>;
  close(): void;
}

/** Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL. */
export function openLanguageModel(dir: string, device: string): LanguageModel {
  const checkpoint = openCheckpoint(dir);
  try {
    const config = readAqConfig(dir);
    checkOwnType(dir, checkpoint.config, config);
    const model = openFolderModel(checkpoint, extrasOf(config));
    checkWeights(checkpoint, model);
    return {
      checkpoint,
      model,
      device,
      activations: folderActivations(model, config, packedWeights(checkpoint)),
      tokenizer: loadTokenizer(dir),
      endIds: endIds(dir, checkpoint.config),
      close: () => checkpoint.close(),
    };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

/** eos_token_id of generation_config.json, or else of config.json: a number or several. */
function endIds(dir: string, config: unknown): ReadonlySet<number> {
  const generation = hasFile(dir, "generation_config.json")
    ? readJsonFile(sourceFile(dir, "generation_config.json"))
    : {};
  for (const json of [generation, config]) {
    const value = isJsonObject(json) ? json["eos_token_id"] : undefined;
    const ids = (Array.isArray(value) ? value : [value]).filter(
      (id): id is number => Number.isInteger(id) && id >= 0,
    );
    if (ids.length > 0) return new Set(ids);
  }
  return new Set();
}
