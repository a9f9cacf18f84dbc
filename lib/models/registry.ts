/** The families that are known, and the choice among them. */

import { AqError } from "../errors.ts";
import { kindOf } from "../util/json.ts";
import type { Model, ModelExtras, ModelFamily } from "./family.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import { opt } from "./opt.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";

export const families: readonly ModelFamily[] = [llama, mistral, qwen2, qwen3, opt];

/** In front of a family's model_type where the block is one that only aq-native can run. */
export const OWN_PREFIX = "aq_";

/** Is this the model_type of a folder that only aq-native can run? */
export function isOwnType(type: unknown): type is string {
  return typeof type === "string" && type.startsWith(OWN_PREFIX);
}

/**
 * The model of a config.json, with what it computes beyond its family's architecture.
 *
 * Throws: AQ_MODEL for an unknown model_type, with the known ones.
 */
export function openModel(
  config: unknown,
  has: (name: string) => boolean,
  extras: ModelExtras = {},
): Model {
  const type = (config as { model_type?: unknown } | null)?.model_type;
  const stock = isOwnType(type) ? type.slice(OWN_PREFIX.length) : type;
  const family = families.find(
    ({ modelTypes }) => typeof stock === "string" && modelTypes.includes(stock),
  );
  if (!family) {
    const known = families.flatMap(({ modelTypes }) => modelTypes).join(", ");
    throw new AqError(
      "AQ_MODEL",
      `config.json: model_type ${kindOf(type)} is not supported; supported: ${known}`,
    );
  }
  return family.open(config, has, extras);
}
