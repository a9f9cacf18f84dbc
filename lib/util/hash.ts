/** SHA-256, as lower-case hex. */

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { setImmediate } from "node:timers/promises";
import { fileError, openForReading } from "./fs.ts";

const CHUNK_BYTES = 8 * 2 ** 20;

export function sha256(...parts: readonly (string | Uint8Array)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
}

/** Hash of a file's content. Throws: AQ_FILE. */
export function sha256File(file: string): string {
  const hash = createHash("sha256");
  for (const chunk of chunksOf(file)) hash.update(chunk);
  return hash.digest("hex");
}

/** The same for a file of any size: between two pieces it lets `onPiece` stop it by throwing. */
export async function sha256LargeFile(file: string, onPiece: () => void): Promise<string> {
  const hash = createHash("sha256");
  for (const chunk of chunksOf(file)) {
    hash.update(chunk);
    await setImmediate();
    onPiece();
  }
  return hash.digest("hex");
}

/** Pieces of a file, each valid until the next is asked for. */
function* chunksOf(file: string): Generator<Uint8Array> {
  const fd = openForReading(file);
  try {
    const buffer = Buffer.allocUnsafe(CHUNK_BYTES);
    for (;;) {
      let got: number;
      try {
        got = fs.readSync(fd, buffer, 0, buffer.length, null);
      } catch (error) {
        throw fileError("read", file, error);
      }
      if (got === 0) return;
      yield buffer.subarray(0, got);
    }
  } finally {
    fs.closeSync(fd);
  }
}
