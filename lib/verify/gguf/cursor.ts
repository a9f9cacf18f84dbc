/** Reads a file from its beginning, number by number; nothing is taken from beyond its end. */

import * as fs from "node:fs";
import { AqError } from "../../errors.ts";
import { fileError, openForReading, readFully } from "../../util/fs.ts";

const WINDOW_BYTES = 2 ** 20;

/** An open file; whoever opens it closes it. */
export class Cursor {
  readonly file: string;
  readonly size: number;
  readonly #fd: number;
  #window: Buffer = Buffer.alloc(0);
  /** Where the window begins in the file, and where the next byte lies in the window. */
  #start = 0;
  #at = 0;

  /** Throws: AQ_FILE. */
  constructor(file: string) {
    this.file = file;
    this.#fd = openForReading(file);
    try {
      const stat = fs.fstatSync(this.#fd);
      if (!stat.isFile()) throw new AqError("AQ_FILE", `${file} is not a regular file`);
      this.size = stat.size;
    } catch (error) {
      fs.closeSync(this.#fd);
      throw fileError("read", file, error);
    }
  }

  get position(): number {
    return this.#start + this.#at;
  }

  get left(): number {
    return this.size - this.position;
  }

  u8(): number {
    return this.#take(1, "a byte").readUInt8(0);
  }

  i8(): number {
    return this.#take(1, "a byte").readInt8(0);
  }

  u16(): number {
    return this.#take(2, "a number").readUInt16LE(0);
  }

  i16(): number {
    return this.#take(2, "a number").readInt16LE(0);
  }

  u32(): number {
    return this.#take(4, "a number").readUInt32LE(0);
  }

  i32(): number {
    return this.#take(4, "a number").readInt32LE(0);
  }

  f32(): number {
    return this.#take(4, "a number").readFloatLE(0);
  }

  f64(): number {
    return this.#take(8, "a number").readDoubleLE(0);
  }

  u64(): bigint {
    return this.#take(8, "a number").readBigUInt64LE(0);
  }

  i64(): bigint {
    return this.#take(8, "a number").readBigInt64LE(0);
  }

  /** A u64 that counts something: at most `most`. Throws: AQ_FORMAT. */
  count(what: string, most: number): number {
    const value = this.u64();
    if (value > BigInt(most)) {
      throw new AqError(
        "AQ_FORMAT",
        `${this.file} claims ${value} as ${what}, but at most ${most} can be there; it is damaged`,
      );
    }
    return Number(value);
  }

  /** A length and as many bytes of UTF-8. Throws: AQ_FORMAT. */
  string(what: string, most: number = this.size): string {
    const length = this.count(`the length of ${what}`, Math.min(most, Math.max(0, this.left - 8)));
    // Vocabularies hold pieces of characters: what is no UTF-8 becomes replacement characters.
    return this.#take(length, what).toString("utf8");
  }

  /** Bytes anywhere in the file. Throws: AQ_FILE. */
  bytesAt(position: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    readFully(this.#fd, bytes, position, this.file);
    return bytes;
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  #take(length: number, what: string): Buffer {
    if (length > this.left) {
      throw new AqError(
        "AQ_FORMAT",
        `${this.file} ends at byte ${this.size}, in the middle of ${what} at ${this.position}; it was cut, copy it again`,
      );
    }
    if (this.#at + length > this.#window.length) {
      this.#start = this.position;
      this.#at = 0;
      const wish = Math.min(Math.max(WINDOW_BYTES, length), this.size - this.#start);
      this.#window = Buffer.allocUnsafe(wish);
      readFully(this.#fd, this.#window, this.#start, this.file);
    }
    const taken = this.#window.subarray(this.#at, this.#at + length);
    this.#at += length;
    return taken;
  }
}
