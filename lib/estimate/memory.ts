/** The memory and disk of a run, from the shapes of what it holds at the same time. */

import { keptByBlock } from "../calibration/keep.ts";
import { polishBytes } from "../calibration/polish-memory.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import type { Model } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import { groupsPerRow } from "../quant/scheme.ts";
import { precisionOf } from "../tensor/precision.ts";
import { batchOf } from "./time.ts";
import type { Workload } from "./work.ts";
import { writingParts } from "./writing.ts";

const F32 = 4;
const F64 = 8;
/** Node.js with the package, its tokenizer and the text. Measured: 125 to 165 MiB. */
const PROGRAM = 150 * 2 ** 20;
/** lib/eval/perplexity.ts holds at most this much of states, and of logits. */
const EVAL_BYTES = 64 * 2 ** 20;
/** A fold in float64: the weights, and what the sites make of them. */
const FOLD_COPIES = 2.5;
/** Beside it in float32: the weights, the folded ones, and those cast to what is stored. */
const FOLDED_COPIES = 3.5;
/** The equivalence check keeps three passes of one window. */
const FOLD_PASSES = 3;
/** Weights, two folds, and the gradients of both. */
const AFFINE_COPIES = 5;
/** Weights, folded weights, and for every weight an offset with its gradient and two moments. */
const ROUND_COPIES = 6;
/** The same where training reads weights in 16 bits: f32, f16, quantized operands, bf16 gradients. */
const SHORT_AFFINE_COPIES = 3;
const SHORT_ROUND_COPIES = 4.5;
/** A step's activations, and the gradients that are alive at the same time. */
const STEP_PASSES = 1.5;
/** Bytes that rotating takes for each element of embedding and head. */
const ROTATED_BYTES = 21;

/** Bytes that are held together when the run is at its largest. */
export function memoryParts(
  work: Workload,
  checkpoint: Checkpoint,
  streamMemory: number | undefined,
): Record<string, number> {
  const { model, settings, tokens } = work;
  const { hidden, heads, kvHeads, headDim, mlp, vocabulary } = model.shape;
  const weights = model.linears.reduce((sum, { out, in: columns }) => sum + out * columns, 0);
  const width = 8 * hidden + (2 * heads + 3 * kvHeads) * headDim + 3 * mlp;
  const pass = tokens * width * F32;
  const allStreams = streamBytes(work);
  const streams = Math.min(allStreams, streamMemory ?? allStreams) + tokens * hidden * F32;
  const base = { program: PROGRAM, streams };
  const stages: Record<string, number>[] = [
    evaluationParts(work, checkpoint, weights),
    { ...base, weights: 2 * weights * F32, activations: pass },
  ];
  if (settings.rotate) {
    stages.push({ ...base, "embedding and head": 2 * vocabulary * hidden * ROTATED_BYTES });
  }
  if (isTrained(work)) {
    stages.push({
      ...base,
      weights: trainedCopies(work) * weights * F32 + clipBytes(work) + normFullBytes(work),
      activations: STEP_PASSES * batchOf(work) * pass,
    });
  }
  if (isTrained(work) && settings.recipe.sites) {
    const turned = settings.rotate ? 2 * weights * F32 + 4 * tokens * hidden * F32 : 0;
    const folds = weights * (FOLD_COPIES * F64 + FOLDED_COPIES * F32);
    stages.push({ ...base, weights: folds + turned, activations: FOLD_PASSES * pass });
  }
  if (settings.calibSource === "model") stages.push({ program: PROGRAM, ...writingParts(work) });
  if (settings.polish > 0) {
    const polish = polishBytes(model, settings, work.windows, tokens);
    stages.push({ program: PROGRAM, "all blocks": polish });
  }
  return stages.reduce((most, stage) => (total(stage) > total(most) ? stage : most));
}

function evaluationParts(
  { model, evaluationWindows, tokens }: Workload,
  checkpoint: Checkpoint,
  weights: number,
): Record<string, number> {
  const { hidden, vocabulary } = model.shape;
  const outer = model.outerTensors().reduce((sum, { key, shape, name }) => {
    const isStored = key === "embedding" && !model.traits.tiedHead;
    const elements = shape.reduce((a, b) => a * b, 1);
    return sum + (isStored ? checkpoint.info(name).bytes : elements * F32);
  }, 0);
  return {
    program: PROGRAM,
    weights: outer + weights * F32,
    states: Math.min(EVAL_BYTES, evaluationWindows * tokens * hidden * F32),
    logits: Math.min(EVAL_BYTES, tokens * vocabulary * F32),
  };
}

/** What a block's training holds, in copies of its weights in f32. */
function trainedCopies({ device, settings: { train } }: Workload): number {
  const isRounded = train.roundEpochs > 0;
  if (precisionOf(device) === "bf16") return isRounded ? SHORT_ROUND_COPIES : SHORT_AFFINE_COPIES;
  return isRounded ? ROUND_COPIES : AFFINE_COPIES;
}

/** Clipping logits with gradient and moments. */
function clipBytes({ model, settings }: Workload): number {
  return model.linears.reduce((sum, { out, in: columns }) => {
    const ends = settings.scheme.numbers ? 1 : 2;
    return sum + 4 * ends * out * groupsPerRow(columns, settings.scheme.groupSize) * F32;
  }, 0);
}

/** Copies of a C x C matrix behind a norm: itself, its moments, masked, inverse, and their gradients. */
const NORM_FULL_COPIES = 7;

/** The matrices behind the norms, where the recipe learns them. A GPU has two of them rounded besides. */
function normFullBytes({ device, model, settings: { recipe } }: Workload): number {
  if (recipe.transforms.norms !== "full" || !recipe.sites) return 0;
  const count = model.sites.filter(({ kind }) => kind === "norm").length;
  const copies = NORM_FULL_COPIES + (device === "cpu" ? 0 : 1);
  return count * copies * model.shape.hidden ** 2 * F32;
}

function isTrained({ settings: { recipe, train } }: Workload): boolean {
  return recipe.name !== "rtn" && train.affineEpochs + train.roundEpochs > 0;
}

/** All streams: full precision, quantized, and the targets of the second loss. */
function streamBytes(work: Workload): number {
  const { model, settings, windows, tokens } = work;
  const count = settings.train.augLoss && settings.recipe.name !== "rtn" ? 3 : 2;
  return count * windows * tokens * model.shape.hidden * F32;
}

/** Bytes in the output folder: the checkpoint, codes and grids of every block, and spilled streams. */
export function diskParts(
  work: Workload,
  streamMemory: number | undefined,
): Record<string, number> {
  const { model, settings, bytes } = work;
  const { hidden, vocabulary } = model.shape;
  const stored = keptByBlock(model, settings).reduce((sum, kept) => {
    return sum + storedBytes(model, settings.scheme, kept);
  }, 0);
  const untied = settings.rotate && model.traits.tiedHead ? 2 * vocabulary * hidden : 0;
  const streams = streamBytes(work);
  return {
    checkpoint: bytes + untied,
    "run state": stored,
    "spilled streams": Math.max(0, streams - (streamMemory ?? streams)),
  };
}

/** Codes and grids of a block, and float32 for what is kept. */
function storedBytes({ linears }: Model, scheme: QuantScheme, kept: ReadonlySet<string>): number {
  const grid = scheme.numbers ? 1 : 3;
  return linears.reduce((sum, { key, out, in: columns }) => {
    if (kept.has(key)) return sum + out * columns * F32;
    return sum + out * columns + grid * out * groupsPerRow(columns, scheme.groupSize);
  }, 0);
}

export function total(parts: Readonly<Record<string, number>>): number {
  return Object.values(parts).reduce((sum, part) => sum + part, 0);
}
