/** Reasons to refuse a setting that several formats share. */

import { isRunTime } from "../export/aq-config.ts";
import type { LinearSpec } from "../models/family.ts";
import { quantizesTokens, schemeName } from "../quant/scheme.ts";
import { isKeptEverywhere, type Setting } from "./setting.ts";

/** The first reason there is. */
export function firstReason(...reasons: readonly (string | undefined)[]): string | undefined {
  return reasons.find((reason) => reason !== undefined);
}

/** Stock loaders compute what the architecture says, and nothing beside it. */
export function refusesAdditions(name: string, setting: Setting): string | undefined {
  return firstReason(
    setting.model.hadamardDown
      ? `${name} has no place for the Hadamard transform before down; quantize with --hadamard none, or write aq`
      : undefined,
    setting.added.some(isRunTime)
      ? `${name} has no place for the matrices that --norm-full keeps behind the norms; leave the option out, or write aq`
      : undefined,
    setting.added.length > 0
      ? `${name} has no place for the biases that this recipe puts behind norms (${setting.added[0]}), which ${setting.model.family} does not have; use --recipe default, or write aq`
      : undefined,
  );
}

/** The format stores whole numbers alone. */
export function refusesFloats(name: string, { scheme }: Setting): string | undefined {
  if (!scheme.numbers) return undefined;
  const others = scheme.numbers === "nvfp4" ? "compressed-tensors, modelopt" : "compressed-tensors";
  return `${name} stores whole numbers alone, and this run is ${schemeName(scheme)}; write ${others}, hf (dequantized) or aq`;
}

/** The format stores weights alone. */
export function refusesActivations(name: string, { scheme }: Setting): string | undefined {
  if (!quantizesTokens(scheme)) return undefined;
  return `${name} stores weights alone, and this run's ${scheme.abits}-bit activations would be left out; quantize with --abits 16, or write aq`;
}

/** Throws nothing; says which bits there are. */
export function refusesBits(
  name: string,
  { scheme: { wbits } }: Setting,
  allowed: readonly number[],
): string | undefined {
  if (allowed.includes(wbits)) return undefined;
  const words = allowed.length === 1 ? `${allowed[0]}-bit weights` : `${allowed.join(", ")} bits`;
  return `${name} has ${words}, and this run has ${wbits}; quantize with --wbits ${nearest(wbits, allowed)}, or write another format`;
}

function nearest(wanted: number, allowed: readonly number[]): number {
  return allowed.reduce((best, bits) =>
    Math.abs(bits - wanted) < Math.abs(best - wanted) ? bits : best,
  );
}

/** The first linear whose shape the format cannot hold, in words. */
export function refusesShapes(
  setting: Setting,
  fails: (linear: LinearSpec) => string | undefined,
): string | undefined {
  for (const linear of setting.model.linears) {
    if (isKeptEverywhere(setting, linear.key)) continue;
    const reason = fails(linear);
    if (reason !== undefined) return reason;
  }
  return undefined;
}

/** Loaders cut every row into groups of one size. */
export function refusesShortGroups(name: string, setting: Setting): string | undefined {
  const { groupSize } = setting.scheme;
  if (!groupSize) return undefined;
  return refusesShapes(setting, ({ key, in: columns }) =>
    columns % groupSize === 0
      ? undefined
      : `${name} needs rows that groups divide, and ${key} has rows of ${columns} in groups of ${groupSize}; quantize with a --group-size that divides ${columns}, or write gptq_v2`,
  );
}
