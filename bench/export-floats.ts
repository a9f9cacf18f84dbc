/**
 * What a run of 4-bit floats stands for, and what we compute from it, for bench/peers/float4.py. Activations that
 * are rounded to four bits make a model chaotic: where one rounding falls the other way, logits move by some
 * percent. So there are many short windows, and the logits of the weights that readers make as well: bfloat16.
 */

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import type { SafetensorsDType } from "../lib/checkpoint/safetensors-header.ts";
import { forwardLogits } from "../lib/eval/perplexity.ts";
import { bytesOf } from "../lib/formats/pack.ts";
import { copied } from "../lib/formats/plain.ts";
import { type PlannedTensor, writeShards } from "../lib/formats/shards.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { encodeFloats } from "../lib/packed/half.ts";
import { dequantized } from "../lib/verify/folder.ts";
import { SavedRun } from "../lib/verify/state.ts";

/** Windows whose logits are compared, and their tokens. */
const WINDOWS = 8;
const TOKENS = 16;
/** Tokens that follow the first window greedily. */
const GREEDY = 32;

export interface FloatExpectations {
  readonly tensors: readonly PlannedTensor[];
  /** SHA-256 of each weight in float32, by name. */
  readonly weights: Readonly<Record<string, string>>;
}

export function tensor(
  name: string,
  dtype: SafetensorsDType,
  shape: readonly number[],
  values: Parameters<typeof bytesOf>[0],
): PlannedTensor {
  return { name, dtype, shape, pieces: () => [bytesOf(values)] };
}

/** Weights of 4-bit floats in float32, by name; none of a run of whole numbers. */
function floatWeights(dir: string): Map<string, Float32Array> {
  const run = new SavedRun(dir);
  const weights = new Map<string, Float32Array>();
  try {
    for (const spec of run.blockSpecs()) {
      const linear = run.isLinear(spec.name) ? run.linear(spec) : undefined;
      if (linear && linear.kind !== "integers") weights.set(spec.name, dequantized(linear));
    }
    return weights;
  } finally {
    run.close();
  }
}

/** The run's output with those weights in bfloat16, and its activations as they are. */
async function writeRounded(
  run: string,
  weights: ReadonlyMap<string, Float32Array>,
  out: string,
): Promise<void> {
  fs.mkdirSync(out);
  for (const { name } of fs.readdirSync(run, { withFileTypes: true }).filter((e) => e.isFile())) {
    if (!name.includes(".safetensors")) fs.copyFileSync(path.join(run, name), path.join(out, name));
  }
  const checkpoint = openCheckpoint(run);
  try {
    const tensors = [...checkpoint.tensors.values()].map(
      ({ name, dtype, shape }): PlannedTensor => {
        const w = weights.get(name);
        if (!w) return { name, dtype, shape, pieces: () => copied(checkpoint, name) };
        return tensor(name, "BF16", shape, encodeFloats(w, "BF16"));
      },
    );
    await writeShards(out, tensors, async () => {});
  } finally {
    checkpoint.close();
  }
}

/** Logits [W T, V] of windows, each by itself. */
function logitsOf(dir: string, ids: Int32Array): Float32Array {
  const source = openLanguageModel(dir, "cpu");
  try {
    const { vocabulary } = source.model.shape;
    const all = new Float32Array(ids.length * vocabulary);
    for (let at = 0; at < ids.length; at += TOKENS) {
      all.set(forwardLogits(source, ids.subarray(at, at + TOKENS)), at * vocabulary);
    }
    return all;
  } finally {
    source.close();
  }
}

/** The likeliest tokens behind the first ones, with their distance from the next likely. */
function greedy(dir: string, prompt: Int32Array): PlannedTensor[] {
  const tokens: number[] = [];
  const margins: number[] = [];
  const source = openLanguageModel(dir, "cpu");
  try {
    const { vocabulary } = source.model.shape;
    while (tokens.length < GREEDY) {
      const ids = Int32Array.from([...prompt, ...tokens]);
      const last = forwardLogits(source, ids).slice(-vocabulary);
      const best = last.reduce((top, x, i) => (x > (last[top] as number) ? i : top), 0);
      const ahead = last[best] as number;
      last[best] = Number.NEGATIVE_INFINITY;
      tokens.push(best);
      margins.push(ahead - last.reduce((a, b) => Math.max(a, b)));
    }
  } finally {
    source.close();
  }
  return [
    tensor("greedy", "I32", [GREEDY], Int32Array.from(tokens)),
    tensor("margins", "F32", [GREEDY], Float32Array.from(margins)),
  ];
}

/**
 * Expectations of the run in `dir`/run, exported to `dir`/compressed-tensors, or nothing for whole numbers;
 * `dir`/rounded is written. `tokens` are those of a text.
 */
export async function floatExpectations(
  dir: string,
  tokens: readonly number[],
): Promise<FloatExpectations | undefined> {
  const weights = floatWeights(path.join(dir, "run"));
  if (weights.size === 0) return undefined;
  const rounded = path.join(dir, "rounded");
  await writeRounded(path.join(dir, "run"), weights, rounded);
  const ids = Int32Array.from(tokens.slice(0, WINDOWS * TOKENS));
  const logits = (name: string, folder: string): PlannedTensor => {
    const values = logitsOf(folder, ids);
    return tensor(name, "F32", [WINDOWS, TOKENS, values.length / ids.length], values);
  };
  const hashes = [...weights].map(([name, w]) => [
    name,
    createHash("sha256").update(bytesOf(w)).digest("hex"),
  ]);
  return {
    tensors: [
      tensor("windows", "I32", [WINDOWS, TOKENS], ids),
      logits("logits.exact", path.join(dir, "compressed-tensors")),
      logits("logits.rounded", rounded),
      ...greedy(rounded, ids.subarray(0, TOKENS)),
    ],
    weights: Object.fromEntries(hashes) as Record<string, string>,
  };
}
