/** The shift at a norm: it leaves the norm's bias and enters those of the linears behind it. */

import type { Var } from "../autograd/graph.ts";
import type { SiteSpec } from "../models/family.ts";
import { quantizesTokens } from "../quant/scheme.ts";
import {
  absorbShift,
  type FoldContext,
  minus,
  type StartContext,
  type StartValue,
} from "./site.ts";
import { shiftStart } from "./starts.ts";
import type { TransformStyle } from "./style.ts";

type Spec = Extract<SiteSpec, { kind: "norm" | "norm-full" }>;

/**
 * Where the shift starts, or nothing where there is none. A shift helps the token quantizer and costs
 * nothing where biases are there to take it; the published code has it everywhere.
 */
export function startShift(
  spec: Spec,
  context: StartContext,
): { readonly shift?: StartValue | undefined } {
  const { style, weights, statistics, scheme, shape } = context;
  if (style.shifts === "everywhere") {
    return { shift: shiftStart(context, spec.activation, shape.hidden) };
  }
  const middle = statistics.middle.get(spec.activation);
  const helps = quantizesTokens(scheme) && hasBiases(spec, weights);
  if (!helps || !middle) return {};
  return { shift: { data: middle.slice(), shape: [middle.length], masked: false, shift: true } };
}

/** b - d on the norm, and b + W d on its linears. Comes before W is multiplied. */
export function foldShift(spec: Spec, fold: FoldContext, shift: Var | undefined): void {
  if (!shift) return;
  const beta = `${spec.norm}.beta`;
  absorbShift(fold, spec.consumers, shift);
  fold.weights[beta] = minus(fold.graph, fold.weights[beta], shift);
}

/** Keys of the biases that a shift needs. */
export function shiftAdds(spec: Spec, style: TransformStyle): readonly string[] {
  if (style.shifts !== "everywhere") return [];
  return [`${spec.norm}.beta`, ...spec.consumers.map((key) => `${key}.bias`)];
}

/** The norm has a bias that gives the shift up, and every consumer one that takes it. */
function hasBiases(spec: Spec, weights: Readonly<Record<string, unknown>>): boolean {
  return `${spec.norm}.beta` in weights && spec.consumers.every((key) => `${key}.bias` in weights);
}
