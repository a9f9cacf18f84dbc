/**
 * Events as JSON lines for programs. Every event is written, except that those which come thousands
 * of times (an optimizer step, an evaluated window) are written at most once a second.
 */
import type { Io, OutputStream } from "./io.ts";

const INTERVAL_MS = 1000;

export class JsonLines {
  readonly #stream: OutputStream;
  readonly #now: () => number;
  #lastFrequent: number = Number.NEGATIVE_INFINITY;

  constructor(stream: OutputStream, io: Pick<Io, "now">) {
    this.#stream = stream;
    this.#now = io.now;
  }

  write(value: object): void {
    this.#stream.write(`${JSON.stringify(value)}\n`);
  }

  /** Writes unless another frequent event was written less than a second ago. */
  writeSometimes(value: object): void {
    const now = this.#now();
    if (now - this.#lastFrequent < INTERVAL_MS) return;
    this.#lastFrequent = now;
    this.write(value);
  }
}
