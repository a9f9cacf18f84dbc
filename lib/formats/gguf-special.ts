/** Special tokens of a tokenizer, and what it puts around a text. */

import { isJsonObject, type JsonObject } from "../util/json.ts";

/** Number of the token called "bos", "eos", "unk" or "pad", or nothing where there is none. */
export function specialId(
  name: string,
  settings: JsonObject,
  config: JsonObject,
  ids: ReadonlyMap<string, number>,
): number | undefined {
  const token = settings[`${name}_token`];
  const text = isJsonObject(token) ? token["content"] : token;
  if (typeof text === "string" && ids.has(text)) return ids.get(text);
  const said = config[`${name}_token_id`];
  const id = Array.isArray(said) ? (said[0] as unknown) : said;
  return typeof id === "number" && Number.isInteger(id) && id >= 0 && id < ids.size
    ? id
    : undefined;
}

/** Does the tokenizer begin a text with its first token, end it with its last one, put a space first? */
export function endTokens(
  json: JsonObject,
  settings: JsonObject,
  found: { readonly bos?: number; readonly eos?: number },
  ids: ReadonlyMap<string, number>,
): { readonly first: boolean; readonly last: boolean; readonly space: boolean } {
  const template = templateOf(json["post_processor"]);
  const isToken = (item: unknown, id: number | undefined): boolean => {
    const special = isJsonObject(item) ? item["SpecialToken"] : undefined;
    const text = isJsonObject(special) ? special["id"] : undefined;
    return id !== undefined && typeof text === "string" && ids.get(text) === id;
  };
  const said = (key: string, fallback: boolean): boolean =>
    typeof settings[key] === "boolean" ? settings[key] : fallback;
  return {
    first: said("add_bos_token", isToken(template[0], found.bos)),
    last: said("add_eos_token", isToken(template.at(-1), found.eos)),
    space: putsSpace(json["normalizer"]) || putsSpace(json["pre_tokenizer"]),
  };
}

/** What a single text becomes, piece by piece. */
function templateOf(processor: unknown): readonly unknown[] {
  if (!isJsonObject(processor)) return [];
  const { type, single, processors } = processor;
  if (type === "TemplateProcessing") return Array.isArray(single) ? single : [];
  if (!Array.isArray(processors)) return [];
  return processors.map(templateOf).find((found) => found.length > 0) ?? [];
}

function putsSpace(step: unknown): boolean {
  if (!isJsonObject(step)) return false;
  switch (step["type"]) {
    case "Prepend":
      return step["prepend"] === "▁";
    case "Metaspace":
      return step["prepend_scheme"] === undefined
        ? step["add_prefix_space"] !== false
        : step["prepend_scheme"] !== "never";
    case "ByteLevel":
      return step["add_prefix_space"] === true;
    case "Sequence": {
      const steps = step["normalizers"] ?? step["pretokenizers"];
      return Array.isArray(steps) && steps.some(putsSpace);
    }
    default:
      return false;
  }
}
