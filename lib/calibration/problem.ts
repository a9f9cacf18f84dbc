/** One block's problem: the block, its streams, and how it is to be quantized. */

import type { MaskOf } from "../affine/gradual-mask.ts";
import type { ActivationStatistics } from "../affine/site.ts";
import { constants, foldSites } from "../affine/sites.ts";
import type { Graph, Var } from "../autograd/graph.ts";
import type { LastInverses } from "../autograd/ops/lu-inverse.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { keptActivations } from "../models/kept.ts";
import type { LoadedWeights } from "../models/load.ts";
import type { ActivationHook, TokenState } from "../quant/activations.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import { tokenQuantizers } from "../quant/tokens.ts";
import type { QuantizedLinears } from "../quant/weights.ts";
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
  /** Keys of linears that are not quantized. */
  readonly kept: ReadonlySet<string>;
  readonly recipe: Recipe;
  readonly settings: TrainSettings;
  /** The weights come in a rotated basis. */
  readonly rotated: boolean;
}

/** Name of the clipping logits of a weight or an activation. */
export const weightClipName = (key: string): string => `clip.weight.${key}`;
export const tokenClipName = (activation: string): string => `clip.token.${activation}`;

/** The block's weights with all sites folded in (see foldSites), on any graph. */
export function foldedWeights(
  problem: Pick<BlockProblem, "model" | "recipe">,
  graph: Graph,
  weights: LoadedWeights,
  parameters: ReadonlyMap<string, Var>,
  maskOf: MaskOf | undefined,
  inverses?: LastInverses,
): Record<string, Var> {
  const { model, recipe } = problem;
  const folded = constants(graph, weights);
  foldSites(recipeSites(model, recipe), graph, folded, parameters, model.shape, maskOf, inverses);
  return folded;
}

/** What the quantizers of a block go by. */
export type BlockScheme = Pick<BlockProblem, "model" | "scheme" | "kept">;

/** The linears of a block that are quantized; those together that servers fuse into one. */
export function quantizedLinears({ model, scheme, kept }: BlockScheme): QuantizedLinears {
  const fused = model.residual.reads.map(({ consumers }) => consumers);
  const together = new Set(fused.flat());
  const alone = model.linears.filter(({ key }) => !together.has(key)).map(({ key }) => [key]);
  const without = (keys: readonly string[]): string[] => keys.filter((key) => !kept.has(key));
  return { scheme, fused: [...fused, ...alone].map(without).filter((keys) => keys.length > 0) };
}

/** The activation quantizers of a block. */
export function activationHook(
  { model, scheme, kept }: BlockScheme,
  state: Omit<TokenState, "plain">,
): ActivationHook {
  const plain = kept.size > 0 ? keptActivations(model, kept) : undefined;
  return tokenQuantizers(scheme, { ...state, plain });
}
