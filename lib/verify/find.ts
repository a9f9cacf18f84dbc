/** What there is to verify in a folder, and the run that it belongs to. */

import * as fs from "node:fs";
import * as path from "node:path";
import { hasFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { liveBlocks } from "../export/job.ts";
import { RunState } from "../export/run-state.ts";
import { isJsonObject, readJsonFile } from "../util/json.ts";
import { RUN_FOLDER } from "../util/layout.ts";

const RECORD = "aq_export.json";

/** A folder of safetensors, or a GGUF file. */
export type Target =
  | { readonly kind: "folder"; readonly path: string }
  | { readonly kind: "gguf"; readonly path: string };

/** Does the folder hold a run? */
function isRun(dir: string): boolean {
  return hasFile(path.join(dir, RUN_FOLDER), "job.json");
}

/**
 * Everything in a folder that a run or an export wrote: a run's own output and the exports in it, one
 * format, or one file.
 *
 * Throws: AQ_FILE when there is nothing of that kind.
 */
export function targetsOf(dir: string): Target[] {
  const stat = fs.statSync(dir, { throwIfNoEntry: false });
  if (!stat) throw new AqError("AQ_FILE", `${dir} does not exist; name a folder that was exported`);
  if (stat.isFile()) return [{ kind: "gguf", path: dir }];
  const own = targetsIn(dir);
  const below = isRun(dir)
    ? subfolders(dir)
        .map((name) => path.join(dir, name))
        .filter((place) => hasFile(place, RECORD))
        .flatMap(targetsIn)
    : [];
  const all = [...own, ...below];
  if (all.length === 0) {
    throw new AqError(
      "AQ_FILE",
      `${dir} holds neither a config.json nor a .gguf file; name a folder that was exported, or the --out of a run`,
    );
  }
  return all;
}

function targetsIn(dir: string): Target[] {
  const files = fs
    .readdirSync(dir)
    .filter((name) => name.endsWith(".gguf") && hasFile(dir, name))
    .sort()
    .map((name): Target => ({ kind: "gguf", path: path.join(dir, name) }));
  const isFolder = hasFile(dir, "config.json") && files.length === 0;
  return isFolder ? [{ kind: "folder", path: dir }] : files;
}

function subfolders(dir: string): string[] {
  return fs
    .readdirSync(dir, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name)
    .sort();
}

/**
 * The run that a folder was written from: above it, or beside it with the blocks that its record names.
 *
 * Throws: AQ_ARG when none is found.
 */
export function findRun(place: string): string {
  const start = path.resolve(place);
  const isFile = fs.statSync(start, { throwIfNoEntry: false })?.isFile() === true;
  const dir = isFile ? path.dirname(start) : start;
  const beside = runBeside(dir);
  if (beside !== null) return beside;
  // A record that names another run's blocks is found out by `checkRecord`, with a sentence of its own.
  for (let at = dir; ; at = path.dirname(at)) {
    if (isRun(at)) return at;
    if (at === path.dirname(at)) break;
  }
  throw new AqError(
    "AQ_ARG",
    `No run was found in, above or beside ${dir}; name the folder that was --out of the run with --run`,
  );
}

function runBeside(dir: string): string | null {
  const blocks = blocksOf(dir);
  const parent = path.dirname(dir);
  if (!blocks || parent === dir) return null;
  let names: string[];
  try {
    names = subfolders(parent);
  } catch {
    return null;
  }
  for (const name of names) {
    const beside = path.join(parent, name);
    if (beside !== dir && isRun(beside) && isSame(hashesOf(beside), blocks)) return beside;
  }
  return null;
}

/** Hashes of the blocks that a run counts as finished; none for a damaged one. */
function hashesOf(run: string): readonly string[] {
  try {
    const job = new RunState(run).readJob();
    if (!job) return [];
    const isPolished = liveBlocks(job).set === "polished";
    return (isPolished ? (job.polish?.blocks ?? []) : job.finished).map(({ sha256 }) => sha256);
  } catch {
    return [];
  }
}

/** The blocks that the record of an export names, or null without one. Throws: AQ_FORMAT. */
function blocksOf(dir: string): readonly unknown[] | null {
  if (!hasFile(dir, RECORD)) return null;
  const { run } = readJsonFile(path.join(dir, RECORD));
  const blocks = isJsonObject(run) ? run["blocks"] : null;
  if (Array.isArray(blocks)) return blocks;
  throw new AqError("AQ_FORMAT", `${path.join(dir, RECORD)} names no blocks of a run`);
}

function isSame(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((hash, i) => hash === b[i]);
}

/** Throws: AQ_ARG when the folder's record names another run. */
export function checkRecord(dir: string, run: { dir: string; hashes: readonly string[] }): void {
  const blocks = blocksOf(dir);
  if (!blocks || isSame(blocks, run.hashes)) return;
  throw new AqError(
    "AQ_ARG",
    `${dir} was written from another run than the one in ${run.dir} (its ${RECORD} names other blocks); name the right one with --run, or export it again`,
  );
}

/** The format that the record of an export names, or null. */
export function recordedFormat(dir: string): string | null {
  if (!hasFile(dir, RECORD)) return null;
  const { format } = readJsonFile(path.join(dir, RECORD));
  return typeof format === "string" ? format.slice(0, 40) : null;
}
