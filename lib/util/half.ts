/** IEEE binary16 numbers as bit patterns: scales are stored so, and JavaScript has no array of them. */

const single = new Float32Array(1);
const word = new Uint32Array(single.buffer);

/** The largest magnitude that still rounds to a finite binary16 lies below this. */
export const HALF_LIMIT = 65520;

/** Values of all 65,536 patterns, made at the first use. */
let table: Float32Array | undefined;

function decode(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return exponent === 0
    ? sign * fraction * 2 ** -24
    : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Values by pattern. */
export function halfValues(): Float32Array {
  table ??= Float32Array.from({ length: 65536 }, (_, bits) => decode(bits));
  return table;
}

/** The pattern nearest to a number that is exact in float32, halves to even. */
export function toHalf(x: number): number {
  single[0] = x;
  const bits = word[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const size = bits & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00;
  const magnitude = Math.abs(x);
  if (magnitude >= HALF_LIMIT) return sign | 0x7c00;
  // Below the smallest normal number the steps are equal, and a power of two brings them to integers.
  if (size < 0x38800000) return sign | roundEven(magnitude * 2 ** 24);
  // One bit too many on the left of the fraction carries into the exponent, as it should.
  const rounded = (size + 0xfff + ((size >>> 13) & 1)) >>> 13;
  return sign | (rounded - (112 << 10));
}

function roundEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
}
