/**
 * What the configurations of LLaMA and kin have in common, with every number checked against the others.
 * What is absent has the value that transformers gives it, which differs between families.
 */

import { AqError } from "../errors.ts";
import type { DType } from "../tensor/dtype.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";
import {
  checkSizes,
  MAX_COUNT,
  readBool,
  readInt,
  readNumber,
  readWord,
  wrong,
} from "./config-keys.ts";
import { type RopeSettings, readRope } from "./rope.ts";

export interface RotaryConfig extends RopeSettings {
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlp: number;
  readonly vocab: number;
  readonly maxTokens: number;
  readonly rmsEps: number;
  /** The output head is the embedding. */
  readonly tiedHead: boolean;
  /** What the weights are said to be stored as; null: not said, ask the tensors. */
  readonly dtype: DType | null;
}

const DTYPES: Readonly<Record<string, DType>> = {
  float16: "f16",
  bfloat16: "bf16",
  float32: "f32",
  float64: "f64",
};

/** What a family's keys stand for where a config.json lacks them. */
export interface RotaryDefaults {
  /** max_position_embeddings */
  readonly maxTokens: number;
  /** num_key_value_heads; as many as query heads where a family does not say, or the key is null. */
  readonly kvHeads?: number;
  /** head_dim; hidden_size / num_attention_heads where a family does not say. */
  readonly headDim?: number;
}

/**
 * Reads a config.json, in the spelling of transformers 4 or 5.
 *
 * Throws: AQ_MODEL naming the key, what was expected and what was found; AQ_FORMAT for no object.
 */
export function readRotaryConfig(config: JsonObject, defaults: RotaryDefaults): RotaryConfig {
  readWord(config, "hidden_act", ["silu", "swish"], "silu");
  const count = { min: 1, max: MAX_COUNT };
  const hidden = readInt(config, "hidden_size", count);
  const heads = readInt(config, "num_attention_heads", { min: 1, max: 1 << 16 });
  const kvHeads = readKvHeads(config, heads, defaults.kvHeads);
  const mlp = readInt(config, "intermediate_size", count);
  const vocab = readInt(config, "vocab_size", count);
  const headDim = readHeadDim(config, hidden, heads, defaults.headDim);
  checkSizes(hidden, {
    intermediate_size: mlp,
    vocab_size: vocab,
    "num_attention_heads * head_dim": heads * headDim,
  });
  return {
    hidden,
    layers: readInt(config, "num_hidden_layers", { min: 1, max: 10_000 }),
    heads,
    kvHeads,
    headDim,
    mlp,
    vocab,
    maxTokens: readInt(config, "max_position_embeddings", {
      ...count,
      default: defaults.maxTokens,
    }),
    rmsEps: readNumber(config, "rms_norm_eps", { min: 0, max: 1, default: 1e-6 }),
    ...readRope(config),
    tiedHead: readBool(config, "tie_word_embeddings", false),
    dtype: readStoredDType(config),
  };
}

/** The object that a config.json must hold. Throws: AQ_FORMAT. */
export function configObject(config: unknown): JsonObject {
  if (isJsonObject(config)) return config;
  throw new AqError("AQ_FORMAT", `config.json holds ${kindOf(config)}, expected an object.`);
}

/** Refuses a key that other families have and this one would leave out. Throws: AQ_MODEL. */
export function readNever(config: JsonObject, key: string, family: string): void {
  if (!readBool(config, key, false)) return;
  throw new AqError(
    "AQ_MODEL",
    `config.json: "${key}" is true, but ${family} models have no such biases; check model_type.`,
  );
}

function readKvHeads(config: JsonObject, heads: number, absent: number = heads): number {
  const key = "num_key_value_heads";
  const isAbsent = config[key] === undefined;
  if (isAbsent && heads % absent !== 0) {
    throw new AqError(
      "AQ_MODEL",
      `config.json has no "${key}", and ${absent}, which this family then has, is no divisor of num_attention_heads (${heads}); add the key.`,
    );
  }
  const fallback = isAbsent ? absent : heads;
  const kvHeads = readInt(config, key, { min: 1, max: heads, default: fallback });
  if (heads % kvHeads === 0) return kvHeads;
  throw wrong(key, `a divisor of num_attention_heads (${heads})`, kvHeads);
}

function readHeadDim(
  config: JsonObject,
  hidden: number,
  heads: number,
  absent: number | undefined,
): number {
  const said = config["head_dim"] ?? absent ?? null;
  if (said === null && hidden % heads !== 0) {
    throw wrong("hidden_size", `a multiple of num_attention_heads (${heads})`, hidden);
  }
  const dim = readInt(config, "head_dim", {
    min: 2,
    max: 1 << 16,
    default: absent ?? hidden / heads,
  });
  if (dim % 2 !== 0) {
    throw new AqError(
      "AQ_MODEL",
      `config.json: heads have ${dim} features (${said === null ? "hidden_size / num_attention_heads" : "head_dim"}), expected an even number, since rotary embedding turns pairs.`,
    );
  }
  return dim;
}

function readStoredDType(config: JsonObject): DType | null {
  const key = config["dtype"] === undefined ? "torch_dtype" : "dtype";
  const value = config[key] ?? null;
  if (value === null || value === "auto") return null;
  const dtype = typeof value === "string" ? DTYPES[value.replace(/^torch\./, "")] : undefined;
  if (!dtype) throw wrong(key, Object.keys(DTYPES).join(", "), value);
  return dtype;
}
