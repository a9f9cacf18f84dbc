/** The families that are known, and the choice among them. */

import { AqError } from "../errors.ts";
import type { Model, ModelFamily } from "./family.ts";
import { llama } from "./llama.ts";
import { opt } from "./opt.ts";

export const families: readonly ModelFamily[] = [llama, opt];

/** The model of a config.json. Throws: AQ_MODEL for an unknown model_type, with the known ones. */
export function openModel(config: unknown, has: (name: string) => boolean): Model {
  const type = (config as { model_type?: unknown } | null)?.model_type;
  const family = families.find(
    ({ modelTypes }) => typeof type === "string" && modelTypes.includes(type),
  );
  if (!family) {
    const known = families.flatMap(({ modelTypes }) => modelTypes).join(", ");
    throw new AqError(
      "AQ_MODEL",
      `model_type ${JSON.stringify(type)} in config.json is not supported; supported: ${known}`,
    );
  }
  return family.open(config, has);
}
