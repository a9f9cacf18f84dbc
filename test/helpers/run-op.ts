// Runs one call of a case on the engine and reads everything that the op wrote.
import { invoke } from "../../lib/tensor/invoke.ts";
import { scope } from "../../lib/tensor/scope.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import type { Call, Dims, OpCase } from "../cases/case.ts";
import { difference, type Tolerance } from "./compare.ts";
import { Draw } from "./random.ts";
import { decode, encode, type FloatType, type Value } from "./value.ts";

/** Where and in which float type a call runs. */
export interface Place {
  readonly device: string;
  readonly dtype: FloatType;
}

/** A tensor with the numbers of a value. */
export function toTensor(value: Value, { device, dtype }: Place): Tensor {
  const type = value.dtype ?? dtype;
  return Tensor.from(encode(value.data, type), value.shape, type, device);
}

/** Results of a call as float64: every output, then every written input. */
export function runCall(op: OpCase, call: Call, place: Place): readonly Float64Array[] {
  return scope(() => {
    const inputs = call.inputs.map((value) => value && toTensor(value, place));
    const outs = call.outs?.map((value) => toTensor(value, place));
    const results = invoke(op.op, inputs, call.params, outs);
    const written = (op.writes ?? []).map((i) => inputs[i] as Tensor);
    return [...results, ...written].map((tensor) => decode(tensor.read(), tensor.dtype));
  });
}

/** The call of a set; the seed is fixed, so that every run and process sees the same numbers. */
export function makeCall(op: OpCase, dims: Dims, dtype: FloatType): Call {
  return op.make(new Draw(op.sets.indexOf(dims) + 17 * op.op.length, dtype), dims);
}

/** Compares one set with the float64 reference; a text for the first result that is off. */
export function compareSet(
  op: OpCase,
  dims: Dims,
  place: Place,
  tolerance: Tolerance = op.tolerance[place.dtype],
): string | undefined {
  const call = makeCall(op, dims, place.dtype);
  const expected = op.reference(call);
  const actual = runCall(op, call, place);
  if (actual.length !== expected.length) {
    return `${op.op} gave ${actual.length} results, expected ${expected.length}`;
  }
  for (let i = 0; i < expected.length; i++) {
    const what = `${op.op} result ${i}, ${place.dtype} on ${place.device}`;
    const text = difference(what, actual[i] ?? [], expected[i] ?? [], tolerance);
    if (text) return text;
  }
  return undefined;
}
