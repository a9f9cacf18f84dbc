/**
 * `written.jsonl` in the run folder: the calibration windows that the model wrote, one JSON object a line,
 * with its text for people to read, its ids, and their hash.
 */

import * as fs from "node:fs";
import { fileError } from "../util/fs.ts";
import { sha256 } from "../util/hash.ts";
import { isJsonObject } from "../util/json.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";

export interface WrittenWindow {
  readonly text: string;
  readonly ids: Int32Array;
}

/** Throws: AQ_FILE. */
export function storeWritten(file: string, windows: readonly WrittenWindow[]): void {
  const lines = windows.map(({ text, ids }) =>
    JSON.stringify({ text, sha256: hashOf([ids]), ids: Array.from(ids) }),
  );
  writeFileAtomic(file, `${lines.join("\n")}\n`);
}

/**
 * At most `count` windows of `seqlen` ids, up to the first line that is not what was written, and what is
 * wrong with that, in words. Without a file there are none. Throws: AQ_FILE.
 */
export function readWritten(
  file: string,
  seqlen: number,
  count: number,
): { windows: WrittenWindow[]; damage: string | null } {
  const windows: WrittenWindow[] = [];
  if (!fs.existsSync(file)) return { windows, damage: null };
  let content: string;
  try {
    content = fs.readFileSync(file, "utf8");
  } catch (error) {
    throw fileError("read", file, error);
  }
  for (const line of content.split("\n").slice(0, count)) {
    if (line === "") break;
    const window = parse(line, seqlen);
    if (!window) {
      const damage = `line ${windows.length + 1} of ${file} is not what was written there`;
      return { windows, damage };
    }
    windows.push(window);
  }
  return { windows, damage: null };
}

/** SHA-256 of all ids. */
export function hashOf(windows: readonly Int32Array[]): string {
  return sha256(...windows.map((w) => new Uint8Array(w.buffer, w.byteOffset, w.byteLength)));
}

function parse(line: string, seqlen: number): WrittenWindow | undefined {
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (!isJsonObject(json)) return undefined;
  const { text, sha256: hash, ids } = json;
  if (typeof text !== "string" || !Array.isArray(ids) || ids.length !== seqlen) return undefined;
  const window = { text, ids: Int32Array.from(ids as number[]) };
  return hashOf([window.ids]) === hash ? window : undefined;
}
