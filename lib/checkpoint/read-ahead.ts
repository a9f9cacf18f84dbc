/**
 * Reads tensors of a checkpoint in the background, while a GPU is at work, so that whoever wants them
 * next need not wait for the disk. It holds the tensors of one wish at a time, in their stored dtype.
 *
 * What cannot be read is left to whoever then reads it himself, and gets the error.
 */

import type { Checkpoint } from "./folder.ts";

/** Bytes between two looks at whether the tensors are still wanted. */
const PIECE_BYTES = 16 * 2 ** 20;

export class ReadAhead {
  readonly #checkpoint: Checkpoint;
  readonly #held = new Map<string, Uint8Array>();
  #reading: Promise<void> = Promise.resolve();
  /** Changes with every wish: what reads for an earlier one ends. */
  #wish = {};

  constructor(checkpoint: Checkpoint) {
    this.#checkpoint = checkpoint;
  }

  /** Begins to read; what is still held of an earlier wish is dropped. */
  begin(names: readonly string[]): void {
    const wish = {};
    this.#wish = wish;
    this.#held.clear();
    this.#reading = this.#reading.then(() => this.#read(names, wish));
  }

  /** Waits until everything that was begun is there. */
  async arrived(): Promise<void> {
    await this.#reading;
  }

  /** All bytes of a tensor if they are there, which are then the caller's. */
  take(name: string): Uint8Array | undefined {
    const bytes = this.#held.get(name);
    this.#held.delete(name);
    return bytes;
  }

  /** Ends the reading and drops what is held; to be awaited before the checkpoint is closed. */
  async stop(): Promise<void> {
    this.#wish = {};
    this.#held.clear();
    await this.#reading;
  }

  async #read(names: readonly string[], wish: object): Promise<void> {
    for (const name of names) {
      try {
        const bytes = new Uint8Array(this.#checkpoint.info(name).bytes);
        for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
          if (this.#wish !== wish) return;
          await this.#checkpoint.readIntoAsync(name, bytes.subarray(at, at + PIECE_BYTES), at);
        }
        if (this.#wish === wish) this.#held.set(name, bytes);
      } catch {
        return;
      }
    }
  }
}
