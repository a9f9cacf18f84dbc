/**
 * Calibration windows that the model writes itself, each going on from a few tokens of a text: as many as
 * are wanted, and of what the model knows. They are stored in the run folder a batch at a time, so that
 * a stopped run goes on with the same ones.
 *
 * Source: LLM-QAT (arXiv 2305.17888), which begins with one random token; what it buys is measured in
 * docs/method.md.
 */

import * as fs from "node:fs";
import { AqError } from "../errors.ts";
import { Decoder } from "../generate/decoder.ts";
import { type LanguageModel, openLanguageModel } from "../generate/open.ts";
import { Scheduler } from "../generate/scheduler.ts";
import type { ModelShape } from "../models/family.ts";
import type { QuantizeEvent } from "../types.ts";
import { sha256 } from "../util/hash.ts";
import { isJsonObject } from "../util/json.ts";
import { createRandom } from "../util/random.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";

/** Windows that are written together, at most. */
const TOGETHER = 32;
/**
 * Bytes that their caches may take. Not a share of the memory that there is: how many are written together
 * shows in the last bits of what is written.
 */
const CACHE_BYTES = 8 * 2 ** 30;
/** Keeps what is drawn here apart from what else is drawn from the run's seed. */
const SEED_OFFSET = 2 ** 51;

export interface Writing {
  /** Folder of the model, and where it runs. */
  readonly model: string;
  readonly device: string;
  /** What each window begins with. */
  readonly beginnings: readonly Int32Array[];
  /** Tokens of a window, more than a beginning has. */
  readonly seqlen: number;
  readonly seed: number;
  /** Keeps what was written, one JSON object a line: its text, its ids, and their hash. */
  readonly file: string;
  readonly onEvent?: ((event: QuantizeEvent) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * All windows [seqlen], those of the file among them.
 *
 * Throws: AQ_STOPPED when the signal fires; AQ_OOM where the model does not fit; what reading a model
 * throws.
 */
export async function writtenWindows(writing: Writing): Promise<readonly Int32Array[]> {
  const { beginnings, seqlen, file } = writing;
  const stored = readWindows(file, seqlen).slice(0, beginnings.length);
  if (stored.length === beginnings.length) return stored.map(({ ids }) => ids);
  const source = openLanguageModel(writing.model, writing.device);
  try {
    const slots = together(source.model.shape, seqlen, writing.device);
    // Whole batches alone, so that what is written next to what is the same as without a stop.
    const windows = stored.slice(0, stored.length - (stored.length % slots));
    const writer = new Writer(source, writing, slots, windows.length);
    try {
      while (windows.length < beginnings.length) {
        windows.push(...(await writer.batch(windows.length)));
        writeFileAtomic(
          file,
          windows.map((window) => `${JSON.stringify(lineOf(window))}\n`).join(""),
        );
      }
    } finally {
      await writer.dispose();
    }
    return windows.map(({ ids }) => ids);
  } finally {
    source.close();
  }
}

interface Written {
  readonly text: string;
  readonly ids: Int32Array;
}

class Writer {
  readonly #source: LanguageModel;
  readonly #writing: Writing;
  readonly #slots: number;
  readonly #decoder: Decoder;
  readonly #scheduler: Scheduler;
  readonly #seeds: readonly number[];
  readonly #began = performance.now();
  readonly #tokens: number;
  readonly #before: number;
  #done: number;

  constructor(source: LanguageModel, writing: Writing, slots: number, stored: number) {
    const { beginnings, seqlen: capacity } = writing;
    this.#source = source;
    this.#writing = writing;
    this.#slots = slots;
    this.#tokens = beginnings.length * capacity;
    this.#before = stored * capacity;
    this.#done = this.#before;
    const random = createRandom(writing.seed + SEED_OFFSET);
    this.#seeds = beginnings.map(() => random.bits());
    try {
      this.#decoder = new Decoder(source, { slots, capacity, kv: cacheType(writing.device) });
    } catch (error) {
      if (!(error instanceof AqError) || error.code !== "AQ_OOM") throw error;
      const advice = "a model writes with all of its weights in memory; use --calib-source text";
      throw new AqError("AQ_OOM", `${error.message}; ${advice}`, { cause: error });
    }
    this.#scheduler = new Scheduler(this.#decoder);
  }

  /** The windows from `first` on that are written together. */
  batch(first: number): Promise<Written[]> {
    const last = Math.min(this.#writing.beginnings.length, first + this.#slots);
    return Promise.all(Array.from({ length: last - first }, (_, i) => this.#window(first + i)));
  }

  /** Where the model ends a text, the window goes on with another one of the same beginning. */
  async #window(n: number): Promise<Written> {
    const { beginnings, seqlen, signal } = this.#writing;
    const { tokenizer, endIds } = this.#source;
    const ids = new Int32Array(seqlen);
    let length = 0;
    for (let piece = 0; length < seqlen; piece++) {
      const prompt = (beginnings[n] as Int32Array).subarray(0, seqlen - length);
      ids.set(prompt, length);
      length += prompt.length;
      this.#done += prompt.length;
      if (length === seqlen) break;
      const seed = (this.#seeds[n] as number) + piece;
      const rest = { prompt, maxTokens: seqlen - length, temperature: 1, seed, endIds };
      for await (const id of this.#scheduler.run(rest)) {
        if (signal?.aborted) throw new AqError("AQ_STOPPED", "stopped while the model was writing");
        ids[length++] = id;
        this.#done++;
        if (n % this.#slots === 0) this.#tell();
      }
    }
    return { text: tokenizer.decode(ids), ids };
  }

  #tell(): void {
    const seconds = (performance.now() - this.#began) / 1000;
    const share = (this.#tokens - this.#done) / (this.#done - this.#before);
    this.#writing.onEvent?.({
      event: "writing",
      tokens: this.#done,
      of: this.#tokens,
      secondsLeft: seconds < 1 ? null : seconds * share,
    });
  }

  async dispose(): Promise<void> {
    await this.#scheduler.close();
    this.#decoder.dispose();
  }
}

const cacheType = (device: string): "f16" | "f32" => (device === "cpu" ? "f32" : "f16");

type CacheShape = Pick<ModelShape, "blocks" | "kvHeads" | "headDim">;

/** Keys and values of one window. */
export function cacheBytes(
  { blocks, kvHeads, headDim }: CacheShape,
  seqlen: number,
  device: string,
): number {
  return 2 * seqlen * blocks * kvHeads * headDim * (cacheType(device) === "f16" ? 2 : 4);
}

/** Windows that one batch writes. */
export function together(shape: CacheShape, seqlen: number, device: string): number {
  const fit = Math.floor(CACHE_BYTES / cacheBytes(shape, seqlen, device));
  return Math.max(1, Math.min(TOGETHER, fit));
}

function lineOf({ text, ids }: Written): object {
  return { text, sha256: hashOf(ids), ids: Array.from(ids) };
}

function hashOf(ids: Int32Array): string {
  return sha256(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
}

/** What is stored, up to the first line that is not what was written. */
function readWindows(file: string, seqlen: number): Written[] {
  const windows: Written[] = [];
  if (!fs.existsSync(file)) return windows;
  for (const line of fs.readFileSync(file, "utf8").split("\n")) {
    const window = parseLine(line, seqlen);
    if (!window) break;
    windows.push(window);
  }
  return windows;
}

function parseLine(line: string, seqlen: number): Written | undefined {
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
  return hashOf(window.ids) === hash ? window : undefined;
}
