/** What is in an output folder, and whether a run may start there, go on, or is finished already. */

import * as fs from "node:fs";
import * as path from "node:path";
import { isStagingName } from "../checkpoint/output-folder.ts";
import { AqError } from "../errors.ts";
import type { Job } from "../export/job.ts";
import { RUN_FOLDER, type RunState } from "../export/run-state.ts";
import type { QuantizeOptions, ResumeMode } from "../types.ts";
import { describeDifference, type Identity } from "./identity.ts";

export const RESUME_MODES: readonly ResumeMode[] = ["auto", "required", "never"];

/** Throws: AQ_ARG for an unknown mode or one that contradicts `overwrite`. */
export function checkResume({ resume = "auto", overwrite }: QuantizeOptions): ResumeMode {
  if (!RESUME_MODES.includes(resume)) {
    throw new AqError(
      "AQ_ARG",
      `resume must be ${RESUME_MODES.join(", ")}, got ${JSON.stringify(resume)}`,
    );
  }
  if (resume === "required" && overwrite) {
    throw new AqError(
      "AQ_ARG",
      "--resume required goes on with a run and --overwrite starts anew; give one of them",
    );
  }
  return resume;
}

/**
 * The run to go on with, or null to start anew.
 *
 * Throws: AQ_ARG when the folder holds what must not be touched, or nothing where a run is required;
 * AQ_FORMAT when its job.json is damaged.
 */
export function findJob(out: string, run: RunState, options: QuantizeOptions): Job | null {
  const resume = checkResume(options);
  if (options.overwrite) return null;
  const job = run.readJob();
  if (job && resume === "never") {
    throw new AqError(
      "AQ_ARG",
      `The output ${out} holds a run already (${job.status === "done" ? "finished" : "unfinished"}) and --resume is never; name another folder, or --overwrite it.`,
    );
  }
  if (!job && resume === "required") {
    throw new AqError(
      "AQ_ARG",
      `There is no run in ${out} to go on with (no ${path.join(RUN_FOLDER, "job.json")}); leave --resume out to start one.`,
    );
  }
  return job;
}

/** Throws: AQ_ARG naming the first field in which the run in the folder is another one. */
export function checkIdentity(out: string, job: Job, identity: Identity): void {
  const difference = describeDifference(job.identity, identity);
  if (difference === null) return;
  throw new AqError(
    "AQ_ARG",
    `The output ${out} holds another run: ${difference}. Repeat the command that started it, name another folder, or --overwrite it.`,
  );
}

/** Names in an output folder that stand for nothing finished, and so are no reason to refuse it. */
export function leftovers(out: string, run: RunState): string[] {
  if (!fs.existsSync(out)) return [];
  return fs
    .readdirSync(out)
    .filter((name) => isStagingName(name) || (name === RUN_FOLDER && run.isBlank));
}

/**
 * How many of the job's blocks are stored whole. The first damaged one ends the count: it and what
 * follows are computed again.
 */
export function countIntact(run: RunState, job: Job, onNote: (text: string) => void): number {
  for (const [block, { sha256 }] of job.finished.entries()) {
    const found = run.blockHash(block);
    if (found === sha256) continue;
    onNote(
      `${run.blockFile(block)} ${found === null ? "is missing" : "was changed since it was written"}: going on from block ${block + 1}`,
    );
    return block;
  }
  return job.finished.length;
}
