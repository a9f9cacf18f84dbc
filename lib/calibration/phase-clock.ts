/** Where the time of a stretch of work goes. */

export class PhaseClock {
  readonly #now: () => number;
  readonly #start: number;
  readonly #seconds: Record<string, number> = {};
  #phase: string | undefined;
  #since: number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#start = now();
    this.#since = this.#start;
  }

  /** Ends the phase at hand and begins another; one that comes again adds to its time. */
  enter(phase: string): void {
    this.#close();
    this.#phase = phase;
  }

  /** Ends the phase at hand; what follows belongs to none. */
  pause(): void {
    this.#close();
    this.#phase = undefined;
  }

  /** Ends the last phase. All seconds since the start, and those of each phase in order of entry. */
  stop(): { seconds: number; phaseSeconds: Readonly<Record<string, number>> } {
    this.pause();
    return { seconds: (this.#since - this.#start) / 1000, phaseSeconds: { ...this.#seconds } };
  }

  #close(): void {
    const now = this.#now();
    if (this.#phase !== undefined) {
      this.#seconds[this.#phase] = (this.#seconds[this.#phase] ?? 0) + (now - this.#since) / 1000;
    }
    this.#since = now;
  }
}
