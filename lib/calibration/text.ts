/** Calibration windows, and the windows that perplexity is measured on before and after. */

import * as path from "node:path";
import { defaultTextPath, readTextFile } from "../data/text.ts";
import type { TextTokenizer } from "../data/tokenizer.ts";
import { randomWindows, sequentialWindows } from "../data/windows.ts";
import { AqError } from "../errors.ts";
import type { RunSettings } from "./settings.ts";

/** Windows for measuring before and after. */
const EVAL_WINDOWS = 16;
/** Tokens of the text that the model goes on from where it writes the windows. */
const BEGINNING = 8;

export interface CalibrationText {
  /** Windows; or, where the model writes them, what each of them begins with. */
  readonly calibration: readonly Int32Array[];
  readonly isWritten: boolean;
  /** Tokens of a window. */
  readonly seqlen: number;
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
  settings: Pick<RunSettings, "nsamples" | "sampling" | "seed" | "calibSource">,
): CalibrationText {
  const { nsamples, sampling, seed, calibSource } = settings;
  const notes: string[] = [];
  const from = file ?? defaultTextPath();
  const name = file ?? `${path.basename(from)} of the package`;
  if (calibSource === "model")
    return loadBeginnings(name, tokenizer.encode(readTextFile(from)), seqlen, settings);
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
  const made = { calibration, isWritten: false, seqlen, source: name, notes };
  const following =
    ids.length - end >= seqlen ? sequentialWindows(ids.subarray(end), seqlen, EVAL_WINDOWS) : [];
  if (following.length > 0) {
    notes.push(
      `perplexity before and after is measured on ${following.length} windows that follow the calibration windows`,
    );
    return { ...made, evaluation: following };
  }
  const used = calibration.slice(0, EVAL_WINDOWS);
  notes.push(
    `no text is left after the calibration windows: perplexity is measured on ${used.length} of them`,
  );
  return { ...made, evaluation: used };
}

/**
 * What the model goes on from, from random places behind the windows that perplexity is measured on, if the
 * text goes on there; a place may come again where there are few.
 */
function loadBeginnings(
  name: string,
  ids: Int32Array,
  seqlen: number,
  { nsamples, seed }: Pick<RunSettings, "nsamples" | "seed">,
): CalibrationText {
  if (seqlen <= BEGINNING) {
    throw new AqError(
      "AQ_ARG",
      `seqlen must be above ${BEGINNING} where the model writes the windows, since each begins with as many tokens of the text, got ${seqlen}`,
    );
  }
  const evaluation = sequentialWindows(ids, seqlen, EVAL_WINDOWS);
  const behind = ids.subarray(evaluation.length * seqlen);
  const places = randomWindows(behind.length >= seqlen ? behind : ids, BEGINNING, nsamples, seed);
  const calibration = Array.from(
    { length: nsamples },
    (_, n) => places[n % places.length] as Int32Array,
  );
  const measured =
    evaluation.length === 1 ? "its first window" : `its first ${evaluation.length} windows`;
  const notes = [
    `the model writes the calibration windows itself, each behind ${BEGINNING} tokens of ${name}; perplexity before and after is measured on ${measured}`,
  ];
  const source = `what the model writes behind beginnings of ${name}`;
  return { calibration, isWritten: true, seqlen, evaluation, source, notes };
}
