/** Estimates how long a run still takes from how far it has come. */

/** Share of a block's time that training takes, where there is any: the rest is passes and folding. */
const TRAINING_SHARE = 0.9;

export class TimeLeft {
  readonly #blocks: number;
  readonly #now: () => number;
  readonly #start: number;

  constructor(blocks: number, now: () => number = () => performance.now()) {
    this.#blocks = blocks;
    this.#now = now;
    this.#start = now();
  }

  /** Seconds left after `share` of the training of `block`; null before there is anything to go by. */
  estimate(block: number, share: number): number | null {
    const done = (block + (1 - TRAINING_SHARE) / 2 + share * TRAINING_SHARE) / this.#blocks;
    const seconds = (this.#now() - this.#start) / 1000;
    if (seconds < 1 || (block === 0 && share <= 0.01)) return null;
    return (seconds * (1 - done)) / done;
  }
}
