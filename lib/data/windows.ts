/** Windows of equal length cut from the ids of a text. All are views, none a copy. */

import { AqError } from "../errors.ts";
import { createRandom } from "../util/random.ts";

/**
 * The first `count` non-overlapping windows, in order; the rest of the ids that fills no window is
 * dropped. A text with fewer gives all it has: the result's length says how many.
 *
 * Shapes: each window [seqlen]. Throws: AQ_ARG when there is not even one.
 */
export function sequentialWindows(ids: Int32Array, seqlen: number, count: number): Int32Array[] {
  checkRequest(ids, seqlen, count);
  const available = Math.min(count, Math.floor(ids.length / seqlen));
  return Array.from({ length: available }, (_, i) => ids.subarray(i * seqlen, (i + 1) * seqlen));
}

/**
 * `count` windows from random places, the same for the same seed; they may overlap, but no two start
 * at the same token. A text with fewer places gives one window for each.
 *
 * Shapes: each window [seqlen]. Throws: AQ_ARG when there is not even one.
 * Source: xoshiro128** (util/random.ts); places are drawn without replacement by Floyd's method.
 */
export function randomWindows(
  ids: Int32Array,
  seqlen: number,
  count: number,
  seed: number,
): Int32Array[] {
  checkRequest(ids, seqlen, count);
  const random = createRandom(seed);
  const places = ids.length - seqlen + 1;
  const starts = new Set<number>();
  for (let last = places - Math.min(count, places); last < places; last++) {
    const start = random.below(last + 1);
    starts.add(starts.has(start) ? last : start);
  }
  return Array.from(starts, (start) => ids.subarray(start, start + seqlen));
}

function checkRequest(ids: Int32Array, seqlen: number, count: number): void {
  for (const [name, value] of Object.entries({ seqlen, count })) {
    if (!Number.isSafeInteger(value) || value < 1) {
      throw new AqError("AQ_ARG", `Windows: ${name} must be a positive integer, got ${value}.`);
    }
  }
  if (ids.length < seqlen) {
    throw new AqError(
      "AQ_ARG",
      `The text has ${ids.length} tokens, but one window needs ${seqlen}; use a longer text or a smaller seqlen.`,
    );
  }
}
