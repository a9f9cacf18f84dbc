// Elementwise ops in float64.
import type { DType } from "../../lib/tensor/dtype.ts";
import { roundTo } from "../helpers/value.ts";
import { at } from "./numbers.ts";

/** The numbers that the dtype holds after a numeric conversion. */
export function cast(x: Float64Array, dtype: DType): Float64Array {
  return x.map((value) => roundTo(value, dtype));
}

/** a + alpha b */
export function add(a: Float64Array, b: Float64Array, alpha: number): Float64Array {
  return a.map((value, i) => value + alpha * at(b, i));
}

/** y + alpha x */
export function axpy(y: Float64Array, x: Float64Array, alpha: number): Float64Array {
  return y.map((value, i) => value + alpha * at(x, i));
}

/** alpha a b */
export function mul(a: Float64Array, b: Float64Array, alpha: number): Float64Array {
  return a.map((value, i) => alpha * value * at(b, i));
}

/** e^(scale x) */
export function exp(x: Float64Array, scale: number): Float64Array {
  return x.map((value) => Math.exp(scale * value));
}
