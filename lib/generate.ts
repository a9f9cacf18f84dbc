/** A model that writes: `load` a folder, then `generate`. */

import { AqError } from "./errors.ts";
import { Decoder } from "./generate/decoder.ts";
import type { KvType } from "./generate/kv-cache.ts";
import { type LanguageModel, openLanguageModel } from "./generate/open.ts";
import { checkSampling, type SamplingOptions } from "./generate/sampler.ts";
import { type FinishReason, Scheduler } from "./generate/scheduler.ts";
import { TextStream } from "./generate/text-stream.ts";
import type { Model } from "./models/family.ts";
import { longestSequence } from "./models/sliding-window.ts";
import { type ComputeDevice, checkChoice, openDevice } from "./tensor/compute-device.ts";
import { setThreads } from "./tensor/device.ts";
import type { DeviceName, PrecisionName } from "./types.ts";

export interface LoadOptions {
  /** Default "auto": a GPU if there is one that can be used. */
  readonly device?: DeviceName | undefined;
  readonly precision?: PrecisionName | undefined;
  readonly threads?: number | undefined;
  /** Tokens of a sequence at most, its prompt included. Default: the model's maximum, at most 2048. */
  readonly maxLength?: number | undefined;
  /** Sequences that are written together; more wait. Default 1. */
  readonly slots?: number | undefined;
  /** How keys and values are kept. Default: 4-bit codes where the model was calibrated so, else f32. */
  readonly kv?: KvType | undefined;
}

export interface GenerateOptions extends SamplingOptions {
  /** New tokens at most. Default: as many as fit. */
  readonly maxTokens?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A piece of text as it comes. */
export interface GeneratedText {
  /** May be empty while a character is not complete. */
  readonly text: string;
  /** The token behind it; absent for what was kept back until the end. */
  readonly id?: number | undefined;
}

/** A model in memory. Several `generate` calls at the same time are computed together. */
export interface LoadedModel {
  readonly family: string;
  /** "cpu", "cuda:0". */
  readonly device: string;
  /** Tokens of a sequence at most. */
  readonly maxLength: number;
  /** Sequences under way, and those that wait for a place. */
  readonly load: { readonly waiting: number; readonly active: number };
  /** Ids that a token can have: 0 .. vocabulary - 1. */
  readonly vocabulary: number;
  /**
   * Ids of a prompt, as `generate` reads it; with special: false without the tokens that the tokenizer
   * puts around it, which a chat template brings itself.
   */
  encode(prompt: string, options?: { readonly special?: boolean }): Int32Array;
  /**
   * Writes on. The return value says why it ended: the model ended the text ("stop"), or the limit
   * was reached ("length").
   *
   * Throws: AQ_ARG for bad options or a prompt that does not fit, AQ_STOPPED when the signal fires.
   */
  generate(
    prompt: string | Int32Array,
    options?: GenerateOptions,
  ): AsyncGenerator<GeneratedText, FinishReason>;
  /** Ends what is under way and frees the memory. */
  dispose(): Promise<void>;
}

/** Longest sequences where nobody says otherwise: caches take memory by their length. */
const USUAL_LENGTH = 2048;

/**
 * Loads a model folder, as it is or quantized by aq-native or others, for `generate`.
 *
 * Throws: AqError, with one sentence that says what, where and what to do.
 */
export async function load(dir: string, options: LoadOptions = {}): Promise<LoadedModel> {
  const { threads, slots = 1 } = options;
  if (threads !== undefined) setThreads(threads);
  if (!Number.isInteger(slots) || slots < 1 || slots > 1024) {
    throw new AqError("AQ_ARG", `slots must be a whole number from 1 to 1024, got ${slots}`);
  }
  checkChoice(options);
  let device: ComputeDevice | undefined;
  let source: LanguageModel | undefined;
  let decoder: Decoder;
  try {
    device = openDevice(options);
    source = openLanguageModel(dir, device.name);
    const capacity = lengthOf(options.maxLength, source.model);
    decoder = new Decoder(source, { slots, capacity, kv: options.kv });
  } catch (error) {
    source?.close();
    device?.release();
    throw error;
  }
  return new Loaded(source, decoder, device);
}

function lengthOf(asked: number | undefined, model: Model): number {
  const most = model.shape.maxTokens;
  if (asked === undefined) return Math.min(most, USUAL_LENGTH);
  if (Number.isInteger(asked) && asked >= 2 && asked <= most) return asked;
  throw new AqError(
    "AQ_ARG",
    `maxLength must be a whole number from 2 to ${longestSequence(model)}, got ${asked}`,
  );
}

class Loaded implements LoadedModel {
  readonly #source: LanguageModel;
  readonly #decoder: Decoder;
  readonly #scheduler: Scheduler;
  readonly #device: ComputeDevice;
  #disposed: Promise<void> | undefined;

  constructor(source: LanguageModel, decoder: Decoder, device: ComputeDevice) {
    this.#source = source;
    this.#decoder = decoder;
    this.#device = device;
    this.#scheduler = new Scheduler(decoder);
  }

  get family(): string {
    return this.#decoder.model.family;
  }

  get device(): string {
    return this.#source.device;
  }

  get maxLength(): number {
    return this.#decoder.capacity;
  }

  get load(): { readonly waiting: number; readonly active: number } {
    return this.#scheduler.load;
  }

  get vocabulary(): number {
    return this.#decoder.model.shape.vocabulary;
  }

  encode(prompt: string, { special = true }: { readonly special?: boolean } = {}): Int32Array {
    const { tokenizer } = this.#source;
    return special ? tokenizer.encodePrompt(prompt) : tokenizer.encode(prompt);
  }

  async *generate(
    prompt: string | Int32Array,
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedText, FinishReason> {
    checkSampling(options);
    const { maxTokens = this.maxLength } = options;
    if (!Number.isInteger(maxTokens) || maxTokens < 1) {
      throw new AqError(
        "AQ_ARG",
        `maxTokens must be a whole number of at least 1, got ${maxTokens}`,
      );
    }
    const { tokenizer, endIds } = this.#source;
    const ids = typeof prompt === "string" ? this.encode(prompt) : prompt;
    const stream = new TextStream(tokenizer, endIds);
    // What stands before the first new token decides how that is spelled.
    for (const id of ids.slice(-CONTEXT)) stream.push(id);
    stream.end();
    const run = this.#scheduler.run({ ...options, prompt: ids, maxTokens, endIds });
    try {
      for (;;) {
        const { value, done } = await run.next();
        if (done) {
          const rest = stream.end();
          if (rest !== "") yield { text: rest };
          return value;
        }
        yield { id: value, text: stream.push(value) };
      }
    } finally {
      await run.return("stop");
    }
  }

  dispose(): Promise<void> {
    this.#disposed ??= this.#close();
    return this.#disposed;
  }

  async #close(): Promise<void> {
    await this.#scheduler.close();
    this.#decoder.dispose();
    this.#source.close();
    this.#device.release();
  }
}

/** Ids of the prompt that a new text is decoded behind. */
const CONTEXT = 8;
