// A Value is what cases and references compute on: float64 numbers with a shape. Its dtype is the
// float type under test unless the op fixes one (ids, codes, tables in half precision).
import type { DType, TypedArray } from "../../lib/tensor/dtype.ts";
import {
  BF16,
  F16,
  type HalfFormat,
  halfFromBits,
  halfToBits,
  roundEven,
  roundHalf,
} from "./half.ts";

/** The float types that every op with a `T` takes. */
export type FloatType = "f32" | "f64";

/** In what type the numbers lie that an op takes short (params.h: S), their gradients in bf16. */
export type ShortType = "f16" | "bf16";

export interface Value {
  readonly data: Float64Array;
  readonly shape: readonly number[];
  /** Absent: the float type under test. */
  readonly dtype?: DType;
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1);
}

/** `x` as the dtype can hold it. */
export function roundTo(x: number, dtype: DType): number {
  switch (dtype) {
    case "f64":
      return x;
    case "f32":
      return Math.fround(x);
    case "f16":
      return roundHalf(x, F16);
    case "bf16":
      return roundHalf(x, BF16);
    case "i32":
    case "i8":
    case "u8":
      return roundEven(x);
  }
}

/** Bit patterns, by a plain loop: the iteration of `from` takes seconds on a table of embeddings. */
function halfBits(data: Float64Array, format: HalfFormat): Uint16Array {
  const bits = new Uint16Array(data.length);
  for (let i = 0; i < bits.length; i++) bits[i] = halfToBits(data[i] ?? 0, format);
  return bits;
}

/** The bytes that a tensor of the dtype is written from. */
export function encode(data: Float64Array, dtype: DType): TypedArray {
  switch (dtype) {
    case "f64":
      return data;
    case "f32":
      return new Float32Array(data);
    case "f16":
      return halfBits(data, F16);
    case "bf16":
      return halfBits(data, BF16);
    case "i32":
      return new Int32Array(data);
    case "i8":
      return new Int8Array(data);
    case "u8":
      return new Uint8Array(data);
  }
}

/** Numbers of what was read from a tensor of the dtype. */
export function decode(data: TypedArray, dtype: DType): Float64Array {
  if (dtype === "f16") return Float64Array.from(data, (bits) => halfFromBits(bits, F16));
  if (dtype === "bf16") return Float64Array.from(data, (bits) => halfFromBits(bits, BF16));
  return new Float64Array(data);
}
