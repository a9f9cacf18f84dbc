// What the cases of lib/autograd/ops have in common.
import type { Graph, Var } from "../../lib/autograd/graph.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";

export interface GraphCase {
  /** Files of lib/autograd/ops that it exercises, without ".ts". */
  readonly pairs: readonly string[];
  readonly title: string;
  readonly inputs: readonly Value[];
  loss(graph: Graph, inputs: readonly Var[]): Var;
  /** Gradient of every input where differences mean nothing. */
  readonly rule?: () => readonly Float64Array[];
}

/** Of all graph cases. */
export const draw: Draw = new Draw(5, "f64");

/** A value without a gradient. */
export function constant(graph: Graph, value: Value): Var {
  return graph.constant(Tensor.from(value.data, value.shape));
}

/** An input that must be there. */
export function at(vars: readonly Var[], i: number): Var {
  const value = vars[i];
  if (!value) throw new Error(`the case has no input ${i}`);
  return value;
}
