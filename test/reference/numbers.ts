// Element access of the references: reading outside an array is a mistake in the reference itself.

/** Element `i`, which must exist. */
export function at(x: Float64Array, i: number): number {
  const value = x[i];
  if (value === undefined) throw new RangeError(`element ${i} of ${x.length}`);
  return value;
}

/** x[i] += value. */
export function addAt(x: Float64Array, i: number, value: number): void {
  x[i] = at(x, i) + value;
}

/** 1 / (1 + e^-x). */
export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
