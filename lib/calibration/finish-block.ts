/** From learned parameters to codes: fold in float64, check equivalence, quantize. */

import { isEquivalent } from "../affine/style.ts";
import { Eager, type Var } from "../autograd/graph.ts";
import { AqError } from "../errors.ts";
import type { FinishedWeights, TokenNumbers } from "../export/weights.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { withoutHadamard } from "../models/hadamard-down.ts";
import { disposeAll, type LoadedWeights, loadBlock } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import { passThrough } from "../quant/activations.ts";
import type { QuantizedWeight } from "../quant/quantizer.ts";
import { dequantizeWeight, disposeQuantized, quantizeLinears } from "../quant/weights.ts";
import { withFullPrecision } from "../tensor/compute-device.ts";
import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Parameter } from "./parameters.ts";
import type { AffineResult } from "./phases/affine.ts";
import {
  type BlockProblem,
  type BlockScheme,
  foldedWeights,
  quantizedLinears,
  tokenClipName,
  weightClipName,
} from "./problem.ts";
import { recipeSites } from "./recipe.ts";

/** Above this the folded block is another function, and the run fails. */
const EQUIVALENCE_LIMIT = 1e-3;

/** The block's weights with the transforms folded in, f32; the caller owns them. */
export interface FoldedBlock {
  readonly weights: LoadedWeights;
  /** |y - y'| / |y - x| before and after the cast to the stored dtypes; null without transforms. */
  readonly equivalence: number | null;
  readonly equivalenceStored: number | null;
  /** Do the recipe's transforms leave the block's function as it is, in exact arithmetic? */
  readonly equivalent: boolean;
}

/** A finished block; the caller owns the tensors. */
export type FinishedBlock = FinishedWeights & TokenNumbers;

const F32 = dtypeCode("f32");
const F64 = dtypeCode("f64");

/** The value that a stored dtype holds, as f32. */
export function throughStored(tensor: Tensor, dtype: DType): Tensor {
  if (dtype === "f32" || dtype === "f64") return tensor;
  const stored = invokeOne("cast", [tensor], { dtype: dtypeCode(dtype) });
  return invokeOne("cast", [stored], { dtype: F32 });
}

/**
 * Folds what the affine phase learned.
 *
 * `sample` is one window of the full-precision stream [1, T, C]. The comparison is with the block as
 * the checkpoint has it, so that it covers a rotation too.
 *
 * Throws: AQ_NUMERIC if the folded block differs from the original by more than 1e-3, unless the
 * recipe's transforms are not meant to be exact.
 */
export function foldBlock(
  problem: BlockProblem,
  affine: AffineResult,
  source: WeightSource,
  sample: Tensor,
): FoldedBlock {
  return scope(() => {
    const transforms = affine.parameters.filter((p) => p.group === "transform");
    const equivalent = isEquivalent(
      recipeSites(problem.model, problem.recipe),
      problem.model.sites,
    );
    if (transforms.length === 0) {
      const weights = keepAll(copyAll(problem.weights));
      return { weights, equivalence: null, equivalenceStored: null, equivalent };
    }
    const weights = foldInDouble(problem, transforms, affine);
    // What is measured is the fold: rounded products would hide it.
    const exactly = <T>(body: () => T): T => withFullPrecision(source.device, body);
    const original = exactly(() => runOriginal(problem, source, sample));
    const size = squares(original, sample);
    const distance = (other: LoadedWeights): number => {
      const y = exactly(() => runBlock(problem.model, problem.context, other, sample));
      return Math.sqrt(squares(original, y) / size);
    };
    const equivalence = distance(weights);
    const cast = Object.entries(weights).map(([key, w]) => [
      key,
      throughStored(w, source.storedDType(problem.index, key)),
    ]);
    const equivalenceStored = distance(Object.fromEntries(cast) as LoadedWeights);
    if (equivalent && !(equivalence <= EQUIVALENCE_LIMIT)) {
      throw new AqError(
        "AQ_NUMERIC",
        `block ${problem.index}: after folding its output differs by ${equivalence.toExponential(1)}, at most ${EQUIVALENCE_LIMIT} is allowed; try a smaller --let-lr or --sf`,
      );
    }
    return { weights: keepAll(weights), equivalence, equivalenceStored, equivalent };
  });
}

/** The checkpoint's block on the sample, in the basis of the stream. */
function runOriginal(problem: BlockProblem, source: WeightSource, sample: Tensor): Tensor {
  const { model } = problem;
  const { rotation } = source;
  const context = withoutHadamard(problem.context);
  if (!rotation && !model.hadamardDown) return runBlock(model, context, problem.weights, sample);
  const plain = loadBlock(source.checkpoint, model, problem.index, source.device);
  const y = runBlock(model, context, plain, rotation ? rotation.back(sample) : sample);
  disposeAll(plain);
  return rotation ? rotation.states(y) : y;
}

/** The weights with the transforms folded in, computed in float64, as f32. */
function foldInDouble(
  problem: BlockProblem,
  transforms: readonly Parameter[],
  { maskOf }: AffineResult,
): LoadedWeights {
  const graph = new Eager();
  const double = (tensor: Tensor): Tensor => invokeOne("cast", [tensor], { dtype: F64 });
  const weights = Object.fromEntries(
    Object.entries(problem.weights).map(([key, w]) => [key, double(w)]),
  );
  const parameters = new Map<string, Var>();
  for (const p of transforms) parameters.set(p.name, graph.constant(double(p.value)));
  const folded = foldedWeights(problem, graph, weights, parameters, maskOf);
  return Object.fromEntries(
    Object.entries(folded).map(([key, v]) => {
      const single = invokeOne("cast", [v.value.tensor], { dtype: F32 });
      return [key, key.endsWith(".bias") ? single.reshape([single.size]) : single];
    }),
  );
}

function copyAll(weights: LoadedWeights): LoadedWeights {
  return Object.fromEntries(Object.entries(weights).map(([key, w]) => [key, w.view(0, w.shape)]));
}

function keepAll(weights: LoadedWeights): LoadedWeights {
  for (const tensor of Object.values(weights)) keep(tensor);
  return weights;
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

/**
 * Codes of the folded weights, with the clipping logits and rounding offsets that were learned. Linears
 * that are kept are among the others, as they are.
 * Codes that were found already (`known`) are taken over.
 *
 * Throws: AQ_NUMERIC if a scale leaves the range of float16, or a weight is not a number.
 */
export function quantizeBlock(
  problem: BlockScheme,
  folded: LoadedWeights,
  clips: readonly Parameter[],
  offsets: ReadonlyMap<string, Tensor>,
  known: Readonly<Record<string, QuantizedWeight>> = {},
): FinishedBlock {
  const parameter = new Map(clips.map((p) => [p.name, p.value]));
  return scope(() => {
    const others: Record<string, Tensor> = {};
    const linears = quantizedLinears(problem);
    const fused = linears.fused.filter(([key]) => !known[key as string]);
    const made = quantizeLinears(folded, { ...linears, fused }, (key) => ({
      clip: parameter.get(weightClipName(key)),
      offset: offsets.get(key),
    }));
    for (const q of Object.values(made)) for (const held of Object.values(q)) keep(held);
    const quantized = { ...made, ...known };
    for (const [key, w] of Object.entries(folded)) {
      if (!quantized[key]) others[key] = keep(invokeOne("cast", [w], { dtype: F32 }));
    }
    const tokenClips: Record<string, number> = {};
    for (const name of problem.model.activations) {
      const clip = parameter.get(tokenClipName(name));
      if (clip) tokenClips[name] = clip.item();
    }
    return { quantized, others, tokenClips, inputGlobals: {} };
  });
}

/** The f32 weights that a reader of the written checkpoint will see. */
export function storedWeights(
  finished: Pick<FinishedBlock, "quantized" | "others">,
  groupSize: number,
  storedDType: (key: string) => DType,
): LoadedWeights {
  const weights: Record<string, Tensor> = {};
  for (const [key, q] of Object.entries(finished.quantized)) {
    weights[key] = scope(() => throughStored(dequantizeWeight(q, groupSize), storedDType(key)));
  }
  for (const [key, tensor] of Object.entries(finished.others)) {
    weights[key] = scope(() =>
      invokeOne("cast", [throughStored(tensor, storedDType(key))], { dtype: F32 }),
    );
  }
  return weights;
}

export function disposeFinished(finished: FinishedWeights): void {
  disposeQuantized(finished.quantized);
  disposeAll(finished.others);
}
