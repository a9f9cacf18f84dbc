/** What a checkpoint is, and what would be done to it, without reading its weights. */

import { describeSite, siteName } from "./affine/sites.ts";
import { sitesInAnyStyle } from "./affine/style.ts";
import { openCheckpoint } from "./checkpoint/folder.ts";
import { hasFile } from "./checkpoint/source-files.ts";
import { AqError } from "./errors.ts";
import { type AqConfig, extrasOf, readAqConfig } from "./export/aq-config.ts";
import type { Job } from "./export/job.ts";
import { checkOwnType } from "./export/own-type.ts";
import { RunState } from "./export/run-state.ts";
import type { Model, TensorSpec } from "./models/family.ts";
import { checkWeights } from "./models/load.ts";
import { openFolderModel } from "./packed/model.ts";
import { type PackedWeights, packedWeights } from "./packed/open.ts";
import { float4Scheme, schemeName } from "./quant/scheme.ts";
import type { InspectOptions, InspectResult, RunProgress } from "./types.ts";
import { isJsonObject } from "./util/json.ts";

/**
 * Of the output folder of a run it also tells how far the run has come; while there is no checkpoint in
 * it yet, the source is described.
 *
 * Throws: AqError when the folder cannot be read or its model is not supported.
 */
export function inspect({ model: dir }: InspectOptions): InspectResult {
  const job = new RunState(dir).readJob();
  if (!job) return inspectCheckpoint(dir);
  const run = progressOf(dir, job);
  if (hasFile(dir, "config.json")) return { ...inspectCheckpoint(dir), run };
  try {
    return { ...inspectCheckpoint(job.model), run };
  } catch (error) {
    if (!(error instanceof AqError)) throw error;
    throw new AqError(
      error.code,
      `${dir} holds an unfinished run, whose source cannot be read: ${error.message}`,
      { cause: error },
    );
  }
}

function inspectCheckpoint(dir: string): InspectResult {
  const checkpoint = openCheckpoint(dir);
  try {
    const config = readAqConfig(dir);
    checkOwnType(dir, checkpoint.config, config);
    const packed = packedWeights(checkpoint);
    const model = openFolderModel(checkpoint, extrasOf(config));
    checkWeights(checkpoint, model);
    let parameters = 0;
    let bytes = 0;
    const dtypes = new Set<string>();
    for (const tensor of checkpoint.tensors.values()) {
      // Of packed weights, as many as they stand for.
      if (!packed) parameters += count(tensor);
      bytes += tensor.bytes;
      dtypes.add(tensor.dtype);
    }
    if (packed) parameters = described(model);
    const { hidden, blocks, heads, kvHeads, headDim, mlp, vocabulary, maxTokens } = model.shape;
    return {
      model: dir,
      family: model.family,
      blocks,
      hidden,
      heads,
      kvHeads,
      headDim,
      mlp,
      vocabulary,
      maxTokens,
      ...model.traits,
      dtype: [...dtypes].join(", "),
      shards: checkpoint.shards.length,
      parameters,
      bytes,
      quantized: quantization(config, packed, model),
      // Of an output of ours: those that were learned.
      sites: (config || packed
        ? sitesInAnyStyle(model.sites).filter((spec) => config?.sites.includes(siteName(spec)))
        : model.sites
      ).map((spec) => ({
        site: siteName(spec),
        ...describeSite(spec, model.shape),
      })),
    };
  } finally {
    checkpoint.close();
  }
}

function count({ shape }: { readonly shape: readonly number[] }): number {
  return shape.reduce((product, d) => product * d, 1);
}

/** Parameters that the architecture has. */
function described(model: Model): number {
  const blocks = Array.from({ length: model.shape.blocks }, (_, i) => model.blockTensors(i));
  const specs = [...model.outerTensors(), ...blocks.flat()];
  return specs.reduce((sum, spec) => sum + count(spec), 0);
}

/** How the weights were quantized, by what the folder says of itself. */
function quantization(
  config: AqConfig | null,
  packed: PackedWeights | null,
  model: Model,
): InspectResult["quantized"] {
  const format = packed && { format: packed.format };
  if (config) {
    const { wbits, abits, groupSize, numbers } = config.scheme;
    const scheme = numbers && { scheme: schemeName(config.scheme) };
    const transform = config.hadamardDown && { hadamardDown: true as const };
    const left = (config.kept ?? []).reduce((sum, keys) => sum + keys.length, 0);
    const kept = left > 0 && { kept: left };
    return { wbits, abits, groupSize, ...scheme, ...kept, ...transform, ...format };
  }
  if (!packed) return null;
  const { bits, group, tokens, numbers } = packed;
  const scheme = numbers && { scheme: schemeName(float4Scheme(numbers, tokens ? 4 : 16)) };
  const left = linearTensors(model).filter(({ name }) => !packed.has(name)).length;
  const kept = left > 0 && { kept: left };
  return {
    wbits: bits,
    abits: tokens?.bits ?? 16,
    groupSize: group,
    ...scheme,
    ...kept,
    ...format,
  };
}

/** The weights of all linears of all blocks. */
function linearTensors(model: Model): TensorSpec[] {
  const linears = new Set(model.linears.map(({ key }) => key));
  const blocks = Array.from({ length: model.shape.blocks }, (_, i) => model.blockTensors(i));
  return blocks.flat().filter(({ key }) => linears.has(key));
}

/** Is a polish asked for that is not done yet? */
function polishes({ identity, polish }: Job): boolean {
  const { settings } = identity;
  return isJsonObject(settings) && Number(settings["polish"]) > 0 && !polish;
}

function progressOf(out: string, job: Job): RunProgress {
  const { blocks, finished } = job;
  const spent = finished.reduce((sum, { report }) => sum + report.seconds, 0);
  const open = blocks - finished.length;
  const left: string[] = [];
  if (job.status === "running") {
    if (job.pplBefore === null) left.push("measure the source");
    if (open > 0)
      left.push(open === 1 ? `block ${blocks}` : `blocks ${finished.length + 1} to ${blocks}`);
    if (polishes(job)) left.push("polish all blocks");
    left.push("write the checkpoint", "measure it");
  }
  return {
    out,
    status: job.status,
    writtenBy: job.writtenBy,
    source: job.model,
    blocks,
    blocksDone: finished.length,
    pplBefore: job.pplBefore,
    pplAfter: job.result?.pplAfter ?? null,
    seconds: job.seconds,
    secondsLeft: finished.length > 0 ? (open * spent) / finished.length : null,
    left,
  };
}
