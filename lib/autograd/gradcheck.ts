/** Checks gradients of a graph against central differences, in float64. */

import { AqError } from "../errors.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Graph, Var } from "./graph.ts";
import { Eager } from "./graph.ts";
import { Tape } from "./tape.ts";

/** Where the two disagree most. */
export interface GradcheckResult {
  readonly input: number;
  readonly index: number;
  readonly tape: number;
  readonly difference: number;
  /** |tape - difference| / max(1, |difference|). */
  readonly error: number;
}

/**
 * Largest disagreement between the tape's gradients and central differences of `loss` over all
 * elements of all inputs. `loss` must return one element and be smooth at the inputs.
 *
 * Throws: AQ_ARG if the loss is not one finite number.
 */
export function gradcheck(
  loss: (graph: Graph, inputs: readonly Var[]) => Var,
  inputs: readonly { readonly data: Float64Array; readonly shape: readonly number[] }[],
  step = 1e-5,
): GradcheckResult {
  const evaluate = (): number =>
    scope(() => {
      const graph = new Eager();
      const value = loss(
        graph,
        inputs.map(({ data, shape }) => graph.constant(Tensor.from(data, shape))),
      ).value.tensor.item();
      if (!Number.isFinite(value)) throw new AqError("AQ_ARG", `gradcheck: the loss is ${value}`);
      return value;
    });
  const gradients = scope(() => {
    const tape = new Tape();
    const vars = inputs.map(({ data, shape }) => tape.parameter(Tensor.from(data, shape)));
    tape.backward(loss(tape, vars));
    return { all: vars.map((v) => tape.gradient(v)?.read()) };
  }).all;

  let worst: GradcheckResult = { input: -1, index: -1, tape: 0, difference: 0, error: 0 };
  for (const [input, { data }] of inputs.entries()) {
    for (let index = 0; index < data.length; index++) {
      const kept = data[index] as number;
      data[index] = kept + step;
      const above = evaluate();
      data[index] = kept - step;
      const below = evaluate();
      data[index] = kept;
      const difference = (above - below) / (2 * step);
      const tape = gradients[input]?.[index] ?? 0;
      const error = Math.abs(tape - difference) / Math.max(1, Math.abs(difference));
      if (!(error <= worst.error)) worst = { input, index, tape, difference, error };
    }
  }
  return worst;
}
