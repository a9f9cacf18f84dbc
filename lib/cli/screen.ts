/**
 * What a run shows on a stream: permanent lines, and one status line that is redrawn in place.
 *
 * On a terminal the status line is cut to the width (a wrapped line could not be erased), drawn at
 * most ten times a second and removed by `clear`; the cursor is never hidden, so a killed process
 * leaves the terminal as it was. Elsewhere there are no control characters: the status becomes a
 * plain line now and then, to show that a long run is alive.
 */
import picocolors from "picocolors";
import { type Io, type OutputStream, showsColors } from "./io.ts";

/** A piece of a line and how it is painted. */
export interface Segment {
  readonly text: string;
  readonly tone?: "strong" | "dim" | "good" | "warn";
}

const TERMINAL_INTERVAL_MS = 100;
const PLAIN_INTERVAL_MS = 10_000;
const FALLBACK_COLUMNS = 80;
const ERASE_LINE = "\r\x1b[K";

export class Screen {
  readonly #stream: OutputStream;
  readonly #now: () => number;
  readonly #colors: ReturnType<typeof picocolors.createColors>;
  readonly #isTerminal: boolean;
  #status: readonly Segment[] | undefined;
  #lastWrite: number;

  constructor(stream: OutputStream, io: Pick<Io, "env" | "now">) {
    this.#stream = stream;
    this.#now = io.now;
    this.#isTerminal = stream.isTTY === true && io.env["TERM"] !== "dumb";
    this.#colors = picocolors.createColors(showsColors(stream, io.env));
    this.#lastWrite = this.#isTerminal ? Number.NEGATIVE_INFINITY : io.now();
  }

  /** Shows what is going on now; `urgent` skips the throttle of a terminal. */
  status(segments: readonly Segment[], urgent = false): void {
    const now = this.#now();
    const interval = this.#isTerminal ? TERMINAL_INTERVAL_MS : PLAIN_INTERVAL_MS;
    if (now - this.#lastWrite < interval && !(urgent && this.#isTerminal)) return;
    this.#lastWrite = now;
    if (this.#isTerminal) {
      this.#status = segments;
      this.#draw();
    } else {
      this.#stream.write(`${this.#paint(segments)}\n`);
    }
  }

  /** Writes a line that stays, above the status line. */
  print(segments: readonly Segment[]): void {
    const line = `${this.#paint(segments)}\n`;
    if (this.#status) {
      this.#stream.write(`${ERASE_LINE}${line}`);
      this.#draw();
    } else {
      this.#stream.write(line);
    }
    if (!this.#isTerminal) this.#lastWrite = this.#now();
  }

  /** Removes the status line. */
  clear(): void {
    if (this.#status) this.#stream.write(ERASE_LINE);
    this.#status = undefined;
  }

  #draw(): void {
    if (!this.#status) return;
    const columns = this.#stream.columns || FALLBACK_COLUMNS;
    this.#stream.write(`\r${this.#paint(cut(this.#status, columns - 1))}\x1b[K`);
  }

  #paint(segments: readonly Segment[]): string {
    return segments.map((segment) => this.#paintOne(segment)).join("");
  }

  #paintOne({ text, tone }: Segment): string {
    switch (tone) {
      case undefined:
        return text;
      case "strong":
        return this.#colors.bold(text);
      case "dim":
        return this.#colors.dim(text);
      case "good":
        return this.#colors.green(text);
      case "warn":
        return this.#colors.yellow(text);
      default:
        return tone satisfies never;
    }
  }
}

/** The first `width` characters of a line, cut before it is painted. */
function cut(segments: readonly Segment[], width: number): Segment[] {
  const kept: Segment[] = [];
  let left = Math.max(0, width);
  for (const segment of segments) {
    if (left === 0) break;
    const characters = Array.from(segment.text);
    kept.push({ ...segment, text: characters.slice(0, left).join("") });
    left -= Math.min(left, characters.length);
  }
  return kept;
}
