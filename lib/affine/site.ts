/**
 * A site: a place where an invertible map and its inverse cancel, so that folding it changes the
 * weights and not the function. Each kind is one file; this one says what they have in common.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import { exp } from "../autograd/ops/exp.ts";
import { gradualMask } from "../autograd/ops/gradual-mask.ts";
import { linear } from "../autograd/ops/linear.ts";
import type { LastInverses } from "../autograd/ops/lu-inverse.ts";
import { reciprocal } from "../autograd/ops/reciprocal.ts";
import { sub } from "../autograd/ops/sub.ts";
import type { ModelShape } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import { invoke } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { MaskOf } from "./gradual-mask.ts";
import type { TransformStyle } from "./style.ts";

/** Where a parameter starts. `masked` ones are matrices [B, D, D] under the gradual mask. */
export interface StartValue {
  readonly data: Float32Array;
  readonly shape: readonly number[];
  readonly masked: boolean;
  /** Large products read these matrices: on a GPU in the type of the products. */
  readonly multiplied?: boolean;
  /** An offset and not a factor: a floor under magnitudes leaves it alone. */
  readonly shift?: boolean;
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
  readonly style: TransformStyle;
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
  /** Keys of the block's weights that the fold makes where they were not there. */
  adds?(spec: Spec, style: TransformStyle): readonly string[];
  /** One line for `inspect`: the map, its number of parameters, what it folds into. */
  describe(spec: Spec, shape: ModelShape): { map: string; parameters: number; foldsInto: string[] };
}

export interface FoldContext {
  readonly graph: Graph;
  readonly weights: FoldedWeights;
  readonly shape: ModelShape;
  /** Absent: the matrices among the parameters come under their masks. */
  readonly maskOf: MaskOf | undefined;
  /** Where the inverses of large matrices start, if this is one of many folds in a row. */
  readonly inverses: LastInverses | undefined;
}

/** The matrices S [B, D, D] of a site under their mask. */
export function maskedMatrices(
  { graph, maskOf }: Pick<FoldContext, "graph" | "maskOf">,
  matrices: Var,
): Var {
  return maskOf ? gradualMask(graph, matrices, maskOf(lastDim(matrices))) : matrices;
}

const lastDim = ({ value }: Var): number => value.tensor.shape.at(-1) as number;

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

/** A diagonal and its inverse, from the parameter log_s or s that a site has. */
export function diagonalOf(
  graph: Graph,
  { log_s, s }: Readonly<Record<string, Var>>,
): { scale: Var; inverse: Var } {
  if (log_s) return { scale: exp(graph, log_s), inverse: exp(graph, log_s, -1) };
  if (s) return { scale: s, inverse: reciprocal(graph, s) };
  throw new TypeError("a diagonal needs log_s or s");
}

/** a - b, where an absent a counts as zeros. */
export function minus(graph: Graph, a: Var | undefined, b: Var): Var {
  if (a) return sub(graph, a, b);
  const { shape, dtype, device } = b.value.tensor;
  const zeros = Tensor.empty(shape, dtype, device);
  invoke("fill", [zeros], { value: 0 });
  return sub(graph, graph.constant(zeros), b);
}

/** A shift d [I] of what linears read enters their biases: b + W d, a new bias where there is none. */
export function absorbShift(
  { graph, weights }: Pick<FoldContext, "graph" | "weights">,
  consumers: readonly string[],
  shift: Var,
): void {
  for (const key of consumers) {
    // W d as a column: W read as rows of inputs, d as the one row of a weight.
    const moved = linear(graph, weightOf(weights, key), shift);
    const bias = weights[`${key}.bias`];
    weights[`${key}.bias`] = bias ? add(graph, bias, moved) : moved;
  }
}
