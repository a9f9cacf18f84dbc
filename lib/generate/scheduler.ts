/**
 * Many sequences, one model: every step takes the next token of each sequence that is being written and
 * a piece of the prompts that are being read, so that the weights are read once for all of them.
 */

import { setImmediate } from "node:timers/promises";
import { AqError } from "../errors.ts";
import type { Decoder, StepToken } from "./decoder.ts";
import { chooseTokens, Sampler, type SamplingOptions } from "./sampler.ts";

/** Tokens of prompts that one step takes. */
const PROMPT_TOKENS = 256;

export interface SequenceOptions extends SamplingOptions {
  /** At least one id. */
  readonly prompt: Int32Array;
  /** New ids at most. */
  readonly maxTokens: number;
  /** Ids that end the sequence; they are not given out. */
  readonly endIds: ReadonlySet<number>;
  readonly signal?: AbortSignal | undefined;
}

/** Why a sequence is over: an end id, or as many tokens as were asked for or fit. */
export type FinishReason = "stop" | "length";

class Sequence {
  readonly options: SequenceOptions;
  readonly sampler: Sampler;
  slot = -1;
  /** Tokens that the caches hold. */
  position = 0;
  /** The id to be run next, once the prompt has been read. */
  next = -1;
  count = 0;
  finish: FinishReason | undefined;
  error: unknown;
  readonly #ready: number[] = [];
  #wake: (() => void) | undefined;

  constructor(options: SequenceOptions) {
    this.options = options;
    this.sampler = new Sampler(options);
  }

  get isOver(): boolean {
    return this.finish !== undefined || this.error !== undefined;
  }

  give(id: number): void {
    this.#ready.push(id);
    this.wake();
  }

  wake(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  /** The next id, or undefined at the end. */
  async take(): Promise<number | undefined> {
    for (;;) {
      const id = this.#ready.shift();
      if (id !== undefined) return id;
      if (this.error !== undefined) throw this.error;
      if (this.finish !== undefined) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}

export class Scheduler {
  readonly #decoder: Decoder;
  readonly #waiting: Sequence[] = [];
  readonly #active: Sequence[] = [];
  readonly #free: number[];
  #running: Promise<void> | undefined;
  #closed = false;

  constructor(decoder: Decoder) {
    this.#decoder = decoder;
    this.#free = Array.from({ length: decoder.slots }, (_, i) => decoder.slots - 1 - i);
  }

  /** Sequences that wait for a slot, and those under way. */
  get load(): { readonly waiting: number; readonly active: number } {
    const count = (list: readonly Sequence[]): number => list.filter((s) => !s.isOver).length;
    return { waiting: count(this.#waiting), active: count(this.#active) };
  }

  /**
   * The ids of a sequence, as they come; the return value says why it ended. Leaving the loop early
   * frees its slot.
   *
   * Throws: AQ_ARG for a prompt that does not fit, AQ_STOPPED when the signal fires.
   */
  async *run(options: SequenceOptions): AsyncGenerator<number, FinishReason> {
    const { capacity } = this.#decoder;
    if (this.#closed) throw new AqError("AQ_ARG", "the model was disposed");
    if (options.prompt.length === 0) {
      throw new AqError("AQ_ARG", "the prompt is empty, and there is no token to begin with");
    }
    if (options.prompt.length >= capacity) {
      throw new AqError(
        "AQ_ARG",
        `the prompt has ${options.prompt.length} tokens; with at least one to be written, ${capacity - 1} fit`,
      );
    }
    const sequence = new Sequence(options);
    const stop = (): void => {
      sequence.error ??= new AqError("AQ_STOPPED", "writing was stopped");
      sequence.wake();
    };
    if (options.signal?.aborted) stop();
    options.signal?.addEventListener("abort", stop, { once: true });
    this.#waiting.push(sequence);
    this.#running ??= this.#loop();
    try {
      for (;;) {
        const id = await sequence.take();
        if (id === undefined) return sequence.finish as FinishReason;
        yield id;
      }
    } finally {
      options.signal?.removeEventListener("abort", stop);
      // Where nobody takes what comes, nothing more is to come.
      if (!sequence.isOver) sequence.finish = "stop";
    }
  }

  /** Ends all sequences and waits for the step under way. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const sequence of [...this.#waiting, ...this.#active]) {
      sequence.error ??= new AqError("AQ_STOPPED", "the model was disposed");
      sequence.wake();
    }
    await this.#running;
  }

  async #loop(): Promise<void> {
    try {
      // So that who starts the loop has noted that it runs before it can end.
      await setImmediate();
      for (;;) {
        this.#admit();
        if (this.#active.length === 0) return;
        try {
          await this.#step();
        } catch (error) {
          for (const sequence of this.#active) {
            sequence.error ??= error;
            sequence.wake();
          }
        }
        await setImmediate();
      }
    } finally {
      this.#running = undefined;
    }
  }

  /** Frees the slots of what is over and gives them to who waited longest. */
  #admit(): void {
    for (const list of [this.#active, this.#waiting]) {
      for (let i = list.length - 1; i >= 0; i--) {
        const sequence = list[i] as Sequence;
        if (!sequence.isOver) continue;
        list.splice(i, 1);
        if (sequence.slot >= 0) this.#free.push(sequence.slot);
      }
    }
    while (this.#waiting.length > 0 && this.#free.length > 0) {
      const sequence = this.#waiting.shift() as Sequence;
      sequence.slot = this.#free.pop() as number;
      this.#active.push(sequence);
    }
  }

  async #step(): Promise<void> {
    const tokens: StepToken[] = [];
    const wanted: number[] = [];
    const asked: Sequence[] = [];
    const ask = (sequence: Sequence): void => {
      wanted.push(tokens.length - 1);
      asked.push(sequence);
    };
    let room = PROMPT_TOKENS;
    for (const sequence of this.#active) {
      const { slot, options } = sequence;
      const { prompt } = options;
      if (sequence.position >= prompt.length) {
        tokens.push({ slot, position: sequence.position++, id: sequence.next });
        ask(sequence);
        continue;
      }
      const end = Math.min(prompt.length, sequence.position + room);
      room -= end - sequence.position;
      while (sequence.position < end) {
        const position = sequence.position++;
        tokens.push({ slot, position, id: prompt[position] as number });
      }
      if (end === prompt.length) ask(sequence);
    }
    const logits = this.#decoder.step(tokens, wanted);
    if (!logits) return;
    try {
      const samplers = asked.map(({ sampler }) => sampler);
      const ids = await chooseTokens(logits, samplers);
      for (const [n, sequence] of asked.entries()) this.#advance(sequence, ids[n] as number);
    } finally {
      logits.dispose();
    }
  }

  #advance(sequence: Sequence, id: number): void {
    const { maxTokens, endIds } = sequence.options;
    if (endIds.has(id)) {
      sequence.finish ??= "stop";
    } else {
      sequence.next = id;
      sequence.give(id);
      sequence.count++;
      // The token that was just chosen needs a place of its own before another can follow.
      const isFull = sequence.position >= this.#decoder.capacity;
      if (sequence.count >= maxTokens || isFull) sequence.finish ??= "length";
    }
    sequence.wake();
  }
}
