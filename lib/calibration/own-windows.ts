/** The windows that the model writes for a run, and what they have to do with its stored blocks. */

import * as path from "node:path";
import type { RunState } from "../export/run-state.ts";
import type { ComputeDevice } from "../tensor/compute-device.ts";
import type { QuantizeOptions } from "../types.ts";
import type { QuantizeHooks } from "./calibrate-all.ts";
import type { RunRecord } from "./run-record.ts";
import type { RunSettings } from "./settings.ts";
import type { CalibrationText } from "./text.ts";
import { hashOf } from "./written-file.ts";
import { writtenWindows } from "./written-windows.ts";

export interface OwnWindows {
  readonly options: Pick<QuantizeOptions, "model">;
  readonly settings: Pick<RunSettings, "seed">;
  readonly device: Pick<ComputeDevice, "name">;
  readonly text: Pick<CalibrationText, "calibration" | "seqlen">;
  readonly run: Pick<RunState, "dir">;
  readonly record: RunRecord;
  readonly hooks: QuantizeHooks;
}

/**
 * Writes them, or reads what is there. Where they come out otherwise than for the blocks that are stored, as
 * they may on another kind of processor once their file is lost, the blocks are made again.
 *
 * Throws: what writtenWindows throws.
 */
export async function ownWindows(parts: OwnWindows): Promise<readonly Int32Array[]> {
  const { options, settings, device, text, run, record, hooks } = parts;
  const { onEvent, signal } = hooks;
  const windows = await writtenWindows({
    model: options.model,
    device: device.name,
    beginnings: text.calibration,
    seqlen: text.seqlen,
    seed: settings.seed,
    file: path.join(run.dir, "written.jsonl"),
    onEvent,
    signal,
  });
  const written = hashOf(windows);
  const { written: before, finished } = record.job;
  if (before !== undefined && before !== written && finished.length > 0) {
    const text =
      "the model wrote other windows than for the blocks that are stored: going on from block 1";
    onEvent?.({ event: "note", text });
    record.update({ finished: [], polish: undefined });
  }
  record.update({ written });
  return windows;
}
