/** The configuration of a LLaMA checkpoint, with every number checked against the others. */

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

export { ropeTables } from "./rope.ts";

export interface LlamaConfig extends RopeSettings {
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlp: number;
  readonly vocab: number;
  readonly maxTokens: number;
  readonly rmsEps: number;
  /** Biases of q, k, v and o. */
  readonly attentionBias: boolean;
  /** Biases of gate, up and down. */
  readonly mlpBias: boolean;
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

/**
 * Reads the config.json of a LLaMA model, in the spelling of transformers 4 or 5; what is absent has
 * the value that transformers gives it.
 *
 * Throws: AQ_MODEL naming the key, what was expected and what was found.
 */
export function readLlamaConfig(config: unknown): LlamaConfig {
  if (!isJsonObject(config)) {
    throw new AqError("AQ_FORMAT", `config.json holds ${kindOf(config)}, expected an object.`);
  }
  readWord(config, "hidden_act", ["silu", "swish"], "silu");
  const count = { min: 1, max: MAX_COUNT };
  const hidden = readInt(config, "hidden_size", count);
  const heads = readInt(config, "num_attention_heads", { min: 1, max: 1 << 16 });
  const kvHeads = readInt(config, "num_key_value_heads", { min: 1, max: heads, default: heads });
  if (heads % kvHeads !== 0) {
    throw wrong("num_key_value_heads", `a divisor of num_attention_heads (${heads})`, kvHeads);
  }
  const mlp = readInt(config, "intermediate_size", count);
  const vocab = readInt(config, "vocab_size", count);
  const headDim = readHeadDim(config, hidden, heads);
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
    maxTokens: readInt(config, "max_position_embeddings", { ...count, default: 2048 }),
    rmsEps: readNumber(config, "rms_norm_eps", { min: 0, max: 1, default: 1e-6 }),
    ...readRope(config),
    attentionBias: readBool(config, "attention_bias", false),
    mlpBias: readBool(config, "mlp_bias", false),
    tiedHead: readBool(config, "tie_word_embeddings", false),
    dtype: readStoredDType(config),
  };
}

function readHeadDim(config: JsonObject, hidden: number, heads: number): number {
  const said = config["head_dim"] ?? null;
  if (said === null && hidden % heads !== 0) {
    throw wrong("hidden_size", `a multiple of num_attention_heads (${heads})`, hidden);
  }
  const dim = readInt(config, "head_dim", { min: 2, max: 1 << 16, default: hidden / heads });
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
