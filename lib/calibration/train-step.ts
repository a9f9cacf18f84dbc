/** One optimizer step on one window. */

import type { Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import type { Mask } from "../autograd/ops/gradual-mask.ts";
import { mse } from "../autograd/ops/mse.ts";
import { Tape } from "../autograd/tape.ts";
import { fakeQuantWeight } from "../quant/weights.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Parameter } from "./parameters.ts";
import {
  activationHook,
  type BlockProblem,
  foldedWeights,
  tokenClipName,
  weightClipName,
  windowOf,
} from "./problem.ts";

/** Rates and position of a step. */
export interface StepRates {
  /** Counted from 1 over all epochs, skipped steps included. */
  readonly step: number;
  readonly transformLr: number;
  readonly clipLr: number;
  readonly weightDecay: number;
}

export interface StepResult {
  readonly loss: number;
  /** False: loss or a gradient was not finite, and nothing was changed. */
  readonly applied: boolean;
  /** Smallest dominance margin after the step; undefined without matrices. */
  readonly margin: number | undefined;
}

/** Sees the gradients before they are applied, by parameter name; for diagnosis and fault tests. */
export type GradientWatcher = (gradients: ReadonlyMap<string, Tensor>, step: number) => void;

/**
 * Fold, fake-quantize, run the block on window `n`, compare, go back, update.
 *
 * Loss: mean squared error of the quantized block on the quantized stream against the targets, plus,
 * with the second loss, against the full-precision block on the same input.
 */
export function trainStep(
  problem: BlockProblem,
  parameters: readonly Parameter[],
  n: number,
  mask: Mask,
  rates: StepRates,
  watch?: GradientWatcher,
): StepResult {
  return scope(() => {
    const tape = new Tape();
    const vars = new Map(parameters.map((p) => [p.name, tape.parameter(p.value)]));
    const total = recordLoss(problem, tape, vars, n, mask);
    const loss = total.value.tensor.item();
    if (!Number.isFinite(loss)) return { loss, applied: false, margin: undefined };

    tape.backward(total);
    const gradients = new Map<string, Tensor>();
    for (const [name, v] of vars) {
      const gradient = tape.gradient(v);
      if (gradient) gradients.set(name, gradient);
    }
    watch?.(gradients, rates.step);
    for (const gradient of gradients.values()) {
      if (invokeOne("all_finite", [gradient]).item() !== 1)
        return { loss, applied: false, margin: undefined };
    }

    let margin: number | undefined;
    for (const parameter of parameters) {
      const gradient = gradients.get(parameter.name);
      if (!gradient) continue;
      const lr = parameter.group === "clip" ? rates.clipLr : rates.transformLr;
      const own = parameter.update(gradient, rates.step, lr, rates.weightDecay, mask);
      if (own !== undefined) margin = Math.min(margin ?? own, own);
    }
    return { loss, applied: true, margin };
  });
}

function recordLoss(
  problem: BlockProblem,
  tape: Tape,
  vars: ReadonlyMap<string, Var>,
  n: number,
  mask: Mask,
): Var {
  const { model, scheme, context } = problem;
  const weights = foldedWeights(problem, tape, problem.weights, vars, mask);
  for (const { key } of model.linears) {
    weights[key] = fakeQuantWeight(
      tape,
      weights[key] as Var,
      vars.get(weightClipName(key)),
      scheme,
    );
  }
  const clips = new Map<string, Var>();
  for (const name of model.activations) {
    const clip = vars.get(tokenClipName(name));
    if (clip) clips.set(name, clip);
  }
  const x = tape.constant(windowOf(problem.inputs, n));
  const y = model.block(tape, context, weights, x, activationHook(scheme, clips));
  const loss = mse(tape, y, tape.constant(windowOf(problem.targets, n)));
  if (!problem.augTargets) return loss;
  return add(tape, loss, mse(tape, y, tape.constant(windowOf(problem.augTargets, n))));
}
