/** Adds up by how much written weights differ from those of the run. */

import type { WeightChange } from "../export-types.ts";

export class ChangeMeter {
  #max = 0;
  #difference = 0;
  #size = 0;

  /** A tensor's (or a part's) largest difference and largest weight, and the sums of their squares. */
  add(part: {
    readonly largest: number;
    readonly weight: number;
    readonly difference: number;
    readonly size: number;
  }): void {
    if (part.weight > 0) this.#max = Math.max(this.#max, part.largest / part.weight);
    this.#difference += part.difference;
    this.#size += part.size;
  }

  get change(): WeightChange {
    return { max: this.#max, rms: this.#size > 0 ? Math.sqrt(this.#difference / this.#size) : 0 };
  }

  /** Null where nothing was changed. */
  get changeOrNull(): WeightChange | null {
    return this.#difference > 0 ? this.change : null;
  }
}
