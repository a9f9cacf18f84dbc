/**
 * Weights as a phase trains on them. On a GPU that multiplies in bf16 the linears lie in 16 bits: every
 * step reads all of them several times, and memory is what limits it. Folding, and the final codes,
 * go on from the f32 weights.
 */

import type { LoadedWeights } from "../models/load.ts";
import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { BlockProblem } from "./problem.ts";
import { recipeSites } from "./recipe.ts";

export interface TrainingWeights {
  readonly weights: LoadedWeights;
  /** Frees the copies; `weights` must not be used any more. */
  dispose(): void;
}

/**
 * Largest relative error (Frobenius) of a copy: f16 rounds by at most 2^-11, unless the numbers lie
 * outside of its range.
 */
const MOST_ERROR = 2 ** -11;

/** What a phase is to train on, from the block's f32 `weights`. The caller disposes it. */
export async function trainingWeights(
  problem: Pick<BlockProblem, "model" | "recipe" | "context">,
  use: "affine" | "round",
  weights: LoadedWeights,
): Promise<TrainingWeights> {
  const { model, recipe, context } = problem;
  if (precisionOf(context.device) !== "bf16") return { weights, dispose: () => {} };
  // What a full matrix multiplies goes into a product, whose type it then has.
  const multiplied = new Set(
    use === "affine"
      ? recipeSites(model, recipe).flatMap((s) => (s.kind === "norm-full" ? s.consumers : []))
      : [],
  );
  const copies: Record<string, Tensor> = {};
  const dispose = (): void => {
    for (const copy of Object.values(copies)) copy.dispose();
  };
  try {
    for (const { key } of model.linears) {
      const w = weights[key];
      if (!w) continue;
      const copy = await shortCopy(w, multiplied.has(key) ? "bf16" : "f16");
      if (copy) copies[key] = copy;
    }
  } catch (error) {
    dispose();
    throw error;
  }
  return { weights: { ...weights, ...copies }, dispose };
}

/** A copy in 16 bits; undefined where f16 cannot hold the numbers. */
async function shortCopy(w: Tensor, dtype: DType): Promise<Tensor | undefined> {
  const copy = invokeOne("cast", [w], { dtype: dtypeCode(dtype) });
  if (dtype === "bf16") return copy;
  const sums = scope(() => {
    const back = invokeOne("cast", [copy], { dtype: dtypeCode("f32") });
    return [invokeOne("sq_diff", [w, back]), invokeOne("sq_diff", [w])];
  });
  let fits = false;
  try {
    const [error = Number.NaN, size = 0] = [
      (await sums[0]?.readAsync())?.[0],
      (await sums[1]?.readAsync())?.[0],
    ];
    fits = Math.sqrt(error) <= MOST_ERROR * Math.sqrt(size);
  } finally {
    for (const sum of sums) sum.dispose();
    if (!fits) copy.dispose();
  }
  return fits ? copy : undefined;
}
