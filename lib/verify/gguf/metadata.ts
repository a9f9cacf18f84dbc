/** What a GGUF file says of its model, against the run's configuration. */

import { AqError } from "../../errors.ts";
import { isJsonObject, type JsonObject } from "../../util/json.ts";
import type { SavedRun } from "../state.ts";
import type { GgufFile } from "./file.ts";
import { architectureOf } from "./names.ts";

/** Name of the tensor with a factor for each frequency. */
export const ROPE_FACTORS = "rope_freqs.weight";

/** Throws: AQ_FORMAT where the file describes another model. */
export function checkMetadata(run: SavedRun, gguf: GgufFile): void {
  const { shape } = run.model;
  const { config } = run.output;
  const name = architectureOf(run.model);
  const rope = ropeOf(config);
  const isStretched = (rope["rope_type"] ?? rope["type"]) === "linear";
  const own: Readonly<Record<string, number | string | undefined>> = {
    block_count: shape.blocks,
    embedding_length: shape.hidden,
    feed_forward_length: shape.mlp,
    "attention.head_count": shape.heads,
    "attention.head_count_kv": shape.kvHeads,
    "attention.key_length": shape.headDim,
    "attention.value_length": shape.headDim,
    context_length: shape.maxTokens,
    vocab_size: shape.vocabulary,
    "rope.dimension_count": shape.headDim,
    "attention.layer_norm_rms_epsilon": number(config["rms_norm_eps"]),
    "rope.freq_base": number(rope["rope_theta"] ?? config["rope_theta"]),
    "rope.scaling.type": isStretched ? "linear" : undefined,
    "rope.scaling.factor": isStretched ? number(rope["factor"]) : undefined,
  };
  const expected = { "general.architecture": name, ...prefixed(name, own) };
  for (const [key, value] of Object.entries(expected)) {
    const got = gguf.metadata.get(key);
    if (value === undefined || isSame(value, got)) continue;
    throw new AqError(
      "AQ_FORMAT",
      `${gguf.file}: "${key}" differs from the run: expected ${value}, got ${got === undefined ? "nothing" : String(got).slice(0, 60)}; export it again`,
    );
  }
  const tokens = gguf.metadata.get("tokenizer.ggml.tokens");
  if (Array.isArray(tokens) && tokens.length !== shape.vocabulary) {
    throw new AqError(
      "AQ_FORMAT",
      `${gguf.file}: expected ${shape.vocabulary} tokens in tokenizer.ggml.tokens, got ${tokens.length}; export it again`,
    );
  }
}

function prefixed<T>(prefix: string, keys: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(
    Object.entries(keys).map(([key, value]) => [`${prefix}.${key}`, value]),
  );
}

/** Floats are stored in single precision. */
function isSame(value: number | string, got: unknown): boolean {
  return got === value || (typeof value === "number" && got === Math.fround(value));
}

function number(value: unknown): number | undefined {
  return typeof value === "number" ? value : undefined;
}

/** The settings of rotary embedding, by the name that newer files have for them or the older one. */
function ropeOf(config: JsonObject): JsonObject {
  const value = config["rope_parameters"] ?? config["rope_scaling"];
  return isJsonObject(value) ? value : {};
}

/**
 * Factors of the frequencies in LLaMA 3's scaling: 1 for short waves, `factor` for long ones, between them
 * a blend of the two; null for other kinds. Source: transformers, modeling_rope_utils.
 */
export function ropeFactors(config: JsonObject, headDim: number): number[] | null {
  const rope = ropeOf(config);
  if ((rope["rope_type"] ?? rope["type"]) !== "llama3") return null;
  const read = (key: string, fallback: number): number => number(rope[key]) ?? fallback;
  const theta = number(rope["rope_theta"] ?? config["rope_theta"]) ?? 10_000;
  const factor = read("factor", 8);
  const low = read("low_freq_factor", 1);
  const high = read("high_freq_factor", 4);
  const length = read("original_max_position_embeddings", 8192);
  return Array.from({ length: headDim / 2 }, (_, i) => {
    const wave = 2 * Math.PI * theta ** ((2 * i) / headDim);
    if (wave < length / high) return 1;
    if (wave > length / low) return factor;
    const smooth = (length / wave - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}
