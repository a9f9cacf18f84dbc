/** Moves both streams past a block that an earlier session finished. */

import type { FinishedWeights, TokenNumbers } from "../export/weights.ts";
import type { BlockContext } from "../models/family.ts";
import { disposeAll } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import { storedWeights } from "./finish-block.ts";
import { keptKeys } from "./keep.ts";
import { passFullPrecision, passQuantized } from "./passes.ts";
import type { RunSettings } from "./settings.ts";
import type { Streams } from "./streams.ts";

/**
 * Runs the passes that calibration ran, on the same weights: the streams come out bit for bit as they
 * were, so what follows does too. Returns the distance of the streams, as calibration measured it.
 *
 * Throws: AQ_STOPPED when the signal fires, and what reading can throw.
 */
export async function replayBlock(
  source: WeightSource,
  context: BlockContext,
  streams: Streams,
  settings: Pick<RunSettings, "scheme" | "keep">,
  index: number,
  finished: FinishedWeights,
  numbers: TokenNumbers,
  signal: AbortSignal | undefined,
): Promise<number> {
  const { model } = source;
  const { scheme } = settings;
  const weights = source.loadBlock(index);
  try {
    await passFullPrecision(model, context, weights, streams, false, signal);
  } finally {
    disposeAll(weights);
  }
  const stored = storedWeights(finished, scheme.groupSize, (key) => source.storedDType(index, key));
  try {
    const problem = { model, context, scheme, kept: keptKeys(model, index, settings) };
    return await passQuantized(problem, stored, numbers, streams, signal);
  } finally {
    disposeAll(stored);
  }
}
