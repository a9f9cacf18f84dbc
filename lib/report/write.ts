/** Puts a run's report on disk: report.json for programs, report.html for people. */

import * as path from "node:path";
import { REPORT_FILES } from "../util/layout.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";
import { renderHtml } from "./html.ts";
import type { RunReport } from "./types.ts";

/** Writes both files into a folder that exists, each atomically. Throws: AQ_FILE. */
export function writeReport(dir: string, report: RunReport): void {
  writeFileAtomic(path.join(dir, REPORT_FILES.json), `${JSON.stringify(report, null, 2)}\n`);
  writeFileAtomic(path.join(dir, REPORT_FILES.html), renderHtml(report));
}
