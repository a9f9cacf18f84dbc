// What a case file says about its ops. One object per op drives the forward test, the gradient test,
// the thread and SIMD comparisons and the benchmark.
import type { Tolerance } from "../helpers/compare.ts";
import type { Draw } from "../helpers/random.ts";
import type { FloatType, Value } from "../helpers/value.ts";

/** Sizes and parameters of one set, by the letters of params.h. */
export type Dims = Readonly<Record<string, number>>;

/** One call of an op. */
export interface Call {
  readonly inputs: readonly (Value | undefined)[];
  readonly params: Readonly<Record<string, number>>;
  /** Tensors given as outputs, for ops that add to what is there. */
  readonly outs?: readonly Value[];
}

/** How a gradient op is checked: differences of its forward, or the written rule. */
export interface GradientOf {
  readonly forward: string;
  readonly kind: "smooth" | "rule";
}

export interface OpCase {
  readonly op: string;
  readonly gradient?: GradientOf;
  /** Float types to run with; default both. */
  readonly dtypes?: readonly FloatType[];
  /** The op takes short types (S in params.h): `make` says which inputs, by Draw.stored and .gradient. */
  readonly short?: boolean;
  /** Small sets for tests: odd sizes, one element, grouped heads, short groups. */
  readonly sets: readonly Dims[];
  /** Sets of real models for the benchmark. */
  readonly real: readonly Dims[];
  make(draw: Draw, dims: Dims): Call;
  /** Float64 results: every output, then every written input. */
  reference(call: Call): readonly Float64Array[];
  /** Positions of the inputs that the op writes. */
  readonly writes?: readonly number[];
  /** The inputs from here on are a group that a call may give more than once. */
  readonly repeatFrom?: number;
  readonly tolerance: Readonly<Record<FloatType, Tolerance>>;
  /** Bytes that must cross memory, given the size of a T. */
  bytes(dims: Dims, size: number): number;
  flops(dims: Dims): number;
  /** What limits the op at real sizes. */
  readonly bound: "memory" | "flops";
}

/** Tolerances of an op that rounds a few times per element. */
export const CLOSE: OpCase["tolerance"] = {
  f32: { rtol: 2e-6, atol: 1e-6 },
  f64: { rtol: 1e-13, atol: 1e-14 },
};

/** Tolerances of an op that sums over a dimension. */
export const SUMMED: OpCase["tolerance"] = {
  f32: { rtol: 2e-5, atol: 1e-5 },
  f64: { rtol: 1e-11, atol: 1e-12 },
};

/** Tolerances of a gradient against differences of the float64 reference. */
export const DIFFERENCES: OpCase["tolerance"] = {
  f32: { rtol: 1e-3, atol: 2e-4 },
  f64: { rtol: 1e-6, atol: 1e-8 },
};

/** Tolerances of an op whose result is exact. */
export const EXACT: OpCase["tolerance"] = {
  f32: { rtol: 0, atol: 0 },
  f64: { rtol: 0, atol: 0 },
};

/** The number of a dimension that the set must have. */
export function dim(dims: Dims, name: string): number {
  const n = dims[name];
  if (n === undefined) throw new Error(`the set ${JSON.stringify(dims)} has no ${name}`);
  return n;
}

/** A parameter of a call. */
export function param(call: Call, name: string): number {
  const n = call.params[name];
  if (n === undefined) throw new Error(`the call has no parameter ${name}`);
  return n;
}

/** An input of a call that must be there. */
export function input(call: Call, index: number): Value {
  const value = call.inputs[index];
  if (value === undefined) throw new Error(`the call has no input ${index}`);
  return value;
}

/** Text of a set for test names and tables: "M=3 K=5 bits=4". */
export function label(dims: Dims): string {
  return Object.entries(dims)
    .map(([name, n]) => `${name}=${n}`)
    .join(" ");
}
