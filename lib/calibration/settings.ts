/** Options of a run, checked and completed with their defaults. */

import { AqError } from "../errors.ts";
import type { Model } from "../models/family.ts";
import { longestSequence } from "../models/sliding-window.ts";
import { schemeOf } from "../quant/presets.ts";
import {
  clipsTokens,
  type QuantScheme,
  quantizesHeads,
  quantizesTokens,
  schemeName,
} from "../quant/scheme.ts";
import { checkChoice } from "../tensor/compute-device.ts";
import type { CalibSource, QuantizeOptions } from "../types.ts";
import { checkKeep } from "./keep.ts";
import {
  defaultAugLoss,
  type Recipe,
  ROUNDINGS,
  type Rounding,
  recipeOf,
  type TrainSettings,
} from "./recipe.ts";

/** A run's settings; the model's maximum still bounds `seqlen`. */
export interface RunSettings {
  readonly scheme: QuantScheme;
  /** Patterns of linears that are not quantized (keep.ts), sorted. */
  readonly keep: readonly string[];
  readonly recipe: Recipe;
  /** Rotate the residual stream first. */
  readonly rotate: boolean;
  /** A Hadamard transform runs before the down projection. */
  readonly hadamardDown: boolean;
  /** Epochs that train all blocks at once at the end. */
  readonly polish: number;
  readonly train: TrainSettings;
  /** What calibration windows are. */
  readonly calibSource: CalibSource;
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

function oneOf(name: string, value: string, words: readonly string[]): void {
  if (!words.includes(value)) {
    throw new AqError(
      "AQ_ARG",
      `${name} must be ${words.join(" or ")}, got ${JSON.stringify(value)}`,
    );
  }
}

/** With learned rounding it takes the smaller half; without, or alone, one phase has all epochs. */
function splitEpochs(
  epochs: number,
  recipe: Recipe,
): Pick<TrainSettings, "affineEpochs" | "roundEpochs"> {
  const learned: Rounding = "learned";
  if (recipe.rounding !== learned) return { affineEpochs: epochs, roundEpochs: 0 };
  if (!recipe.sites) return { affineEpochs: 0, roundEpochs: epochs };
  const affineEpochs = Math.ceil(epochs / 2);
  return { affineEpochs, roundEpochs: epochs - affineEpochs };
}

/** GPTQ's codes are no function of what polish trains. */
function polishEpochs(epochs: number, { rounding }: Recipe): number {
  within("polish", epochs, 0, 10_000, true);
  if (epochs > 0 && rounding === "gptq") {
    throw new AqError(
      "AQ_ARG",
      "polish trains the rounding on, which gptq's codes do not allow; use --rounding learned or nearest with it",
    );
  }
  return epochs;
}

/** The recipe with what the options say otherwise, as far as it goes with the scheme. */
function adjusted(
  recipe: Recipe,
  scheme: QuantScheme,
  { rounding, normFull }: QuantizeOptions,
): Recipe {
  const norms = normFull ? ("full" as const) : recipe.transforms.norms;
  const own: Recipe = {
    ...recipe,
    rounding: rounding ?? recipe.rounding,
    transforms: { ...recipe.transforms, norms },
  };
  return scheme.numbers ? forFloats(own, scheme) : own;
}

/**
 * What pays for 4-bit floats. Their groups are so small that spreading a token's large channels over all
 * others, which the rotation does, costs more than it gains; clipping of tokens has no place in servers.
 */
function forFloats(recipe: Recipe, scheme: QuantScheme): Recipe {
  const name = schemeName(scheme);
  if (recipe.grids === "published") {
    throw new AqError(
      "AQ_ARG",
      `--recipe ${recipe.name} does what the published code does, which has integers alone; use --recipe default or affine with --scheme ${name}`,
    );
  }
  if (recipe.rounding === "gptq") {
    throw new AqError(
      "AQ_ARG",
      `--rounding gptq passes errors on along a grid of even steps, which ${name} does not have; use --rounding learned or nearest`,
    );
  }
  // With activations left alone learned rounding by itself does as well or better (docs/method.md).
  const sites = recipe.sites && (quantizesTokens(scheme) || recipe.name !== "default");
  const tokenClip = recipe.tokenClip && clipsTokens(scheme);
  return { ...recipe, sites, tokenClip, rotate: false };
}

/** Patterns in one order, each once. */
function keepPatterns(keep: unknown): readonly string[] {
  const isList = Array.isArray(keep) && keep.every((pattern) => typeof pattern === "string");
  if (isList) return [...new Set(keep as string[])].sort();
  throw new AqError("AQ_ARG", `keep must be a list of names, got ${JSON.stringify(keep)}`);
}

/** The recipe's stability factor as far as it is known without the model. */
function startingSf({ sf }: Recipe, model?: Model): number {
  if (typeof sf === "number") return sf;
  if (!model) return 0.1;
  return model.residual.centred ? sf.opt : sf.llama;
}

/** The recipe without transforms that would change nothing that is quantized. */
function fittedTo(model: Model, recipe: Recipe, scheme: QuantScheme): Recipe {
  const isIdle = model.sites.some(({ kind }) => kind === "qk-gains") && !quantizesHeads(scheme);
  return isIdle ? { ...recipe, transforms: { ...recipe.transforms, gains: "fixed" } } : recipe;
}

/**
 * The settings for a model, where the recipe depends on it.
 *
 * Throws: AQ_MODEL when the recipe cannot be applied to the model, with the reason; AQ_ARG for names of
 * linears that it does not have.
 */
export function settingsFor(
  model: Model,
  settings: RunSettings,
  options: Pick<QuantizeOptions, "sf">,
): RunSettings {
  const { recipe, scheme, train } = settings;
  checkKeep(model, settings);
  if (recipe.grids !== "published") {
    return { ...settings, recipe: fittedTo(model, recipe, scheme) };
  }
  const { heads, kvHeads } = model.shape;
  if (model.traits.headNorms) {
    throw new AqError(
      "AQ_MODEL",
      `--recipe ${recipe.name} does what the published code does, which knows no norms behind q and k, and this model has them; use --recipe default or affine`,
    );
  }
  if (kvHeads !== heads) {
    throw new AqError(
      "AQ_MODEL",
      `--recipe ${recipe.name} does what the published code does, which cannot run grouped-query models: its matrices need a key/value head for every query head, and this model has ${kvHeads} for ${heads}; use --recipe default or affine`,
    );
  }
  // LayerNorm models: shifts start where the statistics say, and q, k, v share a scale over all heads.
  const { centred } = model.residual;
  const transforms = { ...recipe.transforms, shiftStart: centred ? "middle" : "zero" } as const;
  return {
    ...settings,
    recipe: { ...recipe, transforms },
    scheme: centred ? { ...scheme, heads: "together" } : scheme,
    train: { ...train, sf: options.sf ?? startingSf(recipe, model) },
  };
}

/** What the model writes begins at random places of the text. */
function samplingOf({ sampling, calibSource }: QuantizeOptions): RunSettings["sampling"] {
  if (calibSource !== "model") return sampling ?? "sequential";
  if (sampling === undefined) return "random";
  throw new AqError(
    "AQ_ARG",
    `sampling says which windows of the text are taken, and with calibSource model none is: what the model writes begins at random places; leave one of them out, got ${JSON.stringify(sampling)}`,
  );
}

/** Throws: AQ_ARG naming the option, its range and its value. */
export function resolveSettings(options: QuantizeOptions): RunSettings {
  const scheme = schemeOf(options);
  const { hadamard = "none", calibSource = "text", rotate = "auto" } = options;
  const sampling = samplingOf(options);
  const recipe = adjusted(recipeOf(options.recipe ?? "default"), scheme, options);
  oneOf("rounding", recipe.rounding, ROUNDINGS);
  oneOf("rotate", rotate, ["auto", "on", "off"]);
  oneOf("hadamard", hadamard, ["none", "down"]);
  oneOf("calibSource", calibSource, ["text", "model"]);
  oneOf("sampling", sampling, ["sequential", "random"]);
  checkChoice(options);
  return {
    scheme: recipe.grids ? { ...scheme, grids: recipe.grids } : scheme,
    keep: keepPatterns(options.keep ?? []),
    recipe,
    rotate: rotate === "on" || (rotate === "auto" && recipe.rotate && quantizesTokens(scheme)),
    hadamardDown: hadamard === "down",
    polish: polishEpochs(options.polish ?? 0, recipe),
    train: {
      ...splitEpochs(within("epochs", options.epochs ?? 20, 0, 10_000, true), recipe),
      alpha: within("alpha", options.alpha ?? 0.5, 0, 1, false),
      sf: within("sf", options.sf ?? startingSf(recipe), 0, 1, false),
      letLr: within("letLr", options.letLr ?? 5e-3, 0, 1, false),
      lwcLr: within("lwcLr", options.lwcLr ?? 1e-2, 0, 1, false),
      weightDecay: within("wd", options.wd ?? 0, 0, 1, false),
      augLoss: options.augLoss ?? defaultAugLoss(scheme),
      batch: within("batch", options.batch ?? 1, 1, 1_000_000, true),
    },
    calibSource,
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
export function windowLength(
  asked: number | undefined,
  model: Pick<Model, "shape" | "traits">,
): number {
  const { maxTokens } = model.shape;
  if (asked === undefined) return Math.min(2048, maxTokens);
  if (asked > maxTokens) {
    throw new AqError("AQ_ARG", `seqlen ${asked} is above ${longestSequence(model)}`);
  }
  return asked;
}
