/** Ids one by one into text: what is certain of it, as soon as it is. */

import type { TextTokenizer } from "../data/tokenizer.ts";

/** What stands at the end of text whose last character has not all of its bytes yet. */
const INCOMPLETE = "\uFFFD";
/** Ids after which an incomplete end is text after all: no character has more bytes. */
const MOST_PENDING = 8;

/**
 * Tokens may hold parts of a character, and may be spelled in another way at the start of a text. So a
 * few earlier ids are decoded along, and an end that is not a whole character is kept back.
 */
export class TextStream {
  readonly #tokenizer: TextTokenizer;
  readonly #skip: ReadonlySet<number>;
  /** Ids whose text may still change what follows; the first `#known` have been given out. */
  #ids: number[] = [];
  #known = 0;

  /** `skip`: ids without a text of their own, such as the end of the text. */
  constructor(tokenizer: TextTokenizer, skip: ReadonlySet<number> = new Set()) {
    this.#tokenizer = tokenizer;
    this.#skip = skip;
  }

  /** Takes an id; the text that it completes. */
  push(id: number): string {
    if (this.#skip.has(id)) return "";
    this.#ids.push(id);
    const before = this.#tokenizer.decode(this.#ids.slice(0, this.#known));
    const now = this.#tokenizer.decode(this.#ids);
    const waits = now.endsWith(INCOMPLETE) && this.#ids.length - this.#known < MOST_PENDING;
    if (waits || now.length <= before.length) return "";
    // What was given out becomes the context of what comes.
    this.#ids = this.#ids.slice(this.#known);
    const text = now.slice(before.length);
    this.#known = this.#ids.length;
    return text;
  }

  /** What was kept back. */
  end(): string {
    const before = this.#tokenizer.decode(this.#ids.slice(0, this.#known));
    const now = this.#tokenizer.decode(this.#ids);
    this.#known = this.#ids.length;
    return now.slice(before.length);
  }
}
