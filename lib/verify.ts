/** Whether written folders hold what their run found, read back by code that shares nothing with writers. */

import * as path from "node:path";
import { setImmediate } from "node:timers/promises";
import { openCheckpoint } from "./checkpoint/folder.ts";
import { AqError } from "./errors.ts";
import { packedWeights } from "./packed/open.ts";
import type { RunHooks } from "./types.ts";
import { checkDescription } from "./verify/description.ts";
import { checkRecord, findRun, recordedFormat, type Target, targetsOf } from "./verify/find.ts";
import { type OnTensor, verifyFolder } from "./verify/folder.ts";
import { verifyGguf } from "./verify/gguf/verify.ts";
import { outerOfOutput, outerOfSource } from "./verify/outer.ts";
import { SavedRun } from "./verify/state.ts";
import { Tally } from "./verify/tally.ts";
import type { VerifiedFolder, VerifyEvent, VerifyOptions, VerifyResult } from "./verify/types.ts";

export type { VerifiedFolder, VerifyEvent, VerifyOptions, VerifyResult } from "./verify/types.ts";

/**
 * Compares codes, scales and zeros of everything in `dir` with the run's saved state, bit for bit, and the
 * other tensors with the run's output.
 *
 * Throws: AQ_FORMAT at the first difference, with tensor, index, what was expected and what was found;
 * AQ_ARG when there is no finished run to compare with; AQ_STOPPED when the signal fires; AQ_FILE.
 */
export async function verify(
  options: VerifyOptions,
  hooks: RunHooks<VerifyEvent> = {},
): Promise<VerifyResult> {
  const targets = targetsOf(options.dir);
  const run = new SavedRun(options.run ?? findRun(options.dir));
  try {
    const folders: VerifiedFolder[] = [];
    for (const target of targets) folders.push(await verifyTarget(run, target, hooks));
    return { run: run.dir, folders };
  } finally {
    run.close();
  }
}

function verifyTarget(
  run: SavedRun,
  target: Target,
  hooks: RunHooks<VerifyEvent>,
): Promise<VerifiedFolder> {
  checkRecord(target.kind === "gguf" ? path.dirname(target.path) : target.path, run);
  return target.kind === "gguf"
    ? verifyFile(run, target.path, hooks)
    : verifyCheckpoint(run, target.path, hooks);
}

async function verifyFile(
  run: SavedRun,
  file: string,
  hooks: RunHooks<VerifyEvent>,
): Promise<VerifiedFolder> {
  const format = recordedFormat(path.dirname(file)) ?? "gguf";
  const tally = new Tally();
  await verifyGguf(run, file, outerOfOutput(run), tally, follow(format, hooks));
  return tally.result(format, file);
}

async function verifyCheckpoint(
  run: SavedRun,
  dir: string,
  hooks: RunHooks<VerifyEvent>,
): Promise<VerifiedFolder> {
  const folder = openCheckpoint(dir);
  try {
    const format = packedWeights(folder)?.format.split(",")[0] ?? "hf";
    const isOutput = path.resolve(dir) === path.resolve(run.dir);
    const source = isOutput ? outerOfSource(run) : null;
    try {
      checkDescription(run, folder);
      const outer = source?.values ?? outerOfOutput(run);
      const tally = new Tally();
      await verifyFolder(run, folder, outer, tally, follow(format, hooks));
      return tally.result(format, dir);
    } finally {
      source?.close();
    }
  } finally {
    folder.close();
  }
}

/** Tells of each tensor, and stops when asked to. */
function follow(format: string, { onEvent, signal }: RunHooks<VerifyEvent>): OnTensor {
  return async (tensor) => {
    onEvent?.({ event: "verify", format, tensor });
    await setImmediate();
    if (signal?.aborted) throw new AqError("AQ_STOPPED", "the comparison was stopped");
  };
}
