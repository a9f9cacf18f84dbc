/**
 * The folder that an export makes. It is written beside its place, under a name that begins with a dot,
 * and renamed when all of it is on disk: nobody ever sees half of it under its own name.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { companions } from "../checkpoint/output-folder.ts";
import { AqError } from "../errors.ts";
import { AQ_CONFIG_NAME } from "../export/aq-config.ts";
import { fileError, makeFolder, syncFolder } from "../util/fs.ts";
import { EXPORT_RECORD } from "./record.ts";

/** What exports write beside the tokenizer's files. */
const OWN_FILES: ReadonlySet<string> = new Set([
  "config.json",
  "quantize_config.json",
  "hf_quant_config.json",
  AQ_CONFIG_NAME,
  EXPORT_RECORD,
]);
const WEIGHT_FILES = /\.(safetensors|safetensors\.index\.json|gguf)$/;

/** Folders that this process is filling: its number does not tell them apart. */
const active = new Set<string>();

/**
 * Refuses a place that holds something, before any work is done. With `overwrite`, what an earlier
 * export left there may be replaced, and nothing else.
 *
 * Throws: AQ_ARG, AQ_FILE.
 */
export function checkPlace(dir: string, overwrite: boolean): void {
  const stat = fs.statSync(dir, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isDirectory()) {
    throw new AqError("AQ_ARG", `The output ${dir} is a file; name a folder.`);
  }
  const names = listOf(dir);
  if (names.length === 0) return;
  if (!overwrite) {
    throw new AqError(
      "AQ_ARG",
      `The output ${dir} is not empty (${names.slice(0, 3).join(", ")}${names.length > 3 ? ", ..." : ""}); name another folder, or replace it with --overwrite.`,
    );
  }
  const foreign = foreignName(dir, names);
  if (foreign !== undefined) {
    throw new AqError(
      "AQ_ARG",
      `The output ${dir} holds "${foreign}", which no export wrote, so it is not replaced; name another folder.`,
    );
  }
}

/** A name that does not belong to an export, or nothing. */
function foreignName(dir: string, names: readonly string[]): string | undefined {
  const travelling = new Set(companions(dir));
  const isOwn = (name: string): boolean =>
    (OWN_FILES.has(name) || WEIGHT_FILES.test(name) || travelling.has(name)) &&
    fs.statSync(path.join(dir, name), { throwIfNoEntry: false })?.isFile() === true;
  return names.find((name) => !isOwn(name));
}

/** Is this a folder that an export wrote, and nothing else is in it? */
export function isExport(dir: string): boolean {
  if (!fs.existsSync(path.join(dir, EXPORT_RECORD))) return false;
  return foreignName(dir, listOf(dir)) === undefined;
}

/**
 * Fills a new folder and puts it in place of `dir`. After an error what was there before still is.
 *
 * Throws: what `fill` throws, AQ_FILE.
 */
export async function writeFolder<T>(
  dir: string,
  overwrite: boolean,
  fill: (staging: string) => Promise<T>,
): Promise<T> {
  const place = path.resolve(dir);
  const [parent, name] = [path.dirname(place), path.basename(place)];
  const staging = path.join(parent, `.${name}.staging-${process.pid}`);
  const old = path.join(parent, `.${name}.old-${process.pid}`);
  if (active.has(staging)) {
    throw new AqError("AQ_ARG", `Another export is writing ${dir}; name another folder.`);
  }
  active.add(staging);
  try {
    makeFolder(parent);
    removeLeftovers(parent, name);
    checkPlace(dir, overwrite);
    fs.mkdirSync(staging);
    const result = await fill(staging);
    syncFolder(staging);
    checkPlace(dir, overwrite);
    if (fs.existsSync(place)) fs.renameSync(place, old);
    try {
      fs.renameSync(staging, place);
    } catch (error) {
      if (fs.existsSync(old)) fs.renameSync(old, place);
      throw error;
    }
    syncFolder(parent);
    fs.rmSync(old, { recursive: true, force: true });
    return result;
  } catch (error) {
    throw fileError("write", dir, error);
  } finally {
    active.delete(staging);
    fs.rmSync(staging, { recursive: true, force: true });
  }
}

/**
 * Tidies up after a killed export of the same folder: what it had half written goes, and what it had
 * just moved aside comes back. Processes that are still at work are left alone.
 */
function removeLeftovers(parent: string, name: string): void {
  for (const found of fs.readdirSync(parent)) {
    if (!found.startsWith(`.${name}.`)) continue;
    const [, kind, pid = ""] = /^(staging|old)-(\d+)$/.exec(found.slice(name.length + 2)) ?? [];
    if (kind === undefined || isAtWork(Number(pid))) continue;
    const left = path.join(parent, found);
    const place = path.join(parent, name);
    if (kind === "old" && !fs.existsSync(place)) fs.renameSync(left, place);
    else fs.rmSync(left, { recursive: true, force: true });
  }
}

function isAtWork(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Names and bytes of what was written. */
export function contentsOf(dir: string): { files: string[]; bytes: number } {
  const files = listOf(dir).sort();
  const bytes = files.reduce((sum, name) => sum + fs.statSync(path.join(dir, name)).size, 0);
  return { files, bytes };
}

function listOf(dir: string): string[] {
  try {
    return fs.readdirSync(dir);
  } catch (error) {
    throw fileError("list", dir, error);
  }
}
