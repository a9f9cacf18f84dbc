/** aq_export.json: which run a folder was written from, and what its format changed. */

import * as path from "node:path";
import type { FormatName } from "../export-types.ts";
import type { JsonObject } from "../util/json.ts";
import { packageVersion } from "../util/package.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";
import type { Written } from "./format.ts";
import type { FinishedRun } from "./run.ts";

export const EXPORT_RECORD = "aq_export.json";
const RECORD_FORMAT = 1;

/** Throws: AQ_FILE. */
export function writeRecord(
  dir: string,
  format: FormatName,
  run: FinishedRun,
  written: Written,
): void {
  const { wbits, abits, groupSize, symmetric, grids, numbers } = run.config.scheme;
  const record: JsonObject = {
    record: RECORD_FORMAT,
    format,
    written_by: `aq-native ${packageVersion()}`,
    run: { blocks: run.hashes },
    setting: {
      wbits,
      abits,
      group_size: groupSize,
      symmetric,
      ...(numbers ? { numbers } : {}),
      ...(grids ? { grids } : {}),
      recipe: run.config.recipe,
    },
    change: written.change,
    other_change: written.otherChange,
  };
  writeFileAtomic(path.join(dir, EXPORT_RECORD), `${JSON.stringify(record, null, 2)}\n`);
}
