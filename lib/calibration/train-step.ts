/**
 * One optimizer step: record a loss, go back, check, apply. The device is waited for once, when the
 * loss and what the check found are read together.
 */

import type { Var } from "../autograd/graph.ts";
import { Tape } from "../autograd/tape.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";

export interface StepResult {
  readonly loss: number;
  /** False: loss or a gradient was not finite, and nothing was changed. */
  readonly applied: boolean;
}

/** Sees the gradients before they are applied, by parameter name; for diagnosis and fault tests. */
export type GradientWatcher = (gradients: ReadonlyMap<string, Tensor>, step: number) => void;

/** What a step is made of. */
export interface StepParts {
  /** Learned tensors by name. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Records the loss of one window. */
  record(tape: Tape, vars: ReadonlyMap<string, Var>): Var;
  /** Applies finite gradients. */
  apply(gradients: ReadonlyMap<string, Tensor>): void;
  /** Counted from 1, for the watcher. */
  readonly step: number;
  readonly watch: GradientWatcher | undefined;
}

/** What a backward pass leaves; the caller owns it. */
interface Differentiated {
  /** [1] */
  readonly loss: Tensor;
  readonly gradients: ReadonlyMap<string, Tensor>;
}

/** Runs a step. A loss or gradient that is not finite leaves everything as it was. */
export async function trainStep(parts: StepParts): Promise<StepResult> {
  const { loss: lossTensor, gradients } = differentiate(parts);
  const owned = [lossTensor, ...gradients.values()];
  try {
    if (parts.watch && Number.isFinite((await lossTensor.readAsync())[0])) {
      parts.watch(gradients, parts.step);
    }
    const status = statusOf(lossTensor, [...gradients.values()]);
    owned.push(status);
    const [loss = Number.NaN, ...flags] = await status.readAsync();
    const applied = Number.isFinite(loss) && flags.every((flag) => flag === 1);
    if (applied) scope(() => parts.apply(gradients));
    return { loss, applied };
  } finally {
    for (const tensor of owned) tensor.dispose();
  }
}

function differentiate({ parameters, record }: StepParts): Differentiated {
  return scope(() => {
    const tape = new Tape();
    const vars = new Map([...parameters].map(([name, tensor]) => [name, tape.parameter(tensor)]));
    const total = record(tape, vars);
    const loss = keep(invokeOne("cast", [total.value.tensor], { dtype: dtypeCode("f32") }));
    tape.backward(total);
    const gradients = new Map<string, Tensor>();
    for (const [name, v] of vars) {
      const gradient = tape.gradient(v);
      if (gradient) gradients.set(name, keep(gradient));
    }
    return { loss, gradients };
  });
}

/** [1 + n]: the loss, and for each gradient 1 if all of it is finite. */
function statusOf(loss: Tensor, gradients: readonly Tensor[]): Tensor {
  return scope(() => {
    const count = gradients.length;
    const dtype = dtypeCode("f32");
    const status = Tensor.empty([1 + count], "f32", loss.device);
    invokeOne("cast", [loss], { dtype }, status.view(0, [1]));
    if (count === 0) return status;
    const flags = Tensor.empty([count], "i32", loss.device);
    for (const [i, gradient] of gradients.entries()) {
      invokeOne("all_finite", [gradient], {}, flags.view(i, [1]));
    }
    invokeOne("cast", [flags], { dtype }, status.view(1, [count]));
    return status;
  });
}
