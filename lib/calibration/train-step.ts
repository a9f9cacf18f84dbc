/** One optimizer step: record a loss, go back, check, apply. */

import type { Var } from "../autograd/graph.ts";
import { Tape } from "../autograd/tape.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

export interface StepResult {
  readonly loss: number;
  /** False: loss or a gradient was not finite, and nothing was changed. */
  readonly applied: boolean;
  /** Smallest dominance margin after the step; undefined without matrices. */
  readonly margin: number | undefined;
}

/** Sees the gradients before they are applied, by parameter name; for diagnosis and fault tests. */
export type GradientWatcher = (gradients: ReadonlyMap<string, Tensor>, step: number) => void;

/** What a step is made of. */
export interface StepParts {
  /** Learned tensors by name. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Records the loss of one window. */
  record(tape: Tape, vars: ReadonlyMap<string, Var>): Var;
  /** Applies finite gradients; returns the smallest dominance margin, if there are matrices. */
  apply(gradients: ReadonlyMap<string, Tensor>): number | undefined;
  /** Counted from 1, for the watcher. */
  readonly step: number;
  readonly watch: GradientWatcher | undefined;
}

/** Runs a step. A loss or gradient that is not finite leaves everything as it was. */
export function trainStep({ parameters, record, apply, step, watch }: StepParts): StepResult {
  return scope(() => {
    const tape = new Tape();
    const vars = new Map([...parameters].map(([name, tensor]) => [name, tape.parameter(tensor)]));
    const total = record(tape, vars);
    const loss = total.value.tensor.item();
    if (!Number.isFinite(loss)) return { loss, applied: false, margin: undefined };

    tape.backward(total);
    const gradients = new Map<string, Tensor>();
    for (const [name, v] of vars) {
      const gradient = tape.gradient(v);
      if (gradient) gradients.set(name, gradient);
    }
    watch?.(gradients, step);
    for (const gradient of gradients.values()) {
      if (invokeOne("all_finite", [gradient]).item() !== 1) {
        return { loss, applied: false, margin: undefined };
      }
    }
    return { loss, applied: true, margin: apply(gradients) };
  });
}
