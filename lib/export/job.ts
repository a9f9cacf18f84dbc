/** job.json: what a run is, how far it has come, and what it found. */

import { AqError } from "../errors.ts";
import type { BlockReport, PolishReport, QuantizeResult } from "../types.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";
import type { TokenNumbers } from "./weights.ts";

export const JOB_FORMAT = 1;

/** A finished block. */
export interface JobBlock {
  /** Of its file. */
  readonly sha256: string;
  readonly report: BlockReport;
  /** Clipping logits of its activations. */
  readonly tokenClips: Readonly<Record<string, number>>;
  /** Global scales of its activations, in NVFP4. */
  readonly inputGlobals?: Readonly<Record<string, number>> | undefined;
  /** Of the file with what was learned, in a run that polishes. */
  readonly learnedSha256?: string | undefined;
}

/** Blocks as each was finished, or as all of them were polished: folders of the run. */
export type BlockSet = "blocks" | "polished";

/** A polish that is done. */
export interface JobPolish {
  readonly report: PolishReport;
  /** The polished blocks; empty where the starting state was the best. */
  readonly blocks: readonly Pick<JobBlock, "sha256" | "tokenClips" | "inputGlobals">[];
}

/** Blocks in `finished` are stored; the next one is at work. */
export interface Job {
  readonly format: number;
  readonly writtenBy: string;
  readonly status: "running" | "done";
  /** Folder of the source. */
  readonly model: string;
  /** The calibration text, as it is said to people. */
  readonly text: string;
  /** What the result depends on (calibration/identity.ts). */
  readonly identity: JsonObject;
  readonly blocks: number;
  /** Sentences that a person should have read, of all sessions. */
  readonly notes: readonly string[];
  /** SHA-256 of the calibration windows' ids, once the model has written them. */
  readonly written?: string | undefined;
  /** Null until it is measured. */
  readonly pplBefore: number | null;
  readonly finished: readonly JobBlock[];
  /** Once it is there, its blocks stand in for those in `finished`. */
  readonly polish?: JobPolish | undefined;
  /** Of all sessions so far. */
  readonly seconds: number;
  /** Null until the run is done. */
  readonly result: Omit<QuantizeResult, "out"> | null;
}

/** Which of the stored blocks count, and the numbers of their activations. */
export function liveBlocks({ finished, polish }: Job): {
  readonly set: BlockSet;
  readonly tokenClips: TokenNumbers["tokenClips"][];
  readonly inputGlobals: TokenNumbers["inputGlobals"][];
} {
  const isPolished = polish !== undefined && polish.blocks.length > 0;
  const live = isPolished ? polish.blocks : finished;
  return {
    set: isPolished ? "polished" : "blocks",
    tokenClips: live.map(({ tokenClips }) => tokenClips),
    inputGlobals: live.map(({ inputGlobals = {} }) => inputGlobals),
  };
}

/**
 * Checks what was read from a job.json.
 *
 * Throws: AQ_FORMAT naming `where`, what was expected and the way out.
 */
export function checkJob(json: JsonObject, where: string): Job {
  const fail = (field: string, expected: string): never => {
    throw new AqError(
      "AQ_FORMAT",
      `${where}: expected ${expected} as "${field}", got ${kindOf(json[field])}; start the run anew with --overwrite`,
    );
  };
  if (json["format"] !== JOB_FORMAT) fail("format", String(JOB_FORMAT));
  if (json["status"] !== "running" && json["status"] !== "done") fail("status", "running or done");
  for (const field of ["writtenBy", "model", "text"]) {
    if (typeof json[field] !== "string") fail(field, "a text");
  }
  for (const field of ["blocks", "seconds"]) {
    if (!(typeof json[field] === "number" && json[field] >= 0)) fail(field, "a number");
  }
  if (!isJsonObject(json["identity"])) fail("identity", "an object");
  if (json["pplBefore"] !== null && typeof json["pplBefore"] !== "number") {
    fail("pplBefore", "a number or null");
  }
  const notes = json["notes"];
  if (!Array.isArray(notes) || !notes.every((note) => typeof note === "string")) {
    fail("notes", "a list of texts");
  }
  const finished = json["finished"];
  if (!Array.isArray(finished) || !finished.every(isJobBlock)) {
    fail("finished", "a list of blocks");
  }
  const written = json["written"];
  if (written !== undefined && typeof written !== "string") fail("written", "a text");
  const polish = json["polish"];
  if (polish !== undefined && !isJobPolish(polish)) fail("polish", "polished blocks");
  const isDone = json["status"] === "done";
  if (isDone !== isJsonObject(json["result"])) fail("result", isDone ? "an object" : "null");
  return json as unknown as Job;
}

function isJobBlock(value: unknown): boolean {
  return isStored(value) && isJsonObject((value as JsonObject)["report"]);
}

function isJobPolish(value: unknown): boolean {
  return (
    isJsonObject(value) &&
    isJsonObject(value["report"]) &&
    Array.isArray(value["blocks"]) &&
    value["blocks"].every(isStored)
  );
}

/** A file's hash, and the numbers of activations that belong to it. */
function isStored(value: unknown): boolean {
  return (
    isJsonObject(value) &&
    typeof value["sha256"] === "string" &&
    isNumbers(value["tokenClips"]) &&
    (value["inputGlobals"] === undefined || isNumbers(value["inputGlobals"]))
  );
}

function isNumbers(value: unknown): boolean {
  return isJsonObject(value) && Object.values(value).every((number) => Number.isFinite(number));
}
