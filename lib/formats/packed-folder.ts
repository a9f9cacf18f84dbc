/**
 * What gptq, awq, compressed-tensors and modelopt have in common: a Hugging Face folder in 16 bits in which
 * the weight of each quantized linear is replaced by the tensors of its packed form.
 */

import * as path from "node:path";
import { companions, copyFile } from "../checkpoint/output-folder.ts";
import { sourceFile } from "../checkpoint/source-files.ts";
import { isRunTime } from "../export/aq-config.ts";
import { stockConfig } from "../export/own-type.ts";
import { formatLike, type JsonObject } from "../util/json.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";
import { ChangeMeter } from "./change.ts";
import { type FormatOutput, UNCHANGED, type Written } from "./format.ts";
import { copied, type ShortType, shortName, shorts, shortsOf } from "./plain.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import { type PlannedTensor, writeShards } from "./shards.ts";

/** How a format lays out a linear, and what its config.json gets. */
export interface PackedLayout {
  readonly linear: (run: FinishedRun, linear: StoredLinear) => readonly PlannedTensor[];
  /** "quantization_config". */
  readonly config: JsonObject;
  /** Tensors that stand for a run-time matrix of a block, where the format has a place for it. */
  readonly plain?: (
    run: FinishedRun,
    block: number,
    key: string,
    meter: ChangeMeter,
  ) => readonly PlannedTensor[];
  /** Of tensors that are not quantized; float16 where absent. */
  readonly type?: ShortType;
  /** Further JSON files by name. */
  readonly files?: Readonly<Record<string, JsonObject>>;
}

/** Writes the folder; its linears lose nothing. Throws: AQ_FILE, AQ_MODEL. */
export async function writePacked(
  run: FinishedRun,
  layout: PackedLayout,
  output: FormatOutput,
  notes: readonly string[],
): Promise<Written> {
  const meter = new ChangeMeter();
  const tensors: PlannedTensor[] = [];
  const { model } = run;
  const { type = "F16" } = layout;
  const outer = outerTensors(run);
  const plan = ({ name, shape }: { name: string; shape: readonly number[] }): PlannedTensor => ({
    name,
    dtype: type,
    shape,
    pieces: () => shorts(run.checkpoint, name, meter, type),
  });
  tensors.push(...outer.first.map(plan));
  for (let block = 0; block < model.shape.blocks; block++) {
    const linears = new Map(run.linears(block).map((linear) => [linear.name, linear]));
    for (const { key, name, shape } of model.blockTensors(block)) {
      const linear = linears.get(name);
      if (linear) tensors.push(...layout.linear(run, linear));
      else if (layout.plain && isRunTime(key))
        tensors.push(...layout.plain(run, block, key, meter));
      else {
        const pieces = (): Uint8Array[] => [
          shortsOf(run.plain(block, name, shape), name, meter, type),
        ];
        tensors.push({ name, dtype: type, shape, pieces });
      }
    }
  }
  tensors.push(...outer.last.map(plan));
  await writeShards(output.dir, tensors, output.onTensor);
  copyCompanions(run, output.dir);
  for (const [name, json] of Object.entries(layout.files ?? {})) writeJson(output.dir, name, json);
  const config = {
    ...inType(stockConfig(run.checkpoint.config), shortName(type)),
    quantization_config: layout.config,
  };
  writeConfig(run, output.dir, config);
  return { change: UNCHANGED, otherChange: meter.changeOrNull, notes };
}

/** Embeddings before the blocks, norm and head behind them; a tied head is no tensor. */
export function outerTensors(run: FinishedRun): {
  first: readonly { name: string; shape: readonly number[] }[];
  last: readonly { name: string; shape: readonly number[] }[];
} {
  const { model } = run;
  const embeddings = new Set(model.residual.embeddings);
  const all = model.outerTensors();
  return {
    first: all.filter(({ key }) => embeddings.has(key)),
    last: all.filter(({ key }) => !embeddings.has(key)),
  };
}

/** The outer tensors as the run's output has them, byte for byte. */
export function copiedOuter(run: FinishedRun, name: string): PlannedTensor {
  const { dtype, shape } = run.checkpoint.info(name);
  return { name, dtype, shape, pieces: () => copied(run.checkpoint, name) };
}

/** The tokenizer's and generation's files. */
export function copyCompanions(run: FinishedRun, dir: string): void {
  const from = run.checkpoint.dir;
  for (const name of companions(from)) copyFile(sourceFile(from, name), path.join(dir, name));
}

/** config.json, with numbers spelled as in the model's. */
export function writeConfig(run: FinishedRun, dir: string, config: JsonObject): void {
  const text = formatLike(config, run.checkpoint.configText);
  writeFileAtomic(path.join(dir, "config.json"), text);
}

function writeJson(dir: string, name: string, json: JsonObject): void {
  writeFileAtomic(path.join(dir, name), `${JSON.stringify(json, null, 2)}\n`);
}

/** Says the type under the name that the file has for it, or under the one that all loaders know. */
function inType(config: JsonObject, type: string): JsonObject {
  const key = config["dtype"] === undefined ? "torch_dtype" : "dtype";
  const both = config["torch_dtype"] === undefined ? {} : { torch_dtype: type };
  return { ...config, ...both, [key]: type };
}
