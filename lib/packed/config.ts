/**
 * What a checkpoint says about its quantization: `quantization_config` of config.json, or the file of its
 * own that older exporters write beside it. Checked before anything is read by it.
 */

import * as path from "node:path";
import type { Float4Name } from "../autograd/float4.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { hasFile, sourceFile } from "../checkpoint/source-files.ts";
import { isJsonObject, type JsonObject, kindOf, readJsonFile } from "../util/json.ts";
import {
  FLOAT_FORMATS,
  type FloatConfig,
  flatModelopt,
  readCompressedFloats,
  readModelopt,
  readOwnFloats,
} from "./config-floats.ts";
import { Keys, unread } from "./keys.ts";
import { readTransforms } from "./transforms.ts";

/** Files of exporters that left config.json as it was, and how a tensor of theirs ends. */
const OWN_FILES = [
  { method: "gptq", file: "quantize_config.json", end: ".qweight" },
  { method: "awq", file: "quant_config.json", end: ".qweight" },
  { method: "modelopt", file: "hf_quant_config.json", end: ".weight_scale_2" },
] as const;

export interface GptqConfig {
  readonly method: "gptq";
  /** v1 stores zeros less one. */
  readonly version: 1 | 2;
  readonly bits: number;
  /** 0: one group. */
  readonly group: number;
  readonly symmetric: boolean;
  /** Some linears have settings of their own. */
  readonly mixed: boolean;
}

export interface AwqConfig {
  readonly method: "awq";
  /** 0: one group. */
  readonly group: number;
}

/** The weights of one config group of compressed-tensors. */
export interface WeightScheme {
  readonly bits: number;
  readonly symmetric: boolean;
  /** 0: one group. */
  readonly group: number;
  /** One scale for the whole matrix. */
  readonly isTensor: boolean;
}

/** How a server quantizes what linears read, per token. */
export interface TokenScheme {
  /** 4-bit floats in groups, instead of whole numbers with one scale for each token. */
  readonly numbers?: Float4Name;
  readonly bits: number;
  readonly symmetric: boolean;
}

export interface CompressedConfig {
  readonly method: "compressed-tensors";
  readonly format: "pack-quantized" | "int-quantized";
  readonly weights: readonly WeightScheme[];
  readonly tokens: TokenScheme | null;
  /** Scheme of the matrix that is applied before a linear, by the linear's name. */
  readonly transforms: ReadonlyMap<string, string>;
  /** Release that wrote it, where it says so. */
  readonly version: string | null;
}

/** Ours: docs/formats.md. */
export interface OwnConfig {
  readonly method: "aq";
  readonly bits: number;
  /** 0: one group. */
  readonly group: number;
  readonly symmetric: boolean;
}

export type PackedConfig = GptqConfig | AwqConfig | CompressedConfig | OwnConfig | FloatConfig;

const OWN_FORMAT = 1;

/** Where the settings stand, and their JSON; null for a checkpoint without any. */
export function findQuantization(
  checkpoint: Checkpoint,
): { readonly json: JsonObject; readonly where: string } | null {
  const inConfig = checkpoint.quantization;
  if (inConfig) {
    const where = `${path.join(checkpoint.dir, "config.json")}: quantization_config`;
    return { json: inConfig, where };
  }
  const names = [...checkpoint.tensors.keys()];
  for (const { method, file, end } of OWN_FILES) {
    // Such a file may have been left behind by something else: the tensors decide.
    if (!names.some((name) => name.endsWith(end)) || !hasFile(checkpoint.dir, file)) continue;
    const json = readJsonFile(sourceFile(checkpoint.dir, file));
    const flat = method === "modelopt" ? flatModelopt(json) : oldKeys(method, json);
    return { json: flat, where: path.join(checkpoint.dir, file) };
  }
  return null;
}

function oldKeys(method: string, json: JsonObject): JsonObject {
  const { w_bit: bits, q_group_size: group } = json;
  return {
    quant_method: method,
    ...json,
    ...(bits === undefined ? {} : { bits }),
    ...(group === undefined ? {} : { group_size: group }),
  };
}

/**
 * Checks the settings.
 *
 * Throws: AQ_FORMAT for a value that none may have, AQ_MODEL for a method that is not read here.
 */
export function readPackedConfig(json: JsonObject, where: string): PackedConfig {
  const keys = new Keys(json, where);
  const method = json["quant_method"];
  if (method === "gptq") return readGptq(keys);
  if (method === "awq") return readAwq(keys);
  if (method === "compressed-tensors") return readCompressed(keys);
  if (method === "aq") return readOwn(keys);
  if (method === "modelopt" || method === "modelopt_fp4") return readModelopt(keys);
  throw unread(where, `"quant_method" ${kindOf(method)}`);
}

function readOwn(keys: Keys): OwnConfig | FloatConfig {
  const format = keys.int("format", 1, 2 ** 31 - 1);
  if (format !== OWN_FORMAT) throw unread(keys.where, `format ${format}`);
  if (keys.word("numbers") !== null) return readOwnFloats(keys);
  return {
    method: "aq",
    bits: keys.int("bits", 2, 8),
    group: keys.int("group_size", 0, 2 ** 31 - 1),
    symmetric: keys.flag("symmetric", false),
  };
}

function readGptq(keys: Keys): GptqConfig {
  // Newer writers spell it `format`; both missing means the first version.
  const version = keys.word("checkpoint_format") ?? keys.word("format") ?? "gptq";
  if (version !== "gptq" && version !== "gptq_v2")
    throw unread(keys.where, `format ${kindOf(version)}`);
  const pack = keys.word("pack_dtype") ?? "int32";
  if (pack !== "int32") throw unread(keys.where, `pack_dtype ${kindOf(pack)}`);
  const bits = keys.int("bits", 2, 8);
  if (![2, 3, 4, 8].includes(bits)) throw unread(keys.where, `${bits} bits`);
  const dynamic = keys.object("dynamic") ?? {};
  return {
    method: "gptq",
    version: version === "gptq_v2" ? 2 : 1,
    bits,
    group: keys.group("group_size"),
    symmetric: keys.flag("sym", true),
    mixed: Object.keys(dynamic).some((rule) => !rule.startsWith("-:")),
  };
}

function readAwq(keys: Keys): AwqConfig {
  const version = keys.word("version") ?? "gemm";
  if (version.toLowerCase() !== "gemm") throw unread(keys.where, `version ${kindOf(version)}`);
  const bits = keys.int("bits", 1, 8);
  if (bits !== 4) throw unread(keys.where, `${bits} bits`);
  if (!keys.flag("zero_point", true)) throw unread(keys.where, "zero_point false");
  return { method: "awq", group: keys.group("group_size") };
}

function readCompressed(keys: Keys): CompressedConfig | FloatConfig {
  const format = keys.word("format");
  const cache = keys.object("kv_cache_scheme");
  if (cache && Object.keys(cache).length > 0) throw unread(keys.where, "kv_cache_scheme");
  const sparsity = keys.object("sparsity_config");
  if (sparsity && (sparsity["format"] ?? "dense") !== "dense") {
    throw unread(keys.where, "sparsity_config");
  }
  if (format !== null && FLOAT_FORMATS.includes(format)) return readCompressedFloats(keys, format);
  if (format !== "pack-quantized" && format !== "int-quantized") {
    throw unread(keys.where, `format ${kindOf(format ?? undefined)}`);
  }
  const groups = Object.entries(keys.object("config_groups") ?? {});
  if (groups.length === 0) throw keys.wrong("config_groups", "an object with a group");
  const weights: WeightScheme[] = [];
  const tokens = new Map<string, TokenScheme | null>();
  for (const [name, value] of groups) {
    const at = `config_groups.${name.slice(0, 60)}`;
    if (!isJsonObject(value)) throw keys.wrong(at, "an object", value);
    const group = new Keys(value, `${keys.where}.${at}`);
    weights.push(readWeights(group));
    const scheme = readTokens(group);
    tokens.set(JSON.stringify(scheme), scheme);
  }
  if (tokens.size > 1) throw unread(keys.where, "groups with unlike input_activations");
  const [scheme = null] = tokens.values();
  return {
    method: "compressed-tensors",
    format,
    weights,
    tokens: scheme,
    transforms: readTransforms(keys.object("transform_config"), keys.where),
    version: keys.word("version"),
  };
}

function readWeights(group: Keys): WeightScheme {
  const json = group.object("weights");
  if (!json) throw group.wrong("weights", "an object", json);
  const keys = new Keys(json, `${group.where}.weights`);
  keys.expect("type", ["int"], "int");
  const strategy = keys.expect("strategy", ["group", "channel", "tensor"]);
  if (keys.flag("dynamic", false)) throw unread(keys.where, "dynamic weights");
  const bits = keys.int("num_bits", 2, 8);
  const size = json["group_size"] ?? null;
  return {
    bits,
    symmetric: keys.flag("symmetric", true),
    group:
      strategy === "group"
        ? keys.group("group_size")
        : size === null
          ? 0
          : keys.group("group_size"),
    isTensor: strategy === "tensor",
  };
}

function readTokens(group: Keys): TokenScheme | null {
  if (group.object("output_activations")) throw unread(group.where, "output_activations");
  const json = group.object("input_activations");
  if (!json) return null;
  const keys = new Keys(json, `${group.where}.input_activations`);
  keys.expect("type", ["int"], "int");
  keys.expect("strategy", ["token"]);
  if (!keys.flag("dynamic", false)) throw unread(keys.where, "static activation scales");
  return { bits: keys.int("num_bits", 2, 8), symmetric: keys.flag("symmetric", true) };
}
