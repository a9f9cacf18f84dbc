/**
 * The 16-bit floats in plain arithmetic: decoding is exact, encoding rounds to nearest, ties to even.
 * Readers and the check of written files use this and not the engine, which writes them.
 */

/** A 32-bit float and its bits. */
const single: Float32Array<ArrayBuffer> = new Float32Array(1);
const bitsOfSingle: Uint32Array<ArrayBuffer> = new Uint32Array(single.buffer);

/** Element types of scales and plain tensors that have a 16- or 32-bit float behind them. */
export type FloatName = "F32" | "F16" | "BF16";

/** Bits of a value as F32. */
function f32Bits(x: number): number {
  single[0] = x;
  return bitsOfSingle[0] as number;
}

/** The value of 32 bits. */
function fromF32Bits(bits: number): number {
  bitsOfSingle[0] = bits;
  return single[0] as number;
}

/** Bits of a single-precision value as F16. */
export function f16Bits(x: number): number {
  return f16OfF32(f32Bits(x));
}

/** The same from bits to bits. */
function f16OfF32(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const size = bits & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00;
  // From 65520 on the nearest is infinity.
  if (size >= 0x477ff000) return sign | 0x7c00;
  if (size >= 0x38800000) return sign | ((size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13);
  const steps = fromF32Bits(size) * 2 ** 24;
  const below = Math.floor(steps);
  const rest = steps - below;
  const isUp = rest > 0.5 || (rest === 0.5 && below % 2 === 1);
  return sign | (below + (isUp ? 1 : 0));
}

/** Bits of a single-precision value, as bits, as BF16. */
function bf16OfF32(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The value of 16 bits as F16. */
function fromF16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 0x3ff;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The value of 16 bits as BF16. */
function fromBf16Bits(bits: number): number {
  return fromF32Bits((bits << 16) >>> 0);
}

/** Values of all bits of F16, made at the first use. */
let values16: Float32Array | undefined;

/** The values of little-endian floats. `bytes` must begin at a multiple of four of its memory. */
export function decodeFloats(bytes: Uint8Array, dtype: FloatName): Float32Array<ArrayBuffer> {
  if (dtype === "F32")
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4).slice();
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  const values = new Float32Array(halves.length);
  if (dtype === "F16") {
    values16 ??= Float32Array.from({ length: 2 ** 16 }, (_, bits) => fromF16Bits(bits));
    for (let i = 0; i < halves.length; i++) values[i] = values16[halves[i] as number] as number;
  } else {
    const bits = new Uint32Array(values.buffer);
    for (let i = 0; i < halves.length; i++) bits[i] = (halves[i] as number) << 16;
  }
  return values;
}

/** Bits of values in a float type, rounded to it: 16 or 32 each. */
export function encodeFloats(values: Float32Array, dtype: FloatName): Uint16Array | Uint32Array {
  const singles = new Uint32Array(values.buffer, values.byteOffset, values.length);
  if (dtype === "F32") return singles;
  const bits = new Uint16Array(values.length);
  if (dtype === "F16") {
    for (let i = 0; i < bits.length; i++) bits[i] = f16OfF32(singles[i] as number);
  } else {
    for (let i = 0; i < bits.length; i++) bits[i] = bf16OfF32(singles[i] as number);
  }
  return bits;
}

/** Bits of little-endian floats as they are stored. */
export function storedBits(bytes: Uint8Array, dtype: FloatName): Uint16Array | Uint32Array {
  return dtype === "F32"
    ? new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
}

/** The value of bits of a float type. */
export function valueOfBits(bits: number, dtype: FloatName): number {
  if (dtype === "F16") return fromF16Bits(bits);
  return dtype === "BF16" ? fromBf16Bits(bits) : fromF32Bits(bits);
}
