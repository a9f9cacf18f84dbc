/** Options of a run, checked and completed with their defaults. */

import { AqError } from "../errors.ts";
import { checkScheme, type QuantScheme } from "../quant/scheme.ts";
import { DEVICE_NAMES } from "../tensor/device.ts";
import type { QuantizeOptions } from "../types.ts";
import { defaultAugLoss, type Recipe, recipeOf, type TrainSettings } from "./recipe.ts";

/** A run's settings; the model's maximum still bounds `seqlen`. */
export interface RunSettings {
  readonly scheme: QuantScheme;
  readonly recipe: Recipe;
  readonly train: TrainSettings;
  readonly nsamples: number;
  readonly seqlen: number | undefined;
  readonly sampling: "sequential" | "random";
  readonly seed: number;
}

function within(name: string, value: number, low: number, high: number, whole: boolean): number {
  if (!(value >= low && value <= high) || (whole && !Number.isInteger(value))) {
    throw new AqError(
      "AQ_ARG",
      `${name} must be a ${whole ? "whole " : ""}number from ${low} to ${high}, got ${value}`,
    );
  }
  return value;
}

/** Throws: AQ_ARG naming the option, its range and its value. */
export function resolveSettings(options: QuantizeOptions): RunSettings {
  const scheme = checkScheme({
    wbits: options.wbits ?? 4,
    abits: options.abits ?? 16,
    groupSize: options.groupSize ?? 0,
    symmetric: options.symmetric ?? false,
  });
  const { sampling = "sequential", device = "auto" } = options;
  if (sampling !== "sequential" && sampling !== "random") {
    throw new AqError(
      "AQ_ARG",
      `sampling must be sequential or random, got ${JSON.stringify(sampling)}`,
    );
  }
  if (!DEVICE_NAMES.includes(device)) {
    throw new AqError(
      "AQ_ARG",
      `device must be ${DEVICE_NAMES.join(" or ")}, got ${JSON.stringify(device)}`,
    );
  }
  return {
    scheme,
    recipe: recipeOf(options.recipe ?? "default"),
    train: {
      epochs: within("epochs", options.epochs ?? 20, 0, 10_000, true),
      alpha: within("alpha", options.alpha ?? 0.5, 0, 1, false),
      sf: within("sf", options.sf ?? 0.1, 0, 1, false),
      letLr: within("letLr", options.letLr ?? 5e-3, 0, 1, false),
      lwcLr: within("lwcLr", options.lwcLr ?? 1e-2, 0, 1, false),
      weightDecay: within("wd", options.wd ?? 0, 0, 1, false),
      augLoss: options.augLoss ?? defaultAugLoss(scheme),
    },
    nsamples: within("nsamples", options.nsamples ?? 32, 1, 1_000_000, true),
    seqlen:
      options.seqlen === undefined
        ? undefined
        : within("seqlen", options.seqlen, 2, 1_000_000, true),
    sampling,
    seed: within("seed", options.seed ?? 0, 0, 2 ** 32 - 1, true),
  };
}

/** Window length: asked for, or 2048, at most the model's maximum. Throws: AQ_ARG above the maximum. */
export function windowLength(asked: number | undefined, maxTokens: number): number {
  if (asked === undefined) return Math.min(2048, maxTokens);
  if (asked > maxTokens) {
    throw new AqError(
      "AQ_ARG",
      `seqlen ${asked} is above the model's maximum of ${maxTokens} tokens`,
    );
  }
  return asked;
}
