/** Numbers against numbers, bit for bit; the first that differs ends it. */

import { AqError } from "../errors.ts";
import { type FloatName, valueOfBits } from "../packed/half.ts";

/** What is compared, for the sentence about a difference. */
export interface Place {
  /** Name in the file. */
  readonly tensor: string;
  readonly path: string;
  /** "code", "scale", "zero", "value". */
  readonly what: string;
}

/** Throws: AQ_FORMAT at the first index where the two differ. `columns` makes the index a pair. */
export function compareNumbers(
  place: Place,
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  columns: number,
  say = (x: number): string => (Object.is(x, -0) ? "-0" : String(x)),
): void {
  if (got.length !== expected.length) {
    throw differs(place, "", `${expected.length} numbers`, String(got.length));
  }
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [got[i] as number, expected[i] as number];
    if (!Object.is(a, b)) throw differs(place, indexOf(i, columns), say(b), say(a));
  }
}

/** The same for the bits of floats of a type. */
export function compareBits(
  place: Place,
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  dtype: FloatName,
  columns: number,
): void {
  const say = (bits: number): string => `${valueOfBits(bits, dtype)} (0x${bits.toString(16)})`;
  compareNumbers(place, got, expected, columns, say);
}

export function indexOf(at: number, columns: number): string {
  return columns > 0 ? `[${Math.floor(at / columns)}, ${at % columns}]` : `[${at}]`;
}

export function differs(
  { tensor, path, what }: Place,
  index: string,
  expected: string,
  got: string,
): AqError {
  const where = index === "" ? what : `${what} ${index}`;
  return new AqError(
    "AQ_FORMAT",
    `"${tensor}" in ${path} differs from the run at ${where}: expected ${expected}, got ${got}; export it again`,
  );
}
