/** What has been compared so far. */

import type { VerifiedFolder } from "./types.ts";

export class Tally {
  linears = 0;
  codes = 0;
  scales = 0;
  zeros = 0;
  others = 0;
  values = 0;
  readonly #notes = new Set<string>();

  note(sentence: string): void {
    this.#notes.add(sentence);
  }

  result(format: string, path: string): VerifiedFolder {
    const { linears, codes, scales, zeros, others, values } = this;
    return { format, path, linears, codes, scales, zeros, others, values, notes: [...this.#notes] };
  }
}
