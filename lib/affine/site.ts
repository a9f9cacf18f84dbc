/**
 * A site: a place where an invertible map and its inverse cancel, so that folding it changes the
 * weights and not the function. Each kind is one file; this one says what they have in common.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import type { Mask } from "../autograd/ops/gradual-mask.ts";
import type { ModelShape } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import { invoke } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Where a parameter starts. `masked` ones are matrices [B, D, D] under the gradual mask. */
export interface StartValue {
  readonly data: Float32Array;
  readonly shape: readonly number[];
  readonly masked: boolean;
}

/** What a start may look at. */
export interface StartContext {
  readonly shape: ModelShape;
  /** Weights of the block before any site was folded. */
  readonly weights: Readonly<Record<string, Tensor>>;
  readonly statistics: ActivationStatistics;
  readonly alpha: number;
  readonly scheme: QuantScheme;
  /** The weights come in a rotated basis, values of a head included. */
  readonly rotated: boolean;
}

/** What the full-precision pass saw of each activation, by channel. */
export interface ActivationStatistics {
  /** max |x| over all calibration windows. */
  readonly max: ReadonlyMap<string, Float32Array>;
  /** Running mean of the middle of the range, (max + min)/2, over batches of windows. */
  readonly middle: ReadonlyMap<string, Float32Array>;
}

/** Weights while they are being folded: replaced key by key. */
export type FoldedWeights = Record<string, Var>;

/** One kind of site for one spec. */
export interface SiteKind<Spec> {
  /** Parameters by local name. */
  start(spec: Spec, context: StartContext): Readonly<Record<string, StartValue>>;
  /** Replaces weights by their folded form. The graph records it, so gradients reach the parameters. */
  fold(spec: Spec, fold: FoldContext, parameters: Readonly<Record<string, Var>>): void;
  /** One line for `inspect`: the map, its number of parameters, what it folds into. */
  describe(spec: Spec, shape: ModelShape): { map: string; parameters: number; foldsInto: string[] };
}

export interface FoldContext {
  readonly graph: Graph;
  readonly weights: FoldedWeights;
  readonly shape: ModelShape;
  readonly mask: Mask;
}

/** Smallest statistic and smallest start. */
const FLOOR = 1e-5;

/** max |w| of every input channel over the rows of several weights. */
export function columnMax(weights: readonly Tensor[]): Float32Array {
  const all = weights.map(
    (w) => scope(() => ({ max: (invoke("channel_stats", [w])[0] as Tensor).floats() })).max,
  );
  return (all[0] as Float32Array).map((_, i) =>
    Math.max(...all.map((column) => column[i] as number)),
  );
}

/**
 * Starting scale of each channel, x^alpha / w^(1 - alpha) with floors of 1e-5: large activations move
 * into the weights. Source: SmoothQuant's scale, as AffineQuant starts its diagonals.
 */
export function startScale(
  activation: Float32Array,
  weight: Float32Array,
  alpha: number,
): Float32Array {
  return activation.map((x, i) => {
    const numerator = Math.max(x, FLOOR) ** alpha;
    const denominator = Math.max(weight[i] as number, FLOOR) ** (1 - alpha);
    return Math.max(numerator / denominator, FLOOR);
  });
}

/** The statistic of an activation. */
export function statistic(context: StartContext, activation: string): Float32Array {
  const max = context.statistics.max.get(activation);
  if (!max) throw new TypeError(`no statistics of activation ${activation}`);
  return max;
}

/** The weight or tensor of a key. */
export function weightOf<T>(weights: Readonly<Record<string, T>>, key: string): T {
  const found = weights[key];
  if (found === undefined) throw new TypeError(`the block has no weight '${key}'`);
  return found;
}

/** Applies `f` to a weight and, seen as a column, to its bias if it has one. */
export function mapRows(weights: FoldedWeights, key: string, f: (w: Var) => Var): void {
  weights[key] = f(weightOf(weights, key));
  const bias = weights[`${key}.bias`];
  if (bias) weights[`${key}.bias`] = f(bias);
}
