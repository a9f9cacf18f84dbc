/** What an estimate is made of: the run's counts, and how long their units take. */

import type { RunSettings } from "../calibration/settings.ts";
import type { Model } from "../models/family.ts";

/** What the run works on. */
export interface Workload {
  /** Where it runs. */
  readonly device: string;
  readonly model: Model;
  readonly settings: RunSettings;
  /** Calibration windows and windows of each evaluation. */
  readonly windows: number;
  readonly evaluationWindows: number;
  readonly tokens: number;
  /** Bytes of the checkpoint. */
  readonly bytes: number;
  /** Seconds that reading and tokenizing the text took just now. */
  readonly textSeconds: number;
}

/** Seconds by unit of work, as measured. */
export interface UnitSeconds {
  /** One optimizer step of a block's training: its windows, forward, backward and update. */
  readonly step: number;
  /** The same on one window, which is what polish takes. */
  readonly windowStep: number;
  /** One window through one block, forward. */
  readonly pass: number;
  /** One window through the head. */
  readonly head: number;
  /** Folding and checking one block. */
  readonly fold: number;
  /** Rotating one block's weights. */
  readonly rotate: number;
  /** One op that does next to nothing. */
  readonly call: number;
}
