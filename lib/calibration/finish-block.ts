/** From learned parameters to codes: fold in float64, check equivalence, quantize. */

import { Eager, type Var } from "../autograd/graph.ts";
import { AqError } from "../errors.ts";
import type { BlockContext, Model } from "../models/family.ts";
import type { LoadedWeights } from "../models/load.ts";
import { disposeAll } from "../models/load.ts";
import { passThrough } from "../quant/tokens.ts";
import { dequantizeWeight, type QuantizedWeight, quantizeWeight } from "../quant/weights.ts";
import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Training } from "./block-trainer.ts";
import { type BlockProblem, foldedWeights, tokenClipName, weightClipName } from "./problem.ts";

/** Above this the folded block is another function, and the run fails. */
const EQUIVALENCE_LIMIT = 1e-3;

/** A finished block; the caller owns the tensors. */
export interface FinishedBlock {
  /** By linear. */
  readonly quantized: Readonly<Record<string, QuantizedWeight>>;
  /** Folded gains and biases, f32, by key. */
  readonly others: Readonly<Record<string, Tensor>>;
  /** Clipping logits of activations, by activation; empty when nothing was learned. */
  readonly tokenClips: Readonly<Record<string, number>>;
  readonly equivalence: number | null;
  readonly equivalenceStored: number | null;
}

/** The value that a stored dtype holds, as f32. */
export function throughStored(tensor: Tensor, dtype: DType): Tensor {
  if (dtype === "f32" || dtype === "f64") return tensor;
  return invokeOne("cast", [invokeOne("cast", [tensor], { dtype: dtypeCode(dtype) })], {
    dtype: dtypeCode("f32"),
  });
}

/**
 * Folds and quantizes a trained block.
 *
 * `sample` is one window of the full-precision stream [1, T, C]; `storedDType` the dtype of each
 * weight in the checkpoint.
 *
 * Throws: AQ_NUMERIC if the folded block differs from the original by more than 1e-3.
 */
export function finishBlock(
  problem: BlockProblem,
  training: Training,
  sample: Tensor,
  storedDType: (key: string) => DType,
): FinishedBlock {
  return scope(() => {
    const hasTransforms = training.parameters.some((p) => p.group === "transform");
    const folded = hasTransforms ? foldInDouble(problem, training) : problem.weights;

    let equivalence: number | null = null;
    let equivalenceStored: number | null = null;
    if (hasTransforms) {
      const original = runBlock(problem.model, problem.context, problem.weights, sample);
      const distance = (weights: LoadedWeights): number => {
        const y = runBlock(problem.model, problem.context, weights, sample);
        const changed = squares(original, y);
        return Math.sqrt(changed / squares(original, sample));
      };
      equivalence = distance(folded);
      const cast = Object.entries(folded).map(([key, w]) => [
        key,
        throughStored(w, storedDType(key)),
      ]);
      equivalenceStored = distance(Object.fromEntries(cast) as LoadedWeights);
      if (!(equivalence <= EQUIVALENCE_LIMIT)) {
        throw new AqError(
          "AQ_NUMERIC",
          `block ${problem.index}: after folding its output differs by ${equivalence.toExponential(1)}, at most ${EQUIVALENCE_LIMIT} is allowed; try a smaller --let-lr or --sf`,
        );
      }
    }

    const parameter = new Map(training.parameters.map((p) => [p.name, p.value]));
    const quantized: Record<string, QuantizedWeight> = {};
    const others: Record<string, Tensor> = {};
    const linears = new Set(problem.model.linears.map(({ key }) => key));
    for (const [key, w] of Object.entries(folded)) {
      if (!linears.has(key)) {
        others[key] = keep(invokeOne("cast", [w], { dtype: dtypeCode("f32") }));
        continue;
      }
      const result = quantizeWeight(w, parameter.get(weightClipName(key)), problem.scheme);
      quantized[key] = {
        codes: keep(result.codes),
        scale: keep(result.scale),
        zero: keep(result.zero),
      };
    }
    const tokenClips: Record<string, number> = {};
    for (const name of problem.model.activations) {
      const clip = parameter.get(tokenClipName(name));
      if (clip) tokenClips[name] = clip.item();
    }
    return { quantized, others, tokenClips, equivalence, equivalenceStored };
  });
}

/** The block's weights with the learned transforms folded in, computed in float64, as f32. */
function foldInDouble(problem: BlockProblem, training: Training): LoadedWeights {
  const graph = new Eager();
  const f64 = dtypeCode("f64");
  const double = (tensor: Tensor): Tensor => invokeOne("cast", [tensor], { dtype: f64 });
  const weights = Object.fromEntries(
    Object.entries(problem.weights).map(([key, w]) => [key, double(w)]),
  );
  const parameters = new Map<string, Var>();
  for (const p of training.parameters) {
    if (p.group === "transform") parameters.set(p.name, graph.constant(double(p.value)));
  }
  const folded = foldedWeights(problem, graph, weights, parameters, training.mask);
  return Object.fromEntries(
    Object.entries(folded).map(([key, v]) => {
      const single = invokeOne("cast", [v.value.tensor], { dtype: dtypeCode("f32") });
      return [key, key.endsWith(".bias") ? single.reshape([single.size]) : single];
    }),
  );
}

/** The block in full precision. */
export function runBlock(
  model: Model,
  context: BlockContext,
  weights: LoadedWeights,
  x: Tensor,
): Tensor {
  const graph = new Eager();
  const w = Object.fromEntries(Object.entries(weights).map(([key, t]) => [key, graph.constant(t)]));
  return model.block(graph, context, w, graph.constant(x), passThrough).value.tensor;
}

/** Sum of squared differences, or of squares without a second tensor, in float64. */
export function squares(a: Tensor, b: Tensor | undefined): number {
  return scope(() => ({ sum: invokeOne("sq_diff", [a, b]).item() })).sum;
}

/** The f32 weights that a reader of the written checkpoint will see. */
export function storedWeights(
  finished: FinishedBlock,
  groupSize: number,
  storedDType: (key: string) => DType,
): LoadedWeights {
  const weights: Record<string, Tensor> = {};
  for (const [key, q] of Object.entries(finished.quantized)) {
    weights[key] = scope(() => throughStored(dequantizeWeight(q, groupSize), storedDType(key)));
  }
  for (const [key, tensor] of Object.entries(finished.others)) {
    weights[key] = scope(() =>
      invokeOne("cast", [throughStored(tensor, storedDType(key))], { dtype: dtypeCode("f32") }),
    );
  }
  return weights;
}

export function disposeFinished(finished: FinishedBlock): void {
  for (const { codes, scale, zero } of Object.values(finished.quantized)) {
    codes.dispose();
    scale.dispose();
    zero.dispose();
  }
  disposeAll(finished.others);
}
