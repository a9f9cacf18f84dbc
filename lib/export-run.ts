/** Writes a finished run in another format. */

import { setImmediate } from "node:timers/promises";
import { AqError } from "./errors.ts";
import type { ExportEvent, ExportOptions, ExportResult, VerifiedCounts } from "./export-types.ts";
import { checkPlace, contentsOf, writeFolder } from "./formats/folder.ts";
import type { Format } from "./formats/format.ts";
import { writeRecord } from "./formats/record.ts";
import { formatOf } from "./formats/registry.ts";
import { FinishedRun } from "./formats/run.ts";
import type { Setting } from "./formats/setting.ts";
import { formatFor } from "./formats/targets.ts";
import type { RunHooks } from "./types.ts";
import { verify } from "./verify.ts";

/**
 * Writes the run in `options.run` into `options.out`, in a format or in the one that a target loads.
 *
 * Throws: AQ_ARG for bad options, AQ_MODEL when the format cannot carry the run, AQ_FILE and AQ_FORMAT
 * when the run is damaged, AQ_STOPPED when the signal fires. Then nothing is left in `out`.
 */
export async function exportRun(
  options: ExportOptions,
  hooks: RunHooks<ExportEvent> = {},
): Promise<ExportResult> {
  const { format, target, overwrite = false } = options;
  if ((format === undefined) === (target === undefined)) {
    throw new AqError("AQ_ARG", "export takes either a format or a target; give one of them");
  }
  const named = format === undefined ? null : formatOf(format);
  checkPlace(options.out, overwrite);
  const run = FinishedRun.open(options.run);
  try {
    const chosen = named ?? formatFor(target ?? "", run.setting);
    return await writeRun(run, chosen, options.out, overwrite, hooks);
  } finally {
    run.close();
  }
}

/** Throws: AQ_MODEL when the format cannot carry the setting. */
export function checkFormat(format: Format, setting: Setting): void {
  const reason = format.refuses(setting);
  if (reason !== undefined) throw new AqError("AQ_MODEL", `${reason}.`);
}

/** Writes an open run. Throws: as `exportRun`. */
export async function writeRun(
  run: FinishedRun,
  format: Format,
  out: string,
  overwrite: boolean,
  { onEvent, signal }: RunHooks<ExportEvent>,
): Promise<ExportResult> {
  const started = performance.now();
  checkFormat(format, run.setting);
  const { name } = format;
  const onTensor = async (tensor: string): Promise<void> => {
    // Between two tensors, so that a signal is heard.
    await setImmediate();
    if (signal?.aborted) {
      throw new AqError("AQ_STOPPED", `The export to ${out} was stopped; nothing of it is left.`);
    }
    onEvent?.({ event: "write", format: name, tensor });
  };
  const written = await writeFolder(out, overwrite, async (dir) => {
    const done = await format.write(run, { dir, onTensor, signal });
    writeRecord(dir, name, run, done);
    // Before it gets its name: what is wrong is never seen.
    return {
      ...done,
      verified: await readBack(run, dir, signal),
    };
  });
  const seconds = (performance.now() - started) / 1000;
  return { format: name, out, ...contentsOf(out), ...written, seconds };
}

/** Reads the folder by other code and compares it with the run. Throws: AQ_FORMAT where it differs. */
async function readBack(
  run: FinishedRun,
  dir: string,
  signal: AbortSignal | undefined,
): Promise<VerifiedCounts> {
  const [folder] = (await verify({ dir, run: run.dir }, { ...(signal ? { signal } : {}) })).folders;
  if (!folder) throw new TypeError(`nothing was written into ${dir}`);
  const { linears, codes, others } = folder;
  return { linears, codes, others };
}
