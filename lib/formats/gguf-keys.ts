/** What a GGUF file says of its model, and the factors of its rotary frequencies. */

import * as path from "node:path";
import type { Model } from "../models/family.ts";
import { inverseFrequencies } from "../models/rope.ts";
import { packageVersion } from "../util/package.ts";
import type { GgmlType, GgufValue } from "./gguf-file.ts";
import { FILE_TYPES } from "./gguf-type.ts";
import type { FinishedRun } from "./run.ts";

const QUANTIZATION_VERSION = 2;

/** What llama.cpp calls the architectures of our families; it has no other of them. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  llama: "llama",
  mistral: "llama",
  qwen2: "qwen2",
  qwen3: "qwen3",
};

/** The architecture of a model's file, which all keys of its shape begin with; undefined: there is none. */
export function ggufArchitecture({ family }: Model): string | undefined {
  return ARCHITECTURES[family];
}

/** The keys but for those of the tokenizer, in the order in which they are written. */
export function ggufKeys(run: FinishedRun, main: GgmlType): Map<string, GgufValue> {
  const { model } = run;
  const { scheme } = run.setting;
  const { shape, rotary } = model;
  const own = ggufArchitecture(model);
  if (!own || !rotary) throw new TypeError(`a GGUF file of ${model.family} has no architecture`);
  const keys = new Map<string, GgufValue>();
  const u32 = (key: string, value: number): void => void keys.set(key, { type: "u32", value });
  const f32 = (key: string, value: number): void => void keys.set(key, { type: "f32", value });
  const text = (key: string, value: string): void => void keys.set(key, { type: "string", value });
  const name = path.basename(path.resolve(run.job.model));
  text("general.architecture", own);
  text("general.type", "model");
  text("general.name", name);
  text("general.basename", name);
  text("general.size_label", sizeLabel(run));
  text("general.quantized_by", `aq-native ${packageVersion()}`);
  u32("general.file_type", FILE_TYPES[main]);
  if (main !== "F16") u32("general.quantization_version", QUANTIZATION_VERSION);
  u32(`${own}.context_length`, shape.maxTokens);
  u32(`${own}.embedding_length`, shape.hidden);
  u32(`${own}.block_count`, shape.blocks);
  u32(`${own}.feed_forward_length`, shape.mlp);
  u32(`${own}.attention.head_count`, shape.heads);
  u32(`${own}.attention.head_count_kv`, shape.kvHeads);
  f32(`${own}.attention.layer_norm_rms_epsilon`, rotary.rmsEps);
  u32(`${own}.attention.key_length`, shape.headDim);
  u32(`${own}.attention.value_length`, shape.headDim);
  u32(`${own}.rope.dimension_count`, shape.headDim);
  f32(`${own}.rope.freq_base`, rotary.ropeTheta);
  if (rotary.ropeScaling.type === "linear") {
    text(`${own}.rope.scaling.type`, "linear");
    f32(`${own}.rope.scaling.factor`, rotary.ropeScaling.factor);
  }
  u32(`${own}.vocab_size`, shape.vocabulary);
  u32("aq.bits", scheme.wbits);
  u32("aq.group_size", scheme.groupSize);
  keys.set("aq.symmetric", { type: "bool", value: scheme.symmetric });
  text("aq.recipe", run.config.recipe);
  return keys;
}

/** By how much each frequency is slowed, for the scaling that llama.cpp reads from a tensor. */
export function ropeFactors({ rotary, shape }: Model): Float32Array | null {
  if (rotary?.ropeScaling.type !== "llama3") return null;
  const plain = inverseFrequencies({ ...rotary, ropeScaling: { type: "default" } }, shape.headDim);
  const slowed = inverseFrequencies(rotary, shape.headDim);
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
