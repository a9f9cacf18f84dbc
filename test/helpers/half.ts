// The two 16-bit floats in plain arithmetic: values are rounded to nearest even and converted from
// and to bit patterns without any help from the engine.

/** Sizes of a 16-bit float. */
export interface HalfFormat {
  /** Stored mantissa bits. */
  readonly mantissa: number;
  /** Exponent of the smallest normal number. */
  readonly minExponent: number;
  /** Exponent of the largest finite number. */
  readonly maxExponent: number;
}

/** IEEE binary16. */
export const F16: HalfFormat = { mantissa: 10, minExponent: -14, maxExponent: 15 };
/** The upper half of an IEEE binary32. */
export const BF16: HalfFormat = { mantissa: 7, minExponent: -126, maxExponent: 127 };

/** Nearest integer, halves to the even one. */
export function roundEven(x: number): number {
  const down = Math.floor(x);
  const fraction = x - down;
  if (fraction !== 0.5) return fraction < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

const float = new Float64Array(1);
const words = new Uint32Array(float.buffer);

/** Exponent of a number other than zero, from its bits (little-endian); at most -1023 if subnormal. */
function exponentOf(magnitude: number): number {
  float[0] = magnitude;
  return (((words[1] ?? 0) >>> 20) & 0x7ff) - 1023;
}

/** `x` rounded to the format; overflow gives an infinity. */
export function roundHalf(x: number, format: HalfFormat): number {
  if (x === 0 || !Number.isFinite(x)) return x;
  const exponent = Math.max(exponentOf(Math.abs(x)), format.minExponent);
  const step = 2 ** (exponent - format.mantissa);
  const rounded = roundEven(x / step) * step;
  const largest = (2 - 2 ** -format.mantissa) * 2 ** format.maxExponent;
  return Math.abs(rounded) > largest ? Math.sign(x) * Number.POSITIVE_INFINITY : rounded;
}

/** Bit pattern of `x` after rounding to the format. */
export function halfToBits(x: number, format: HalfFormat): number {
  const value = roundHalf(x, format);
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const exponentMask = 0x7fff - (2 ** format.mantissa - 1);
  if (Number.isNaN(value)) return exponentMask | 1;
  const magnitude = Math.abs(value);
  if (magnitude === Number.POSITIVE_INFINITY) return sign | exponentMask;
  if (magnitude === 0) return sign;
  const exponent = Math.max(exponentOf(magnitude), format.minExponent);
  const steps = magnitude / 2 ** (exponent - format.mantissa);
  // A subnormal has fewer steps than 2^mantissa, so that the sum stays below the first exponent.
  return sign | ((exponent - format.minExponent) * 2 ** format.mantissa + steps);
}

/** Value of a bit pattern of the format. */
export function halfFromBits(bits: number, format: HalfFormat): number {
  const one = 2 ** format.mantissa;
  const sign = bits & 0x8000 ? -1 : 1;
  const body = bits & 0x7fff;
  const exponent = Math.floor(body / one);
  const fraction = body % one;
  if (exponent === format.maxExponent - format.minExponent + 2) {
    return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  }
  const power = 2 ** (Math.max(exponent, 1) - 1 + format.minExponent - format.mantissa);
  return sign * (exponent === 0 ? fraction : one + fraction) * power;
}
