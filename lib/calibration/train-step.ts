/**
 * An optimizer step: record a loss, go back, check, apply. Nothing is waited for in between: the device
 * itself leaves everything as it was where the check fails.
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
  /** Smallest dominance margin of its matrices after the step; null without any. */
  readonly margin: number | null;
}

/** Sees the gradients before they are applied, by parameter name; for diagnosis and fault tests. */
export type GradientWatcher = (gradients: ReadonlyMap<string, Tensor>, step: number) => void;

/** Whether, how far and for the how many-th time parameters move. */
export interface StepControl {
  /** I32[1]: nothing is changed where it is 0. Absent: the step is taken. */
  readonly guard?: Tensor | undefined;
  /** F64[2], rate and step: the device reads them from here. */
  readonly schedule?: Tensor | undefined;
  /** Share of the rates. */
  readonly rate: number;
  /** Counts from 1. */
  readonly step: number;
}

/** What a step is made of. */
export interface StepParts extends Pick<StepControl, "rate" | "step"> {
  /** What the loss is differentiated by, by name: learned tensors, or matrices under their mask. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Those of them, in the type of a GPU's products, that are kept so too. */
  readonly rounded?: ReadonlyMap<string, Tensor>;
  /** Makes what differs from step to step in what is recorded. Called in a scope. */
  inputs(): readonly Tensor[];
  /** Records the loss for inputs like these. */
  record(tape: Tape, vars: ReadonlyMap<string, Var>, inputs: readonly Tensor[]): Var;
  /** Applies the gradients. Returns the margins of all matrices as one tensor, if there are any. */
  apply(gradients: ReadonlyMap<string, Tensor>, control: StepControl): Tensor | undefined;
  readonly watch: GradientWatcher | undefined;
  /** Steps of one value do the same but for inputs, rate and step. Absent: no other step does. */
  readonly repeats?: string | undefined;
}

/** A step that the device has; the promise rejects where the device fails. */
export interface Submitted {
  readonly result: Promise<StepResult>;
}

/**
 * Gives the device all of a step. `isWanted` is asked when it is recorded and not applied yet; undefined
 * where it is not to be applied after all.
 */
export async function submitStep(
  parts: StepParts,
  isWanted: () => Promise<boolean>,
): Promise<Submitted | undefined> {
  const { loss, gradients } = scope(() => differentiate(parts, parts.inputs()));
  try {
    if (!(await isWanted())) return undefined;
    if (parts.watch && Number.isFinite((await loss.readAsync())[0])) {
      parts.watch(gradients, parts.step);
    }
    const status = apply(parts, loss, gradients);
    return { result: readStatus(status).finally(() => status.dispose()) };
  } finally {
    for (const tensor of [loss, ...gradients.values()]) tensor.dispose();
  }
}

/** Enqueues all of a step on `inputs`; its rate and step come from the schedule. Returns the status. */
export function enqueueStep(parts: StepParts, inputs: readonly Tensor[], schedule: Tensor): Tensor {
  const { loss, gradients } = differentiate(parts, inputs);
  try {
    return apply(parts, loss, gradients, schedule);
  } finally {
    for (const tensor of [loss, ...gradients.values()]) tensor.dispose();
  }
}

/** What a backward pass leaves; the caller owns it. */
interface Differentiated {
  /** [1] */
  readonly loss: Tensor;
  readonly gradients: ReadonlyMap<string, Tensor>;
}

function differentiate(
  { parameters, rounded, record }: StepParts,
  inputs: readonly Tensor[],
): Differentiated {
  return scope(() => {
    const tape = new Tape();
    const vars = new Map(
      [...parameters].map(([name, tensor]) => [name, tape.parameter(tensor, rounded?.get(name))]),
    );
    const total = record(tape, vars, inputs);
    const loss = invokeOne("cast", [total.value.tensor], { dtype: dtypeCode("f32") });
    tape.backward(total);
    const gradients = new Map<string, Tensor>();
    for (const [name, v] of vars) {
      const gradient = tape.gradient(v);
      if (gradient) gradients.set(name, gradient);
    }
    for (const tensor of [loss, ...gradients.values()]) keep(tensor);
    return { loss, gradients };
  });
}

/** Checks and applies. Returns the status [2 + n]: the loss, whether it was applied, and the margins. */
function apply(
  parts: StepParts,
  loss: Tensor,
  gradients: ReadonlyMap<string, Tensor>,
  schedule?: Tensor,
): Tensor {
  const { rate, step } = parts;
  return scope(() => {
    const guard = invokeOne("all_finite", [loss, ...gradients.values()]);
    const margins = parts.apply(gradients, { guard, schedule, rate, step });
    const status = Tensor.empty([2 + (margins?.size ?? 0)], "f32", loss.device);
    let at = 0;
    for (const tensor of [loss, guard, margins]) {
      if (!tensor) continue;
      const place = status.view(at, tensor.shape);
      invokeOne("cast", [tensor], { dtype: dtypeCode("f32") }, place);
      at += tensor.size;
    }
    return status;
  });
}

/** What the status that was just enqueued will say. */
export async function readStatus(status: Tensor): Promise<StepResult> {
  const [loss = Number.NaN, guard, ...margins] = await status.readAsync();
  const margin = margins.length > 0 ? Math.min(...margins) : null;
  return { loss, applied: guard === 1, margin };
}
