// Runs one call of a case on the engine and reads everything that the op wrote.
import type { DType } from "../../lib/tensor/dtype.ts";
import { invoke, opInfo } from "../../lib/tensor/invoke.ts";
import { scope } from "../../lib/tensor/scope.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import type { Call, Dims, OpCase } from "../cases/case.ts";
import { difference, type Tolerance } from "./compare.ts";
import { Draw } from "./random.ts";
import { decode, encode, type FloatType, type ShortType, type Value } from "./value.ts";

/** What a call is run in: a float type, with what may lie short in a short type. */
export interface Variant {
  readonly dtype: FloatType;
  readonly short?: ShortType;
}

/** Every variant of an op. */
export function variants({ dtypes, short }: OpCase): readonly Variant[] {
  const plain = (dtypes ?? (["f64", "f32"] as const)).map((dtype) => ({ dtype }));
  const shorts = short ? (["f16", "bf16"] as const) : [];
  return [...plain, ...shorts.map((type) => ({ dtype: "f32" as const, short: type }))];
}

/** A variant's name in tests. */
export function variantName({ dtype, short }: Variant): string {
  return short ? `${dtype}, stored in ${short}` : dtype;
}

/** Where and in which float type a call runs. */
export interface Place extends Variant {
  readonly device: string;
}

/** A tensor with the numbers of a value. */
export function toTensor(value: Value, { device, dtype }: Place): Tensor {
  const type = value.dtype ?? dtype;
  return Tensor.from(encode(value.data, type), value.shape, type, device);
}

/** Results of a call as float64: every output, then every written input. */
export function runCall(op: OpCase, call: Call, place: Place): readonly Float64Array[] {
  return runTyped(op, call, place).map(({ data }) => data);
}

/** Positions of the inputs that a call gives and the op writes, those of repeated groups included. */
export function writtenInputs({ op, writes = [], repeatFrom }: OpCase, { inputs }: Call): number[] {
  const all = [...writes];
  if (repeatFrom !== undefined) {
    const group = opInfo(op).inputs.length - repeatFrom;
    for (let shift = group; repeatFrom + shift < inputs.length; shift += group) {
      all.push(...writes.filter((i) => i >= repeatFrom).map((i) => i + shift));
    }
  }
  return all.filter((i) => inputs[i] !== undefined);
}

interface Typed {
  readonly data: Float64Array;
  readonly dtype: DType;
}

function runTyped(op: OpCase, call: Call, place: Place): readonly Typed[] {
  return scope(() => {
    const inputs = call.inputs.map((value) => value && toTensor(value, place));
    const outs = call.outs?.map((value) => toTensor(value, place));
    const results = invoke(op.op, inputs, call.params, outs);
    const written = writtenInputs(op, call).map((i) => inputs[i] as Tensor);
    return [...results, ...written].map((tensor) => ({
      data: decode(tensor.read(), tensor.dtype),
      dtype: tensor.dtype,
    }));
  });
}

/** The call of a set; the seed is fixed, so that every run and process sees the same numbers. */
export function makeCall(op: OpCase, dims: Dims, dtype: FloatType, short?: ShortType): Call {
  return op.make(new Draw(op.sets.indexOf(dims) + 17 * op.op.length, dtype, false, short), dims);
}

/** What rounding the result to a short type adds, twice half a unit in the last place. */
const SHORT_STEP: Partial<Record<DType, number>> = { bf16: 2 ** -8, f16: 2 ** -10 };

/** The tolerance of a result that has this type. */
export function ofResult({ rtol, atol }: Tolerance, dtype: DType): Tolerance {
  return { rtol: rtol + (SHORT_STEP[dtype] ?? 0), atol };
}

/** Compares one set with the float64 reference; a text for the first result that is off. */
export function compareSet(
  op: OpCase,
  dims: Dims,
  place: Place,
  tolerance: Tolerance = op.tolerance[place.dtype],
): string | undefined {
  const call = makeCall(op, dims, place.dtype, place.short);
  const expected = op.reference(call);
  const actual = runTyped(op, call, place);
  if (actual.length !== expected.length) {
    return `${op.op} gave ${actual.length} results, expected ${expected.length}`;
  }
  for (let i = 0; i < expected.length; i++) {
    const what = `${op.op} result ${i}, ${variantName(place)} on ${place.device}`;
    const { data, dtype } = actual[i] as Typed;
    const text = difference(what, data, expected[i] ?? [], ofResult(tolerance, dtype));
    if (text) return text;
  }
  return undefined;
}
