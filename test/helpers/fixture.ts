/** Checkpoints of test/fixtures, whole, with changed tensors or cut to their first blocks. */
import * as fs from "node:fs";
import * as path from "node:path";
import { openCheckpoint } from "../../lib/checkpoint/folder.ts";
import type { EvalModel } from "../../lib/eval/eval-model.ts";
import { openModel } from "../../lib/models/registry.ts";
import { packageRoot } from "../../lib/util/package.ts";
import { numbersOf, readTensors, type StoredTensor, writeTensors } from "./tensor-file.ts";

const FIXTURES = path.join(packageRoot(), "test", "fixtures");

/** The trained model of 4 million parameters. */
export const TRAINED: string = path.join(FIXTURES, "llama-gqa-4m");
/** The trained OPT of 5 million. */
export const OPT: string = path.join(FIXTURES, "opt-5m");
/** The beginning of the text that its perplexity is known on: 12,000 tokens. */
export const BOOKS: string = path.join(FIXTURES, "books-test-head.txt");

/** Names of the random models of one feature each. */
export function tinyFixtures(): readonly string[] {
  return fs.readdirSync(path.join(FIXTURES, "tiny")).sort();
}

export function tinyFixture(name: string): string {
  return path.join(FIXTURES, "tiny", name);
}

/** Opens a folder as evaluation does, without activation quantizers, and closes it afterwards. */
export function withModel<T>(dir: string, use: (source: EvalModel) => T): T {
  const checkpoint = openCheckpoint(dir);
  const close = (): void => checkpoint.close();
  try {
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
    const result = use({ checkpoint, model, activations: null });
    if (result instanceof Promise) return result.finally(close) as T;
    close();
    return result;
  } catch (error) {
    close();
    throw error;
  }
}

/** How a copy differs from its source. */
export interface Changes {
  readonly config?: (config: Record<string, unknown>) => object;
  readonly tensors?: (tensors: Map<string, StoredTensor>) => void;
}

/** Copies a checkpoint of one weight file into an empty folder, with changes. */
export function copyFixture(source: string, target: string, changes: Changes): string {
  for (const name of fs.readdirSync(source)) {
    if (!/^(golden|config|model)\b/.test(name)) {
      fs.copyFileSync(path.join(source, name), path.join(target, name));
    }
  }
  const config = JSON.parse(fs.readFileSync(path.join(source, "config.json"), "utf8")) as Record<
    string,
    unknown
  >;
  const text = JSON.stringify(changes.config?.(config) ?? config, null, 2);
  fs.writeFileSync(path.join(target, "config.json"), `${text}\n`);
  const tensors = readTensors(path.join(source, "model.safetensors"));
  changes.tensors?.(tensors);
  writeTensors(path.join(target, "model.safetensors"), tensors);
  return target;
}

/** The trained model with its first `blocks` blocks alone: a valid model that takes less time. */
export function firstBlocks(target: string, blocks: number): string {
  return copyFixture(TRAINED, target, {
    config: (config) => ({ ...config, num_hidden_layers: blocks }),
    tensors: (tensors) => {
      for (const name of [...tensors.keys()]) {
        const block = /\.layers\.(\d+)\./.exec(name)?.[1];
        if (block !== undefined && Number(block) >= blocks) tensors.delete(name);
      }
    },
  });
}

/** A copy of a checkpoint in float32. */
export function inSingle(source: string, target: string): string {
  return copyFixture(source, target, {
    config: (config) => ({ ...config, dtype: "float32" }),
    tensors: (tensors) => {
      for (const [name, tensor] of tensors) {
        const numbers = Float32Array.from(numbersOf(tensor));
        tensors.set(name, { ...tensor, dtype: "F32", bytes: new Uint8Array(numbers.buffer) });
      }
    },
  });
}
