/** Recipes: what of the method is switched on. */

import { AqError } from "../errors.ts";
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
}

/** Learned offsets, round to nearest, or error feedback along the columns. */
export type Rounding = "learned" | "nearest" | "gptq";
export const ROUNDINGS: readonly Rounding[] = ["learned", "nearest", "gptq"];

const RECIPES: Readonly<Record<RecipeName, Omit<Recipe, "name">>> = {
  default: { rotate: true, sites: true, weightClip: true, tokenClip: true, rounding: "learned" },
  affine: { rotate: false, sites: true, weightClip: true, tokenClip: true, rounding: "nearest" },
  "lwc-only": {
    rotate: false,
    sites: false,
    weightClip: true,
    tokenClip: false,
    rounding: "nearest",
  },
  rtn: { rotate: false, sites: false, weightClip: false, tokenClip: false, rounding: "nearest" },
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
}

/** The second loss is on where activations are quantized or weights have 2 bits. Source: AffineQuant. */
export function defaultAugLoss({ wbits, abits }: QuantScheme): boolean {
  return abits < 16 || wbits === 2;
}
