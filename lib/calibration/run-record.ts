/** Keeps job.json in step with the run. */

import { JOB_FORMAT, type Job, type JobBlock } from "../export/job.ts";
import type { RunState } from "../export/run-state.ts";
import { packageVersion } from "../util/package.ts";
import type { Identity } from "./identity.ts";

/** A job that has not begun. */
export function newJob(about: {
  readonly model: string;
  readonly text: string;
  readonly identity: Identity;
  readonly blocks: number;
}): Job {
  return {
    format: JOB_FORMAT,
    writtenBy: `aq-native ${packageVersion()}`,
    status: "running",
    ...about,
    notes: [],
    pplBefore: null,
    finished: [],
    seconds: 0,
    result: null,
  };
}

/** The job of the session at hand; each change is on disk when the call returns. */
export class RunRecord {
  readonly #run: RunState;
  readonly #earlier: number;
  readonly #started: number;
  readonly #notes: Set<string>;
  #job: Job;

  /** `started`: when the session began, as performance.now() said. */
  constructor(run: RunState, job: Job, started: number) {
    this.#run = run;
    this.#job = job;
    this.#earlier = job.seconds;
    this.#started = started;
    this.#notes = new Set(job.notes);
  }

  get job(): Job {
    return this.#job;
  }

  /** Seconds of all sessions. */
  get seconds(): number {
    return this.#earlier + (performance.now() - this.#started) / 1000;
  }

  /** Sentences of all sessions. */
  get notes(): readonly string[] {
    return [...this.#notes];
  }

  /** Keeps a sentence; the next `update` writes it. */
  note(text: string): void {
    this.#notes.add(text);
  }

  /** Throws: AQ_FILE. */
  update(
    change: Partial<
      Pick<Job, "status" | "written" | "pplBefore" | "finished" | "polish" | "result">
    >,
  ): void {
    this.#job = { ...this.#job, ...change, notes: [...this.#notes], seconds: this.seconds };
    this.#run.writeJob(this.#job);
  }

  /** Records a block whose file is stored. Throws: AQ_FILE. */
  addBlock(block: Omit<JobBlock, "sha256">): void {
    const index = this.#job.finished.length;
    const sha256 = this.#run.blockHash(index);
    if (sha256 === null) throw new TypeError("a block is recorded before it is stored");
    const learnedSha256 = this.#run.learnedHash(index) ?? undefined;
    this.update({ finished: [...this.#job.finished, { sha256, ...block, learnedSha256 }] });
  }
}
