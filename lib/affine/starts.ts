/** Where diagonals and shifts start: from what the full-precision pass saw, and from the weights. */

import { dtypeCode } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { StartContext, StartValue } from "./site.ts";
import type { TransformStyle } from "./style.ts";

/** Smallest statistic and smallest start. */
const FLOOR = 1e-5;

/** max |w|, or the largest w with its sign, of every input channel. */
function channelMax(w: Tensor, which: "magnitude" | "signed"): Float32Array {
  const output = which === "magnitude" ? 0 : 1;
  return scope(() => ({ max: (invoke("channel_stats", [w])[output] as Tensor).floats() })).max;
}

/** max |w| of every input channel over the rows of several weights. */
export function columnMax(weights: readonly Tensor[]): Float32Array {
  const all = weights.map((w) => channelMax(w, "magnitude"));
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

/**
 * What the starting scales between an activation and its consumers come from.
 *
 * The published code takes the statistics of one consumer, the activation through float16, and the
 * largest weight with its sign, so that a column of negative weights starts as if it were zero.
 */
export function startSources(
  context: StartContext,
  activation: string,
  consumers: readonly Tensor[],
  lead: Tensor,
): { activation: Float32Array; weight: Float32Array } {
  const seen = statistic(context, activation);
  return context.style.starts === "magnitude"
    ? { activation: seen, weight: columnMax(consumers) }
    : { activation: throughHalf(seen, lead.device), weight: channelMax(lead, "signed") };
}

/** Starting scales between an activation and its consumers. */
export function startOf(
  context: StartContext,
  activation: string,
  consumers: readonly Tensor[],
  lead: Tensor,
): Float32Array {
  const sources = startSources(context, activation, consumers, lead);
  return startScale(sources.activation, sources.weight, context.alpha);
}

function throughHalf(x: Float32Array, device: string): Float32Array {
  return scope(() => {
    const single = Tensor.from(x, [x.length], "f32", device);
    const half = invokeOne("cast", [single], { dtype: dtypeCode("f16") });
    return { values: invokeOne("cast", [half], { dtype: dtypeCode("f32") }).floats() };
  }).values;
}

/** The start of a shift of an activation, in the style that has shifts everywhere. */
export function shiftStart(context: StartContext, activation: string, size: number): StartValue {
  const middle = context.statistics.middle.get(activation);
  const data =
    context.style.shiftStart === "middle" && middle ? middle.slice() : new Float32Array(size);
  return { data, shape: [size], masked: false, shift: true };
}

/** A diagonal's parameter: log_s where it is to stay positive, else s. */
export function startDiagonal(
  { diagonals }: TransformStyle,
  scale: Float32Array,
): Readonly<Record<string, StartValue>> {
  const shape = [scale.length];
  return diagonals === "exp"
    ? { log_s: { data: scale.map(Math.log), shape, masked: false } }
    : { s: { data: scale, shape, masked: false } };
}

/** Matrices [B, D, D] with these diagonals, under the gradual mask. */
export function diagonalMatrices(diagonal: ArrayLike<number>, size: number): StartValue {
  const count = diagonal.length / size;
  const data = new Float32Array(diagonal.length * size);
  for (let at = 0; at < diagonal.length; at++) {
    data[Math.floor(at / size) * size * size + (at % size) * (size + 1)] = diagonal[at] as number;
  }
  return { data, shape: [count, size, size], masked: true };
}
