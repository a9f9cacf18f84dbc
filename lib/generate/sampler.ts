/** How the next tokens of sequences are chosen from logits. */

import { AqError } from "../errors.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { createRandom, type Random } from "../util/random.ts";

export interface SamplingOptions {
  /** 0 (default): the most likely token, always. Above: logits are divided by it. */
  readonly temperature?: number | undefined;
  /** Draws among the fewest tokens whose probabilities add up to this; 1 (default): among all. */
  readonly topP?: number | undefined;
  /** Of the random numbers; the same seed gives the same text. Default 0. */
  readonly seed?: number | undefined;
}

/** Throws: AQ_ARG with the field, what it may be and what it was. */
export function checkSampling({ temperature = 0, topP = 1, seed = 0 }: SamplingOptions): void {
  if (!(temperature >= 0 && temperature <= 100)) {
    throw new AqError("AQ_ARG", `temperature must be from 0 to 100, got ${temperature}`);
  }
  if (!(topP > 0 && topP <= 1)) {
    throw new AqError("AQ_ARG", `topP must be above 0 and at most 1, got ${topP}`);
  }
  if (!Number.isSafeInteger(seed)) {
    throw new AqError("AQ_ARG", `seed must be a whole number, got ${seed}`);
  }
}

/** Chooses tokens of one sequence. */
export class Sampler {
  /** Whether it draws among a part of the tokens, which it finds by `next`; else `draw` says it all. */
  readonly cuts: boolean;
  readonly #temperature: number;
  readonly #topP: number;
  readonly #random: Random;
  #weights = new Float64Array(0);
  #total = 0;

  /** Throws: AQ_ARG. */
  constructor(options: SamplingOptions = {}) {
    checkSampling(options);
    this.#temperature = options.temperature ?? 0;
    this.#topP = options.topP ?? 1;
    this.#random = createRandom(options.seed ?? 0);
    this.cuts = this.#temperature > 0 && this.#topP < 1;
  }

  /** Temperature of the next token, and where in [0, 1) it is along all probabilities in order. */
  draw(): readonly [temperature: number, place: number] {
    return [this.#temperature, this.#temperature > 0 ? this.#random.unit() : 0];
  }

  /**
   * One of the fewest tokens whose probabilities reach topP, of a row of logits; `best` is the first of
   * the largest.
   */
  next(logits: Float32Array, best: number): number {
    const weights = this.#weigh(logits, logits[best] as number);
    const total = this.#total;
    // Those below the mean of what is to be left out are left out: the others alone are enough.
    const least = ((1 - this.#topP) * total) / weights.length;
    const order: number[] = [];
    for (let i = 0; i < weights.length; i++) {
      if ((weights[i] as number) >= least) order.push(i);
    }
    // Ties in order of their numbers, so that a seed gives the same text everywhere.
    order.sort((x, y) => (weights[y] as number) - (weights[x] as number) || x - y);
    let kept = 0;
    let sum = 0;
    while (kept < order.length && sum < this.#topP * total) {
      sum += weights[order[kept++] as number] as number;
    }
    let left = this.#random.unit() * sum;
    for (let n = 0; n < kept; n++) {
      const i = order[n] as number;
      left -= weights[i] as number;
      if (left < 0) return i;
    }
    return best;
  }

  /** Probabilities up to a factor; what is no number has none. */
  #weigh(logits: Float32Array, top: number): Float64Array {
    if (this.#weights.length !== logits.length) this.#weights = new Float64Array(logits.length);
    let total = 0;
    for (let i = 0; i < logits.length; i++) {
      const w = Math.exp(((logits[i] as number) - top) / this.#temperature);
      this.#weights[i] = w > 0 ? w : 0;
      total += this.#weights[i] as number;
    }
    this.#total = total;
    return this.#weights;
  }
}

/**
 * A token of each row of logits [M, V], by a sampler of its own: drawn where the logits are, on several
 * threads or the GPU. What is drawn in a row depends on nothing beside it.
 *
 * Throws: AQ_NUMERIC where a row has no number.
 */
export async function chooseTokens(
  logits: Tensor,
  samplers: readonly Sampler[],
): Promise<Int32Array> {
  // One that cuts is told the largest.
  const draws = samplers.flatMap((sampler) => (sampler.cuts ? [0, 0] : sampler.draw()));
  const places = Tensor.from(Float64Array.from(draws), [samplers.length, 2], "f64", logits.device);
  const drawn = invokeOne("draw_tokens", [logits, places]);
  try {
    const ids = (await drawn.readAsync()) as Int32Array;
    if (ids.some((id) => id < 0)) {
      const text = "the model's logits are not numbers: its weights are damaged";
      throw new AqError("AQ_NUMERIC", text);
    }
    if (!samplers.some(({ cuts }) => cuts)) return ids;
    const all = (await logits.readAsync()) as Float32Array;
    const vocabulary = all.length / samplers.length;
    return ids.map((best, n) => {
      const sampler = samplers[n] as Sampler;
      if (!sampler.cuts) return best;
      return sampler.next(all.subarray(n * vocabulary, (n + 1) * vocabulary), best);
    });
  } finally {
    drawn.dispose();
    places.dispose();
  }
}
