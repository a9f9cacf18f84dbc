/**
 * Calibration windows that the model writes itself, each going on from a few tokens of a text: as many as
 * are wanted, and of what the model knows. They are stored in the run folder a batch at a time, so that
 * a stopped run goes on with the same ones.
 *
 * Source: LLM-QAT (arXiv 2305.17888), which begins with one random token; what it buys is measured in
 * docs/method.md.
 */

import { AqError } from "../errors.ts";
import { Decoder } from "../generate/decoder.ts";
import { type LanguageModel, openLanguageModel } from "../generate/open.ts";
import { Scheduler } from "../generate/scheduler.ts";
import type { QuantizeEvent } from "../types.ts";
import { createRandom } from "../util/random.ts";
import { cacheType, together } from "./writing-memory.ts";
import { readWritten, storeWritten, type WrittenWindow } from "./written-file.ts";

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
  /** Keeps what was written (written-file.ts). */
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
  const { beginnings, seqlen, file, onEvent } = writing;
  const count = beginnings.length;
  const { windows: stored, damage } = readWritten(file, seqlen, count);
  if (damage !== null) onEvent?.({ event: "note", text: `${damage}: writing again from there` });
  if (stored.length === count) return stored.map(({ ids }) => ids);
  const source = openLanguageModel(writing.model, writing.device);
  try {
    const slots = together(source.model.shape, seqlen, writing.device, count);
    // Whole batches alone, so that what is written next to what is the same as without a stop.
    const windows = stored.slice(0, stored.length - (stored.length % slots));
    if (windows.length > 0) {
      const text = `${windows.length} of ${count} windows that the model writes are stored already`;
      onEvent?.({ event: "note", text });
    }
    await write(new Writer(source, writing, slots, windows.length), writing, windows);
    return windows.map(({ ids }) => ids);
  } catch (error) {
    throw explained(error);
  } finally {
    source.close();
  }
}

async function write(writer: Writer, writing: Writing, windows: WrittenWindow[]): Promise<void> {
  const { beginnings, file } = writing;
  try {
    while (windows.length < beginnings.length) {
      windows.push(...(await writer.batch(windows.length)));
      storeWritten(file, windows);
    }
  } catch (error) {
    if (!(error instanceof AqError) || error.code !== "AQ_STOPPED") throw error;
    const text = `stopped while the model was writing: ${windows.length} of ${beginnings.length} windows are stored`;
    throw new AqError("AQ_STOPPED", text, { cause: error });
  } finally {
    await writer.dispose();
  }
}

/** With what to do where memory is short. */
function explained(error: unknown): unknown {
  if (!(error instanceof AqError) || error.code !== "AQ_OOM") return error;
  const advice = "a model writes with all of its weights in memory; use --calib-source text";
  const text = `${error.message.replace(/[.]$/, "")}: ${advice}`;
  return new AqError("AQ_OOM", text, { cause: error });
}

class Writer {
  readonly #source: LanguageModel;
  readonly #writing: Writing;
  readonly #slots: number;
  readonly #decoder: Decoder;
  readonly #scheduler: Scheduler;
  readonly #seeds: readonly number[];
  readonly #tokens: number;
  readonly #before: number;
  #began = Number.NaN;
  #done: number;
  /** Tokens when it was last said how many there are. */
  #told: number;

  /** Reads all weights. */
  constructor(source: LanguageModel, writing: Writing, slots: number, stored: number) {
    const { beginnings, seqlen: capacity } = writing;
    this.#source = source;
    this.#writing = writing;
    this.#slots = slots;
    this.#tokens = beginnings.length * capacity;
    this.#before = stored * capacity;
    this.#done = this.#before;
    this.#told = this.#before;
    const random = createRandom(writing.seed + SEED_OFFSET);
    this.#seeds = beginnings.map(() => random.bits());
    this.#tell();
    this.#decoder = new Decoder(source, { slots, capacity, kv: cacheType(writing.device) });
    this.#scheduler = new Scheduler(this.#decoder);
  }

  /** The windows from `first` on that are written together. */
  async batch(first: number): Promise<WrittenWindow[]> {
    if (Number.isNaN(this.#began)) this.#began = performance.now();
    const last = Math.min(this.#writing.beginnings.length, first + this.#slots);
    const windows = Array.from({ length: last - first }, (_, i) => this.#window(first + i));
    const written = await Promise.all(windows);
    this.#tell();
    return written;
  }

  /** Where the model ends a text, the window goes on with another one, behind another beginning. */
  async #window(n: number): Promise<WrittenWindow> {
    const { beginnings, seqlen, signal } = this.#writing;
    const { tokenizer, endIds } = this.#source;
    const ids = new Int32Array(seqlen);
    let length = 0;
    for (let piece = 0; length < seqlen; piece++) {
      const beginning = beginnings[(n + piece) % beginnings.length] as Int32Array;
      const prompt = beginning.subarray(0, seqlen - length);
      ids.set(prompt, length);
      length += prompt.length;
      this.#done += prompt.length;
      if (length === seqlen) break;
      const seed = (this.#seeds[n] as number) + piece;
      const rest = { prompt, maxTokens: seqlen - length, temperature: 1, seed, endIds: NONE };
      for await (const id of this.#scheduler.run(rest)) {
        if (signal?.aborted) throw new AqError("AQ_STOPPED", "stopped");
        ids[length++] = id;
        this.#done++;
        // Once a step, which brings one token of each window.
        if (this.#done - this.#told >= this.#slots) this.#tell();
        if (endIds.has(id)) break;
      }
    }
    return { text: tokenizer.decode(ids), ids };
  }

  #tell(): void {
    const seconds = (performance.now() - this.#began) / 1000;
    const share = (this.#tokens - this.#done) / (this.#done - this.#before);
    this.#told = this.#done;
    this.#writing.onEvent?.({
      event: "writing",
      tokens: this.#done,
      of: this.#tokens,
      secondsLeft: seconds >= 1 ? seconds * share : null,
    });
  }

  async dispose(): Promise<void> {
    await this.#scheduler.close();
    this.#decoder.dispose();
  }
}

/** An id that ends a text is part of the window. */
const NONE: ReadonlySet<number> = new Set();
