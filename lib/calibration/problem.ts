/** One block's problem: the block, its streams, and how it is to be quantized. */

import type { MaskOf } from "../affine/gradual-mask.ts";
import type { ActivationStatistics } from "../affine/site.ts";
import { constants, foldSites } from "../affine/sites.ts";
import type { Graph, Var } from "../autograd/graph.ts";
import type { LastInverses } from "../autograd/ops/lu-inverse.ts";
import type { BlockContext, Model } from "../models/family.ts";
import type { LoadedWeights } from "../models/load.ts";
import { type QuantScheme, quantizesTokens } from "../quant/scheme.ts";
import { type ActivationHook, passThrough, TokenQuantizers } from "../quant/tokens.ts";
import { type Recipe, recipeSites, type TrainSettings } from "./recipe.ts";
import type { Stream } from "./stream.ts";

export interface BlockProblem {
  readonly index: number;
  readonly model: Model;
  readonly context: BlockContext;
  /** The block's weights, f32. */
  readonly weights: LoadedWeights;
  readonly statistics: ActivationStatistics;
  /** Quantized stream into the block [N, T, C]. */
  readonly inputs: Stream;
  /** Full-precision block on the full-precision stream [N, T, C]. */
  readonly targets: Stream;
  /** Full-precision block on the quantized stream [N, T, C], for the second loss. */
  readonly augTargets: Stream | undefined;
  readonly scheme: QuantScheme;
  readonly recipe: Recipe;
  readonly settings: TrainSettings;
  /** The weights come in a rotated basis. */
  readonly rotated: boolean;
}

/** Name of the clipping logits of a weight or an activation. */
export const weightClipName = (key: string): string => `clip.weight.${key}`;
export const tokenClipName = (activation: string): string => `clip.token.${activation}`;

/** The block's weights with all sites folded in, on any graph. */
export function foldedWeights(
  problem: Pick<BlockProblem, "model" | "recipe">,
  graph: Graph,
  weights: LoadedWeights,
  parameters: ReadonlyMap<string, Var>,
  maskOf: MaskOf,
  inverses?: LastInverses,
): Record<string, Var> {
  const { model, recipe } = problem;
  const folded = constants(graph, weights);
  foldSites(recipeSites(model, recipe), graph, folded, parameters, model.shape, maskOf, inverses);
  return folded;
}

/** The activation quantizers of a scheme with the clipping logits that were learned, if any. */
export function activationHook(
  scheme: QuantScheme,
  clips: ReadonlyMap<string, Var>,
): ActivationHook {
  return quantizesTokens(scheme) ? new TokenQuantizers(scheme.abits, clips, scheme) : passThrough;
}
