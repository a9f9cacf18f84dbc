/** What polishing takes in memory, against what the machine has. */

import { AqError } from "../errors.ts";
import type { Model } from "../models/family.ts";
import { groupsPerRow } from "../quant/scheme.ts";
import { deviceInfo } from "../tensor/device.ts";
import { byteSize } from "../util/format.ts";
import type { RunSettings } from "./settings.ts";

const F32 = 4;
/** A learned value, its gradient and two moments. */
const LEARNED = 4;

/** Windows of N that polish holds back to judge by: an eighth, at least two. */
export function heldBackWindows(windows: number): number {
  return Math.max(2, Math.floor(windows / 8));
}

/** Bytes that are held at the same time: all blocks, and one window on the tape. */
export function polishBytes(
  model: Model,
  settings: RunSettings,
  windows: number,
  tokens: number,
): number {
  const { hidden, heads, kvHeads, headDim, mlp, vocabulary, blocks } = model.shape;
  const sum = <T>(items: readonly T[], of: (item: T) => number): number =>
    items.reduce((total, item) => total + of(item), 0);
  const size = ({ shape }: { readonly shape: readonly number[] }): number =>
    shape.reduce((a, b) => a * b, 1);

  const weights = sum(model.linears, ({ out, in: columns }) => out * columns);
  const groups = sum(model.linears, ({ out, in: columns }) => {
    return out * groupsPerRow(columns, settings.scheme.groupSize);
  });
  const others = sum(model.blockTensors(0), size) - weights;
  const isRounded = settings.train.roundEpochs > 0;
  // Weights; offsets with their gradients.
  const block = weights * (isRounded ? 3 : 1) + LEARNED * (2 * groups + others);
  const widths = 8 * hidden + 2 * (heads + 2 * kvHeads) * headDim + 3 * mlp;
  const tape = tokens * (widths + (model.hadamardDown ? mlp : 0));
  const outer = sum(model.outerTensors(), size) * (settings.rotate ? 2 : 1);
  // The student's, the teacher's, and the gradient.
  const logits = 3 * tokens * vocabulary;
  const states = (windows + heldBackWindows(windows)) * tokens * hidden;
  // Of a single block: a gradient on the weights' side, or the weights that its codes stand for.
  const working = 2 * weights + tape;
  return F32 * (blocks * (block + tape) + working + outer + logits + states);
}

/** Bytes that a run may take: of a GPU all that it has, since it is rarely shared. */
export function memoryOf(device: string): number {
  return device === "cpu" ? process.availableMemory() : deviceInfo(device).totalBytes;
}

/**
 * Throws: AQ_ARG when there are too few windows, AQ_OOM when polishing would take more than
 * `available` bytes.
 */
export function checkPolish(
  model: Model,
  settings: RunSettings,
  windows: number,
  tokens: number,
  available: number = memoryOf("cpu"),
): void {
  if (settings.polish === 0) return;
  const held = heldBackWindows(windows);
  if (windows <= held) {
    throw new AqError(
      "AQ_ARG",
      `--polish holds ${held} windows back to judge by and there are only ${windows}; give it at least 3 (--nsamples, a longer --calib), or leave --polish out`,
    );
  }
  const bytes = polishBytes(model, settings, windows, tokens);
  if (bytes > available) {
    throw new AqError(
      "AQ_OOM",
      `--polish trains all ${model.shape.blocks} blocks at once, which takes about ${byteSize(bytes)} of memory, and there are ${byteSize(available)} free; leave --polish out, or take shorter windows (--seqlen)`,
    );
  }
}
