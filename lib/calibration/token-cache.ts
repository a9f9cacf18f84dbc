/**
 * The calibration text's tokens, kept in the run folder: a resumed run neither loads the tokenizer nor
 * encodes the text again. Whatever does not match is ignored and encoded afresh.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { hasFile } from "../checkpoint/source-files.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { sha256 } from "../util/hash.ts";
import { packageVersion } from "../util/package.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";

const HASH_BYTES = 32;

/** Encodes one text, from the cache if it can. */
export class TokenCache {
  readonly #model: string;
  readonly #file: string;
  #isFromFile = false;
  /** The file's content, once there are ids. */
  #content: Buffer | undefined;

  /** `model`: folder of the tokenizer; `dir`: the run folder, which need not exist yet. */
  constructor(model: string, dir: string) {
    this.#model = model;
    this.#file = path.join(dir, "tokens.bin");
  }

  /** Throws what loading the tokenizer throws. */
  encode(text: string): Int32Array {
    const key = Buffer.from(this.#key(text), "hex");
    const cached = this.#read(key);
    if (cached) return cached;
    const ids = loadTokenizer(this.#model).encode(text);
    const bytes = new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
    this.#content = Buffer.concat([key, Buffer.from(sha256(bytes), "hex"), bytes]);
    return ids;
  }

  /** Keeps the ids, now that the folder exists. Throws: AQ_FILE. */
  save(): void {
    if (!this.#content) return;
    const stored = fs.statSync(this.#file, { throwIfNoEntry: false });
    const isStored = this.#isFromFile && stored?.size === this.#content.byteLength;
    if (!isStored) writeFileAtomic(this.#file, this.#content);
  }

  /** What the ids depend on: the tokenizer's files, the text, and the code that encodes. */
  #key(text: string): string {
    const files = ["tokenizer.json", "tokenizer_config.json"].map((name) =>
      hasFile(this.#model, name) ? sha256(fs.readFileSync(path.join(this.#model, name))) : "none",
    );
    return sha256([packageVersion(), ...files, sha256(text)].join("\n"));
  }

  #read(key: Buffer): Int32Array | undefined {
    let file: Buffer;
    try {
      file = fs.readFileSync(this.#file);
    } catch {
      return undefined;
    }
    const ids = Uint8Array.prototype.slice.call(file, 2 * HASH_BYTES);
    const isWhole =
      file.subarray(0, HASH_BYTES).equals(key) &&
      file.toString("hex", HASH_BYTES, 2 * HASH_BYTES) === sha256(ids);
    if (!isWhole) return undefined;
    this.#content = file;
    this.#isFromFile = true;
    return new Int32Array(ids.buffer);
  }
}
