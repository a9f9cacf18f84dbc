/**
 * What descriptions say of 4-bit floats: compressed-tensors' `nvfp4-pack-quantized` and
 * `mxfp4-pack-quantized`, ModelOpt's NVFP4, and our own.
 */

import type { Float4Name } from "../autograd/float4.ts";
import { FLOAT4_GROUPS } from "../quant/scheme.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";
import { Keys, unread } from "./keys.ts";

export interface FloatConfig {
  readonly method: "floats";
  /** Whose names the tensors have. */
  readonly layout: "compressed-tensors" | "modelopt" | "aq";
  readonly numbers: Float4Name;
  /** What linears read is quantized as well. */
  readonly tokens: boolean;
}

/** Formats of compressed-tensors, with how their scales are spread. */
const COMPRESSED: Readonly<Record<string, { numbers: Float4Name; strategy: string }>> = {
  "nvfp4-pack-quantized": { numbers: "nvfp4", strategy: "tensor_group" },
  "mxfp4-pack-quantized": { numbers: "mxfp4", strategy: "group" },
};

/** Whether activations are quantized, by what ModelOpt calls it. */
const MODELOPT: Readonly<Record<string, boolean>> = { NVFP4: true, W4A16_NVFP4: false };

export const FLOAT_FORMATS: readonly string[] = Object.keys(COMPRESSED);

/** Throws: AQ_FORMAT, AQ_MODEL. */
export function readCompressedFloats(keys: Keys, format: string): FloatConfig {
  const { numbers, strategy } = COMPRESSED[format] as (typeof COMPRESSED)[string];
  if (Object.keys(keys.object("transform_config") ?? {}).length > 0) {
    throw unread(keys.where, "transform_config with 4-bit floats");
  }
  const groups = Object.entries(keys.object("config_groups") ?? {});
  if (groups.length === 0) throw keys.wrong("config_groups", "an object with a group");
  const tokens = groups.map(([name, value]) => {
    const at = `config_groups.${name.slice(0, 60)}`;
    if (!isJsonObject(value)) throw keys.wrong(at, "an object", value);
    const group = new Keys(value, `${keys.where}.${at}`);
    if (group.object("output_activations")) throw unread(group.where, "output_activations");
    const weights = group.object("weights");
    if (!weights) throw group.wrong("weights", "an object", weights);
    checkArgs(new Keys(weights, `${group.where}.weights`), numbers, strategy, [false]);
    const inputs = group.object("input_activations");
    if (!inputs) return false;
    const dynamic = numbers === "nvfp4" ? ["local"] : [true];
    checkArgs(new Keys(inputs, `${group.where}.input_activations`), numbers, strategy, dynamic);
    return true;
  });
  if (new Set(tokens).size > 1) throw unread(keys.where, "groups with unlike input_activations");
  return { method: "floats", layout: "compressed-tensors", numbers, tokens: tokens[0] === true };
}

/** Floats of four bits, symmetric, in groups of the format's size. */
function checkArgs(
  keys: Keys,
  numbers: Float4Name,
  strategy: string,
  dynamic: readonly unknown[],
): void {
  keys.expect("type", ["float"]);
  keys.expect("strategy", [strategy]);
  const bits = keys.int("num_bits", 1, 16);
  if (bits !== 4) throw unread(keys.where, `floats of ${bits} bits`);
  const group = keys.int("group_size", -1, 2 ** 31 - 1);
  if (group !== FLOAT4_GROUPS[numbers]) throw unread(keys.where, `groups of ${group}`);
  if (!keys.flag("symmetric", true)) throw unread(keys.where, "asymmetric floats");
  const found = keys.value("dynamic") ?? false;
  if (!dynamic.includes(found))
    throw unread(keys.where, `"dynamic" ${JSON.stringify(found).slice(0, 40)}`);
}

/** What hf_quant_config.json has, as config.json would have it. */
export function flatModelopt(json: JsonObject): JsonObject {
  const inner = json["quantization"];
  if (!isJsonObject(inner)) return json;
  const { exclude_modules: ignore, kv_cache_quant_algo: cache, ...rest } = inner;
  return { quant_method: "modelopt", ...rest, ignore, kv_cache_scheme: cache };
}

/** Throws: AQ_FORMAT, AQ_MODEL. */
export function readModelopt(keys: Keys): FloatConfig {
  const algorithm = keys.word("quant_algo")?.toUpperCase();
  const tokens = algorithm === undefined ? undefined : MODELOPT[algorithm];
  if (tokens === undefined) {
    throw unread(keys.where, `"quant_algo" ${kindOf(keys.value("quant_algo"))}`);
  }
  const cache = keys.value("kv_cache_scheme") ?? null;
  if (cache !== null && !(isJsonObject(cache) && Object.keys(cache).length === 0)) {
    throw unread(keys.where, "a quantized KV cache");
  }
  if ((keys.value("group_size") ?? null) !== null) {
    const group = keys.int("group_size", 1, 2 ** 31 - 1);
    if (group !== FLOAT4_GROUPS.nvfp4) throw unread(keys.where, `groups of ${group}`);
  }
  return { method: "floats", layout: "modelopt", numbers: "nvfp4", tokens };
}

/** Ours; aq_config.json says what is done with activations. Throws: AQ_FORMAT, AQ_MODEL. */
export function readOwnFloats(keys: Keys): FloatConfig {
  const numbers = keys.expect("numbers", Object.keys(FLOAT4_GROUPS)) as Float4Name;
  const [bits, group] = [keys.int("bits", 2, 8), keys.int("group_size", 0, 2 ** 31 - 1)];
  if (bits !== 4) throw unread(keys.where, `floats of ${bits} bits`);
  if (group !== FLOAT4_GROUPS[numbers]) throw unread(keys.where, `groups of ${group}`);
  return { method: "floats", layout: "aq", numbers, tokens: false };
}
