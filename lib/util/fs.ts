/**
 * Files without surprises: whole reads and writes, and system errors turned into
 * one sentence. Everything but reading ahead is synchronous: callers sit between two native calls
 * anyway, and a synchronous write cannot be left half awaited.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { promisify } from "node:util";
import { AqError } from "../errors.ts";

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "it does not exist",
  EACCES: "permission denied",
  EPERM: "the operation is not permitted",
  EEXIST: "something of that name is already there",
  EISDIR: "it is a folder",
  ENOTDIR: "a part of the path is not a folder",
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EFBIG: "the file system allows no file of this size",
  EROFS: "the file system is read-only",
  EMFILE: "too many files are open",
  EIO: "the disk reported an error",
  ELOOP: "its symbolic links form a loop",
};

function errnoOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/**
 * Turns a system error into AQ_FILE: what could not be done to which path, and why. Any other error
 * (a callback's own) comes back as it is.
 */
export function fileError(doing: string, file: string, error: unknown): unknown {
  const code = errnoOf(error);
  if (code === "" || error instanceof AqError) return error;
  const reason = REASONS[code] ?? (error as Error).message;
  return new AqError("AQ_FILE", `Cannot ${doing} ${file}: ${reason}.`, { cause: error });
}

/** Opens a file for reading. Throws: AQ_FILE. */
export function openForReading(file: string): number {
  try {
    return fs.openSync(file, "r");
  } catch (error) {
    throw fileError("open", file, error);
  }
}

/**
 * Fills `target` from `position` of an open file.
 *
 * Throws: AQ_FILE when the file ends before `target` is full, or cannot be read.
 */
export function readFully(fd: number, target: Uint8Array, position: number, file: string): void {
  let done = 0;
  while (done < target.byteLength) {
    let got: number;
    try {
      // One call moves less than 2 GiB on Linux; larger wishes are cut here.
      const wish = Math.min(target.byteLength - done, 1 << 30);
      got = fs.readSync(fd, target, done, wish, position + done);
    } catch (error) {
      throw fileError("read", file, error);
    }
    if (got === 0) throw cutOff(file, position + done, position + target.byteLength);
    done += got;
  }
}

/** The same on another thread. The descriptor must stay open until then. */
export async function readFullyAsync(
  fd: number,
  target: Uint8Array,
  position: number,
  file: string,
): Promise<void> {
  const read = promisify(fs.read);
  let done = 0;
  while (done < target.byteLength) {
    const wish = Math.min(target.byteLength - done, 1 << 30);
    let got: number;
    try {
      got = (await read(fd, target, done, wish, position + done)).bytesRead;
    } catch (error) {
      throw fileError("read", file, error);
    }
    if (got === 0) throw cutOff(file, position + done, position + target.byteLength);
    done += got;
  }
}

function cutOff(file: string, end: number, expected: number): AqError {
  return new AqError(
    "AQ_FILE",
    `${file} ends at byte ${end}, expected at least ${expected} bytes; it was cut or changed while in use.`,
  );
}

/** Writes all of `bytes` to an open file: at `position`, or without one at its end. Throws: AQ_FILE. */
export function writeFully(
  fd: number,
  bytes: Uint8Array,
  file: string,
  position: number | null = null,
): void {
  let done = 0;
  while (done < bytes.byteLength) {
    try {
      const at = position === null ? null : position + done;
      done += fs.writeSync(fd, bytes, done, Math.min(bytes.byteLength - done, 1 << 30), at);
    } catch (error) {
      throw fileError("write", file, error);
    }
  }
}

/** Creates a folder and those above it. Throws: AQ_FILE. */
export function makeFolder(dir: string): void {
  try {
    fs.mkdirSync(dir, { recursive: true });
  } catch (error) {
    throw fileError("create", dir, reasonOf(dir, error));
  }
}

/** Node says ENOENT when a folder above cannot be written to: the reason is what that one says. */
function reasonOf(dir: string, error: unknown): unknown {
  if (errnoOf(error) !== "ENOENT") return error;
  let above = path.dirname(path.resolve(dir));
  while (!fs.existsSync(above) && above !== path.dirname(above)) above = path.dirname(above);
  try {
    fs.accessSync(above, fs.constants.W_OK);
    return error;
  } catch (cause) {
    return cause;
  }
}

/** Makes renames and new names in a folder durable, where the file system lets a folder be synced. */
export function syncFolder(dir: string): void {
  let fd: number;
  try {
    fd = fs.openSync(dir, "r");
  } catch {
    return;
  }
  try {
    fs.fsyncSync(fd);
  } catch {
    // Some file systems refuse to sync folders; the rename is atomic there all the same.
  } finally {
    fs.closeSync(fd);
  }
}
