/**
 * A file that appears under its name only when it is complete and on disk; until then it has a temporary
 * name beside the final one, so that the rename stays on one file system.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { fileError, syncFolder, writeFully } from "./fs.ts";

export class UnfinishedFile {
  readonly file: string;
  readonly #temporary: string;
  #fd: number | null;

  /** Throws: AQ_FILE when the file cannot be created. */
  constructor(file: string) {
    this.file = file;
    this.#temporary = temporaryName(file);
    try {
      this.#fd = fs.openSync(this.#temporary, "w");
    } catch (error) {
      throw fileError("create", this.#temporary, error);
    }
  }

  /** Appends all of `bytes`; gives up when the disk refuses. Throws: AQ_FILE. */
  append(bytes: Uint8Array): void {
    const fd = this.#open();
    try {
      writeFully(fd, bytes, this.file);
    } catch (error) {
      this.abort();
      throw error;
    }
  }

  /** On disk, and under the final name; else gives up. Throws: AQ_FILE. */
  finish(): void {
    const fd = this.#open();
    try {
      fs.fsyncSync(fd);
      this.#fd = null;
      fs.closeSync(fd);
      fs.renameSync(this.#temporary, this.file);
    } catch (error) {
      this.abort();
      throw fileError("write", this.file, error);
    }
    syncFolder(path.dirname(this.file));
  }

  /** Gives up and removes what was written; does nothing after `finish`. */
  abort(): void {
    if (this.#fd !== null) fs.closeSync(this.#fd);
    this.#fd = null;
    fs.rmSync(this.#temporary, { force: true });
  }

  #open(): number {
    if (this.#fd === null) {
      throw new AqError("AQ_INTERNAL", `${this.file} was already finished or given up.`);
    }
    return this.#fd;
  }
}

/** Writes a small file whole. Throws: AQ_FILE. */
export function writeFileAtomic(file: string, content: string | Uint8Array): void {
  const unfinished = new UnfinishedFile(file);
  unfinished.append(typeof content === "string" ? Buffer.from(content, "utf8") : content);
  unfinished.finish();
}

/** Name of the unfinished twin of a file. */
function temporaryName(file: string): string {
  return `${file}.tmp-${process.pid}`;
}

/** Is this the name of an unfinished twin, of any process? */
export function isTemporaryName(name: string): boolean {
  return /\.tmp-\d+$/.test(name);
}
