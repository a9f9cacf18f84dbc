/** What a GGUF file says of a LLaMA model, and the factors of its rotary frequencies. */

import * as path from "node:path";
import { type LlamaConfig, readLlamaConfig } from "../models/config.ts";
import { inverseFrequencies } from "../models/rope.ts";
import { packageVersion } from "../util/package.ts";
import type { GgmlType, GgufValue } from "./gguf-file.ts";
import { FILE_TYPES } from "./gguf-type.ts";
import type { FinishedRun } from "./run.ts";

const QUANTIZATION_VERSION = 2;

/** The keys but for those of the tokenizer, in the order in which they are written. */
export function ggufKeys(run: FinishedRun, main: GgmlType): Map<string, GgufValue> {
  const config = readLlamaConfig(run.checkpoint.config);
  const { scheme } = run.setting;
  const keys = new Map<string, GgufValue>();
  const u32 = (key: string, value: number): void => void keys.set(key, { type: "u32", value });
  const f32 = (key: string, value: number): void => void keys.set(key, { type: "f32", value });
  const text = (key: string, value: string): void => void keys.set(key, { type: "string", value });
  const name = path.basename(path.resolve(run.job.model));
  text("general.architecture", "llama");
  text("general.type", "model");
  text("general.name", name);
  text("general.basename", name);
  text("general.size_label", sizeLabel(run));
  text("general.quantized_by", `aq-native ${packageVersion()}`);
  u32("general.file_type", FILE_TYPES[main]);
  if (main !== "F16") u32("general.quantization_version", QUANTIZATION_VERSION);
  u32("llama.context_length", config.maxTokens);
  u32("llama.embedding_length", config.hidden);
  u32("llama.block_count", config.layers);
  u32("llama.feed_forward_length", config.mlp);
  u32("llama.attention.head_count", config.heads);
  u32("llama.attention.head_count_kv", config.kvHeads);
  f32("llama.attention.layer_norm_rms_epsilon", config.rmsEps);
  u32("llama.attention.key_length", config.headDim);
  u32("llama.attention.value_length", config.headDim);
  u32("llama.rope.dimension_count", config.headDim);
  f32("llama.rope.freq_base", config.ropeTheta);
  if (config.ropeScaling.type === "linear") {
    text("llama.rope.scaling.type", "linear");
    f32("llama.rope.scaling.factor", config.ropeScaling.factor);
  }
  u32("llama.vocab_size", config.vocab);
  u32("aq.bits", scheme.wbits);
  u32("aq.group_size", scheme.groupSize);
  keys.set("aq.symmetric", { type: "bool", value: scheme.symmetric });
  text("aq.recipe", run.config.recipe);
  return keys;
}

/** By how much each frequency is slowed, for the scaling that llama.cpp reads from a tensor. */
export function ropeFactors(config: LlamaConfig): Float32Array | null {
  if (config.ropeScaling.type !== "llama3") return null;
  const plain = inverseFrequencies({ ...config, ropeScaling: { type: "default" } }, config.headDim);
  const slowed = inverseFrequencies(config, config.headDim);
  return plain.map((frequency, i) => frequency / (slowed[i] as number));
}

/** "7B", "4M": parameters, tied ones counted once. */
function sizeLabel({ checkpoint }: FinishedRun): string {
  let count = 0;
  for (const { shape } of checkpoint.tensors.values()) {
    count += shape.reduce((product, d) => product * d, 1);
  }
  if (count >= 1e9) return `${(count / 1e9).toPrecision(2)}B`.replace(".0B", "B");
  return `${Math.max(1, Math.round(count / 1e6))}M`;
}
