/**
 * aq_config.json: what a folder that aq-native wrote needs beyond its weights, so that `eval` on it
 * measures what was calibrated: bits, groups, and the activation quantizers of each block.
 */

import * as path from "node:path";
import type { Float4Name } from "../autograd/float4.ts";
import { hasFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import type { HadamardDown, ModelExtras } from "../models/family.ts";
import {
  checkScheme,
  type GridStyle,
  hasGlobalScales,
  type QuantScheme,
  scaleFloors,
} from "../quant/scheme.ts";
import { isJsonObject, type JsonObject, kindOf, readJsonFile } from "../util/json.ts";
import { hadamardJson, readHadamard } from "./hadamard-json.ts";

export const AQ_CONFIG_NAME = "aq_config.json";
const FORMAT = 1;

export interface AqConfig {
  readonly scheme: QuantScheme;
  readonly recipe: string;
  readonly sites: readonly string[];
  /** The transform that runs before down, if there is one. */
  readonly hadamardDown: HadamardDown | null;
  /** Keys of tensors that each block has beside its architecture's: matrices of the run time, biases. */
  readonly added?: readonly string[];
  /** Clipping logits by activation, for each block. */
  readonly tokenClips: readonly Readonly<Record<string, number>>[];
  /** Global scales by activation, for each block, in NVFP4. */
  readonly inputGlobals?: readonly Readonly<Record<string, number>>[];
  /** Keys of each block's linears that are not quantized, where any is kept. */
  readonly kept?: readonly (readonly string[])[];
}

/** What the folder's model computes beyond its family's architecture. */
export function extrasOf(config: AqConfig | null): ModelExtras {
  return { hadamardDown: config?.hadamardDown ?? undefined, added: config?.added };
}

/** The file's content. */
export function aqConfigJson(config: AqConfig, version: string): JsonObject {
  const { wbits, abits, groupSize, symmetric, grids, heads, numbers } = config.scheme;
  const { added = [], inputGlobals = [], kept = [] } = config;
  return {
    format: FORMAT,
    written_by: `aq-native ${version}`,
    wbits,
    abits,
    group_size: groupSize,
    symmetric,
    ...(numbers ? { numbers } : {}),
    recipe: config.recipe,
    ...(grids ? { grids } : {}),
    sites: config.sites,
    ...(config.hadamardDown && { hadamard_down: hadamardJson(config.hadamardDown) }),
    ...(added.length > 0
      ? { run_time: added.filter(isRunTime), added: added.filter((key) => !isRunTime(key)) }
      : {}),
    ...(kept.some((keys) => keys.length > 0) ? { kept } : {}),
    activations:
      abits < 16
        ? {
            bits: abits,
            ...(numbers ? {} : { scale_floor: scaleFloors(config.scheme).token }),
            ...(heads ? { heads } : {}),
            ...(hasGlobalScales(config.scheme) ? { global_scales: inputGlobals } : {}),
            clip_logits: config.tokenClips,
          }
        : null,
  };
}

/** Is a tensor that a block has beside its architecture's a matrix that is applied at run time? */
export function isRunTime(key: string): boolean {
  return key.endsWith(".residue");
}

/**
 * Reads aq_config.json of a folder, or null if it has none.
 *
 * Throws: AQ_FORMAT when it is there but malformed or of a later format.
 */
export function readAqConfig(dir: string): AqConfig | null {
  if (!hasFile(dir, AQ_CONFIG_NAME)) return null;
  const where = path.join(dir, AQ_CONFIG_NAME);
  const json = readJsonFile(where);
  if (json["format"] !== FORMAT) {
    throw new AqError(
      "AQ_FORMAT",
      `${where} has format ${kindOf(json["format"])}, this version reads ${FORMAT}; use the version that wrote it`,
    );
  }
  const number = (key: string): number => {
    const value = json[key];
    if (typeof value !== "number")
      throw new AqError("AQ_FORMAT", `${where}: expected a number "${key}", got ${kindOf(value)}`);
    return value;
  };
  const scheme = checkScheme({
    wbits: number("wbits"),
    abits: number("abits"),
    groupSize: number("group_size"),
    symmetric: json["symmetric"] === true,
    ...readStyle(json, where),
    ...(json["numbers"] === undefined ? {} : { numbers: json["numbers"] as Float4Name }),
  });
  return {
    scheme,
    recipe: String(json["recipe"]),
    sites: words(json["sites"]),
    hadamardDown: readHadamard(json["hadamard_down"], where),
    added: [...words(json["run_time"]), ...words(json["added"])],
    tokenClips: readNumbers(json["activations"], "clip_logits", where),
    ...(hasGlobalScales(scheme) && scheme.abits < 16
      ? { inputGlobals: readNumbers(json["activations"], "global_scales", where) }
      : {}),
    ...(json["kept"] === undefined ? {} : { kept: readKept(json["kept"], where) }),
  };
}

function words(list: unknown): string[] {
  return Array.isArray(list) ? list.map(String) : [];
}

function readStyle(json: JsonObject, where: string): GridStyle {
  const { grids, activations } = json;
  const heads = isJsonObject(activations) ? activations["heads"] : undefined;
  if (grids !== undefined && grids !== "published") {
    throw new AqError("AQ_FORMAT", `${where}: expected published as "grids", got ${kindOf(grids)}`);
  }
  if (heads !== undefined && heads !== "together") {
    throw new AqError("AQ_FORMAT", `${where}: expected together as "heads", got ${kindOf(heads)}`);
  }
  return { ...(grids ? { grids } : {}), ...(heads ? { heads } : {}) };
}

/** A list of objects of numbers, one for each block. */
function readNumbers(
  activations: unknown,
  key: string,
  where: string,
): Readonly<Record<string, number>>[] {
  if (!isJsonObject(activations)) return [];
  const list = activations[key];
  if (!Array.isArray(list))
    throw new AqError("AQ_FORMAT", `${where}: expected an array "${key}", got ${kindOf(list)}`);
  return list.map((block: unknown) => {
    if (!isJsonObject(block) || !Object.values(block).every((x) => Number.isFinite(x))) {
      throw new AqError(
        "AQ_FORMAT",
        `${where}: "${key}" must hold one object of numbers for each block`,
      );
    }
    return block as Record<string, number>;
  });
}

function readKept(list: unknown, where: string): string[][] {
  if (Array.isArray(list) && list.every(Array.isArray)) return list.map(words);
  throw new AqError("AQ_FORMAT", `${where}: "kept" must hold one list of names for each block`);
}
