// Comparison of numbers with a reference: |a - b| <= atol + rtol |b|, and a message that says where,
// what and how far.

export interface Tolerance {
  readonly rtol: number;
  readonly atol: number;
}

/** Text about the first and the worst element outside the tolerance, or undefined if none is. */
export function difference(
  what: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol, atol }: Tolerance,
): string | undefined {
  if (actual.length !== expected.length) {
    return `${what}: ${actual.length} elements, expected ${expected.length}`;
  }
  let first = -1;
  let worst = -1;
  let worstRatio = 0;
  let count = 0;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i] ?? Number.NaN;
    const b = expected[i] ?? Number.NaN;
    if (Object.is(a, b) || a === b) continue;
    const ratio = Math.abs(a - b) / (atol + rtol * Math.abs(b));
    if (ratio <= 1) continue;
    if (first < 0) first = i;
    count++;
    if (worst < 0 || !(ratio <= worstRatio)) {
      worst = i;
      worstRatio = ratio;
    }
  }
  if (count === 0) return undefined;
  const at = (i: number) => `[${i}] is ${actual[i]}, expected ${expected[i]}`;
  return (
    `${what}: ${count} of ${expected.length} elements outside rtol ${rtol}, atol ${atol}; ` +
    `first ${at(first)}; worst ${at(worst)} (${worstRatio.toPrecision(3)} times the limit)`
  );
}
