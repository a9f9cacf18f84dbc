/** Recipes: what of the method is switched on. */

import {
  EXACT_STYLE,
  PUBLISHED_STYLE,
  sitesInStyle,
  type TransformStyle,
} from "../affine/style.ts";
import { AqError } from "../errors.ts";
import type { Model, SiteSpec } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import type { RecipeName } from "../types.ts";

export interface Recipe {
  readonly name: RecipeName;
  /** Learn transforms at the model's sites. */
  readonly sites: boolean;
  /** Learn the clipping of weights. */
  readonly weightClip: boolean;
  /** Learn the clipping of activations, where they are quantized. */
  readonly tokenClip: boolean;
  /** Rotate the residual stream where activations are quantized. */
  readonly rotate: boolean;
  /** How the last codes are found. */
  readonly rounding: Rounding;
  /** How the transforms look and learn. */
  readonly transforms: TransformStyle;
  /** Grids other than ours. */
  readonly grids?: "published";
  /** Stability factor of the gradual mask where it is not said: of LLaMA and kin and of OPT, or of all. */
  readonly sf: number | Readonly<Record<"llama" | "opt", number>>;
}

/** Learned offsets, round to nearest, or error feedback along the columns. */
export type Rounding = "learned" | "nearest" | "gptq";
export const ROUNDINGS: readonly Rounding[] = ["learned", "nearest", "gptq"];

const OURS = { transforms: EXACT_STYLE, sf: 0.1 } as const;
const AFFINE: Omit<Recipe, "name"> = {
  ...OURS,
  rotate: false,
  sites: true,
  weightClip: true,
  tokenClip: true,
  rounding: "nearest",
};
const PUBLISHED: Omit<Recipe, "name"> = {
  ...AFFINE,
  tokenClip: false,
  transforms: PUBLISHED_STYLE,
  grids: "published",
};

const RECIPES: Readonly<Record<RecipeName, Omit<Recipe, "name">>> = {
  default: { ...AFFINE, rotate: true, rounding: "learned" },
  affine: AFFINE,
  round: { ...AFFINE, sites: false, rounding: "learned" },
  "lwc-only": { ...AFFINE, sites: false, tokenClip: false },
  rtn: { ...AFFINE, sites: false, weightClip: false, tokenClip: false },
  "paper-w4a4": PUBLISHED,
  "paper-weight-only": {
    ...PUBLISHED,
    transforms: { ...PUBLISHED_STYLE, norms: "full", qk: "vector" },
    sf: { llama: 1e-2, opt: 1 },
  },
};

export const RECIPE_NAMES: readonly RecipeName[] = Object.keys(RECIPES) as RecipeName[];

/** Throws: AQ_ARG with the names there are. */
export function recipeOf(name: string): Recipe {
  const recipe = Object.hasOwn(RECIPES, name) ? RECIPES[name as RecipeName] : undefined;
  if (!recipe) {
    const names = RECIPE_NAMES.join(", ");
    throw new AqError("AQ_ARG", `there is no recipe '${name}'; recipes: ${names}`);
  }
  return { name: name as RecipeName, ...recipe };
}

/** Does the recipe learn anything, and so need gradients? */
export function learns(recipe: Recipe): boolean {
  return recipe.sites || recipe.weightClip || recipe.tokenClip;
}

/** Sites of a model that the recipe trains, in the order of folding. */
export function recipeSites(model: Model, recipe: Recipe): readonly SiteSpec[] {
  return recipe.sites ? sitesInStyle(model.sites, recipe.transforms) : [];
}

/** Training settings of a run. */
export interface TrainSettings {
  /** Epochs of transforms and clipping. */
  readonly affineEpochs: number;
  /** Epochs of learned rounding, on frozen transforms. */
  readonly roundEpochs: number;
  readonly alpha: number;
  readonly sf: number;
  /** Rate of transforms. */
  readonly letLr: number;
  /** Rate of clipping logits. */
  readonly lwcLr: number;
  readonly weightDecay: number;
  readonly augLoss: boolean;
  /** Windows of an optimizer step. */
  readonly batch: number;
}

/** The second loss is on where activations are quantized or weights have 2 bits. Source: AffineQuant. */
export function defaultAugLoss({ wbits, abits }: QuantScheme): boolean {
  return abits < 16 || wbits === 2;
}
