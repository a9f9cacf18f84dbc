/** How the next token is chosen from logits. */

import { AqError } from "../errors.ts";
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
  }

  /** An index of `logits`. Throws: AQ_NUMERIC when none is a number. */
  next(logits: Float32Array): number {
    const best = argmax(logits);
    if (this.#temperature === 0) return best;
    const weights = this.#weigh(logits, logits[best] as number);
    const total = this.#total;
    if (this.#topP >= 1) return drawAmongAll(weights, this.#random.unit() * total, best);
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
    return draw(order, kept, weights, this.#random.unit() * sum, best);
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

/** The first of the largest. */
export function argmax(logits: Float32Array): number {
  let best = -1;
  let top = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) {
    const x = logits[i] as number;
    if (x > top) {
      best = i;
      top = x;
    }
  }
  if (best < 0) {
    throw new AqError("AQ_NUMERIC", "the model's logits are not numbers: its weights are damaged");
  }
  return best;
}

/** An index whose share of the weights holds `target`. */
function drawAmongAll(weights: Float64Array, target: number, otherwise: number): number {
  let left = target;
  for (let i = 0; i < weights.length; i++) {
    const w = weights[i] as number;
    if (!(w > 0)) continue;
    left -= w;
    if (left < 0) return i;
  }
  return otherwise;
}

/** The same among the first `count` of `order`. */
function draw(
  order: readonly number[],
  count: number,
  weights: Float64Array,
  target: number,
  otherwise: number,
): number {
  let left = target;
  for (let n = 0; n < count; n++) {
    const i = order[n] as number;
    left -= weights[i] as number;
    if (left < 0) return i;
  }
  return otherwise;
}
