/** Safetensors files on disk: reading the header, and writing a file as a stream. */

import * as fs from "node:fs";
import { AqError } from "../errors.ts";
import { fileError, readFully } from "../util/fs.ts";
import { UnfinishedFile } from "../util/unfinished-file.ts";
import {
  encodeHeader,
  MAX_HEADER_BYTES,
  parseHeader,
  type SafetensorsHeader,
  type TensorEntry,
  type TensorSpec,
} from "./safetensors-header.ts";

/**
 * Reads and checks the header of an open file; the tensors' bytes are not touched.
 *
 * Throws: AQ_FILE when the file is too short or unreadable, AQ_FORMAT when its header is malformed.
 */
export function readSafetensorsHeader(fd: number, file: string): SafetensorsHeader {
  let stat: fs.Stats;
  try {
    stat = fs.fstatSync(fd);
  } catch (error) {
    throw fileError("read", file, error);
  }
  if (!stat.isFile()) {
    throw new AqError("AQ_FILE", `${file} is not a regular file.`);
  }
  if (stat.size < 8) {
    throw new AqError(
      "AQ_FILE",
      `${file} has ${stat.size} bytes; a safetensors file has at least 8.`,
    );
  }
  const start = Buffer.alloc(8);
  readFully(fd, start, 0, file);
  if (start.toString("latin1") === "version ") {
    throw new AqError(
      "AQ_FILE",
      `${file} is a Git LFS pointer, not the weights; run "git lfs pull" in its folder.`,
    );
  }
  const headerBytes = start.readBigUInt64LE(0);
  if (headerBytes > BigInt(MAX_HEADER_BYTES)) {
    throw new AqError(
      "AQ_FORMAT",
      `The header of ${file} claims ${headerBytes} bytes, expected at most ${MAX_HEADER_BYTES}; this is not a safetensors file.`,
    );
  }
  const length = Number(headerBytes);
  if (length > stat.size - 8) {
    throw new AqError(
      "AQ_FILE",
      `The header of ${file} claims ${length} bytes, but only ${stat.size - 8} follow; the file was cut, copy or download it again.`,
    );
  }
  const header = Buffer.allocUnsafe(length);
  readFully(fd, header, 8, file);
  return parseHeader(header, stat.size, file);
}

/**
 * Writes one safetensors file front to back: the header at once, then the tensors' bytes in the order
 * of `specs`, in pieces of any size. Until `finish` the file has a temporary name beside the final
 * one; after an error or `abort` nothing is left.
 *
 * Tensors start at multiples of 8 as long as their sizes are; put odd ones last.
 */
export class SafetensorsWriter {
  readonly file: string;
  readonly #entries: readonly TensorEntry[];
  readonly #out: UnfinishedFile;
  #current = 0;
  #filled = 0;

  /** Throws: AQ_FILE when the file cannot be created, AQ_FORMAT for impossible specs. */
  constructor(
    file: string,
    specs: readonly TensorSpec[],
    metadata: Readonly<Record<string, string>> = { format: "pt" },
  ) {
    const { bytes, entries } = encodeHeader(specs, metadata, file);
    this.file = file;
    this.#entries = entries;
    this.#out = new UnfinishedFile(file);
    this.#out.append(bytes);
  }

  /**
   * Appends bytes of a tensor; it must be the next one that is not complete.
   *
   * Throws: AQ_INTERNAL when tensors come out of order or too long, AQ_FILE when the disk refuses.
   */
  append(name: string, bytes: Uint8Array): void {
    if (bytes.byteLength === 0) return;
    const expected = this.#next();
    if (expected?.name !== name) {
      const got = `expected ${expected ? `"${expected.name}"` : "the end"}, got "${name}"`;
      throw this.#fail(new AqError("AQ_INTERNAL", `${this.file}: tensors out of order, ${got}.`));
    }
    if (this.#filled + bytes.byteLength > expected.bytes) {
      const got = `${this.#filled + bytes.byteLength} bytes, expected ${expected.bytes}`;
      throw this.#fail(new AqError("AQ_INTERNAL", `${this.file}: tensor "${name}" got ${got}.`));
    }
    this.#out.append(bytes);
    this.#filled += bytes.byteLength;
  }

  /** Completes the file: on disk, and under its final name. Throws: AQ_FILE, AQ_INTERNAL. */
  finish(): void {
    const missing = this.#next();
    if (missing) {
      const what = `tensor "${missing.name}" is incomplete`;
      throw this.#fail(new AqError("AQ_INTERNAL", `Cannot finish ${this.file}: ${what}.`));
    }
    this.#out.finish();
  }

  /** Gives up and removes what was written; does nothing after `finish`. */
  abort(): void {
    this.#out.abort();
  }

  /** The first tensor that is not complete; complete and empty ones are passed over. */
  #next(): TensorEntry | undefined {
    let entry = this.#entries[this.#current];
    while (entry && this.#filled === entry.bytes) {
      this.#filled = 0;
      entry = this.#entries[++this.#current];
    }
    return entry;
  }

  #fail(error: AqError): AqError {
    this.#out.abort();
    return error;
  }
}
