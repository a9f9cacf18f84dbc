/** What is in an output folder, and whether a run may start there, go on, or is finished already. */

import * as fs from "node:fs";
import * as path from "node:path";
import { isStagingName } from "../checkpoint/output-folder.ts";
import { AqError } from "../errors.ts";
import type { Job, JobPolish } from "../export/job.ts";
import type { RunState } from "../export/run-state.ts";
import type { QuantizeOptions, ResumeMode } from "../types.ts";
import { sha256File } from "../util/hash.ts";
import { RUN_FOLDER } from "../util/layout.ts";
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

/** What of the job is stored whole, and so need not be computed again. */
export interface Intact {
  readonly blocks: number;
  readonly polish: JobPolish | undefined;
}

/**
 * The first damaged block ends the count: it and what follows are computed again. As long as polish is
 * to come a block is whole only with what was learned for it; afterwards the polished ones count.
 */
export function findIntact(run: RunState, job: Job, onNote: (text: string) => void): Intact {
  const { finished, polish } = job;
  if (polish) {
    const isPolished = polish.blocks.length > 0;
    const live = isPolished ? polish.blocks : finished;
    const damage = live
      .map(({ sha256 }, i) =>
        damageOf(run.blockFile(i, isPolished ? "polished" : "blocks"), sha256),
      )
      .find((found) => found !== null);
    if (!damage) return { blocks: finished.length, polish };
    onNote(`${damage}: polishing again`);
  }
  for (const [block, { sha256, learnedSha256 }] of finished.entries()) {
    const damage =
      damageOf(run.blockFile(block), sha256) ??
      (learnedSha256 ? damageOf(run.learnedFile(block), learnedSha256) : null);
    if (damage === null) continue;
    onNote(`${damage}: going on from block ${block + 1}`);
    return { blocks: block, polish: undefined };
  }
  return { blocks: finished.length, polish: undefined };
}

/** What is wrong with a file, in words, or null. */
function damageOf(file: string, sha256: string): string | null {
  if (!fs.existsSync(file)) return `${file} is missing`;
  return sha256File(file) === sha256 ? null : `${file} was changed since it was written`;
}
