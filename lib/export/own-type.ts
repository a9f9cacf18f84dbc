/**
 * The model_type of our own. A block that stock loaders would build wrongly (a matrix that is applied
 * at run time, a bias that the architecture does not have) is written under "aq_" and its family's
 * name and without `architectures`, so that they refuse the folder instead of running something else.
 */

import { AqError } from "../errors.ts";
import { families, isOwnType, OWN_PREFIX } from "../models/registry.ts";
import type { JsonObject } from "../util/json.ts";
import { AQ_CONFIG_NAME, type AqConfig } from "./aq-config.ts";

/** The config.json of a folder that only aq-native can run. */
export function ownConfig(config: JsonObject): JsonObject {
  const { architectures: _, auto_map: __, model_type: type, ...rest } = config;
  return { ...rest, model_type: isOwnType(type) ? type : `${OWN_PREFIX}${String(type)}` };
}

/** The config.json of a folder that stock loaders build: `ownConfig` undone. */
export function stockConfig(config: JsonObject): JsonObject {
  const { model_type: type } = config;
  if (!isOwnType(type)) return config;
  const stock = type.slice(OWN_PREFIX.length);
  const name = families.find(({ modelTypes }) => modelTypes.includes(stock))?.architecture;
  return { ...(name ? { architectures: [name] } : {}), ...config, model_type: stock };
}

/**
 * A folder of our own type says in aq_config.json what its block does.
 *
 * Throws: AQ_FORMAT when that file is missing, or names nothing that stock loaders could not do.
 */
export function checkOwnType(dir: string, config: JsonObject, aq: AqConfig | null): void {
  if (!isOwnType(config["model_type"])) return;
  if (aq?.hadamardDown || (aq?.added ?? []).length > 0) return;
  if (aq) {
    throw new AqError(
      "AQ_FORMAT",
      `${dir} has model_type ${JSON.stringify(config["model_type"])}, but its ${AQ_CONFIG_NAME} names neither a Hadamard transform nor a matrix that is applied at run time; copy the whole output folder again`,
    );
  }
  throw new AqError(
    "AQ_FORMAT",
    `${dir} has model_type ${JSON.stringify(config["model_type"])} but no ${AQ_CONFIG_NAME}, which says what is done at run time; copy the whole output folder`,
  );
}
