/** Calibration windows, and the windows that perplexity is measured on before and after. */

import * as path from "node:path";
import { defaultTextPath, readTextFile } from "../data/text.ts";
import type { TextTokenizer } from "../data/tokenizer.ts";
import { randomWindows, sequentialWindows } from "../data/windows.ts";
import type { RunSettings } from "./settings.ts";

/** Windows for measuring before and after. */
const EVAL_WINDOWS = 16;

export interface CalibrationText {
  readonly calibration: readonly Int32Array[];
  readonly evaluation: readonly Int32Array[];
  /** The file, as it is said to people. */
  readonly source: string;
  /** Sentences a person should read. */
  readonly notes: readonly string[];
}

/**
 * Reads and cuts the text; without a file, the one that comes with the package.
 *
 * Throws: AQ_FILE for a missing or empty file, AQ_ARG when it is shorter than one window.
 */
export function loadCalibration(
  file: string | undefined,
  tokenizer: Pick<TextTokenizer, "encode">,
  seqlen: number,
  { nsamples, sampling, seed }: Pick<RunSettings, "nsamples" | "sampling" | "seed">,
): CalibrationText {
  const notes: string[] = [];
  const from = file ?? defaultTextPath();
  const source = file ?? `${path.basename(from)} of the package`;
  if (file === undefined) {
    notes.push(
      "no --calib was given: calibrating on the text that comes with the package (public-domain books)",
    );
  }
  const ids = tokenizer.encode(readTextFile(from));
  const calibration =
    sampling === "random"
      ? randomWindows(ids, seqlen, nsamples, seed)
      : sequentialWindows(ids, seqlen, nsamples);
  if (calibration.length < nsamples) {
    notes.push(
      `the calibration text holds ${calibration.length} windows of ${seqlen} tokens, ${nsamples} were asked for: using all`,
    );
  }
  const end = Math.max(
    ...calibration.map((w) => (w.byteOffset - ids.byteOffset) / ids.BYTES_PER_ELEMENT + w.length),
  );
  const following =
    ids.length - end >= seqlen ? sequentialWindows(ids.subarray(end), seqlen, EVAL_WINDOWS) : [];
  if (following.length > 0) {
    notes.push(
      `perplexity before and after is measured on ${following.length} windows that follow the calibration windows`,
    );
    return { calibration, evaluation: following, source, notes };
  }
  const used = calibration.slice(0, EVAL_WINDOWS);
  notes.push(
    `no text is left after the calibration windows: perplexity is measured on ${used.length} of them`,
  );
  return { calibration, evaluation: used, source, notes };
}
