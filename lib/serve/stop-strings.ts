/** Ends a text before the first of some strings, although it comes in pieces. */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = "";
  #found = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Whether one of them has come; nothing is to be added then. */
  get found(): boolean {
    return this.#found;
  }

  /** Takes a piece; what can be given out of it and of what was held back. */
  push(piece: string): string {
    if (this.#found) return "";
    const text = this.#held + piece;
    const places = this.#stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    if (places.length > 0) {
      this.#found = true;
      this.#held = "";
      return text.slice(0, Math.min(...places));
    }
    const kept = Math.max(0, ...this.#stops.map((stop) => beginning(text, stop)));
    this.#held = text.slice(text.length - kept);
    return text.slice(0, text.length - kept);
  }

  /** What was held back, at the end of the text. */
  end(): string {
    const rest = this.#held;
    this.#held = "";
    return rest;
  }
}

/** How many of the text's last characters may be the beginning of `stop`. */
function beginning(text: string, stop: string): number {
  for (let n = Math.min(stop.length - 1, text.length); n > 0; n--) {
    if (text.endsWith(stop.slice(0, n))) return n;
  }
  return 0;
}
