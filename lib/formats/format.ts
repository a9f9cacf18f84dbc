/**
 * What a format is: it says whether it can carry a setting, before hours of work, and writes a finished
 * run. A format is one file that exports one `Format`, plus a line in registry.ts.
 */

import type { FormatName, WeightChange } from "../export-types.ts";
import type { FinishedRun } from "./run.ts";
import type { Setting } from "./setting.ts";

/** Where a format writes, and who watches. */
export interface FormatOutput {
  /** An empty folder, which nobody else knows yet. */
  readonly dir: string;
  /** Called before each tensor; throws when the work is to stop. */
  readonly onTensor: (name: string) => Promise<void>;
  readonly signal?: AbortSignal | undefined;
}

/** What was written. */
export interface Written {
  /** Of the quantized weights. */
  readonly change: WeightChange;
  /** Of the tensors that are not quantized; null where they are the same. */
  readonly otherChange: WeightChange | null;
  /** Sentences that a person should read. */
  readonly notes: readonly string[];
}

export interface Format {
  readonly name: FormatName;
  /** For people: what it is and who loads it. */
  readonly about: string;
  /** Why the setting does not fit and what to do, in one sentence without a full stop; else nothing. */
  refuses(setting: Setting): string | undefined;
  /** Sentences about a setting that fits, but that a person should know. */
  notes(setting: Setting): readonly string[];
  /** Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL. */
  write(run: FinishedRun, output: FormatOutput): Promise<Written>;
}

/** Weights that are written as they are. */
export const UNCHANGED: WeightChange = { max: 0, rms: 0 };
