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
}

const RECIPES: Readonly<Record<RecipeName, Omit<Recipe, "name">>> = {
  default: { sites: true, weightClip: true, tokenClip: true },
  affine: { sites: true, weightClip: true, tokenClip: true },
  "lwc-only": { sites: false, weightClip: true, tokenClip: false },
  rtn: { sites: false, weightClip: false, tokenClip: false },
};

export const RECIPE_NAMES: readonly RecipeName[] = Object.keys(RECIPES) as RecipeName[];

/** Throws: AQ_ARG with the names there are. */
export function recipeOf(name: string): Recipe {
  const recipe = Object.hasOwn(RECIPES, name) ? RECIPES[name as RecipeName] : undefined;
  if (!recipe)
    throw new AqError(
      "AQ_ARG",
      `there is no recipe '${name}'; recipes: ${RECIPE_NAMES.join(", ")}`,
    );
  return { name: name as RecipeName, ...recipe };
}

/** Does the recipe learn anything, and so need gradients? */
export function learns(recipe: Recipe): boolean {
  return recipe.sites || recipe.weightClip || recipe.tokenClip;
}

/** Training settings of a run. */
export interface TrainSettings {
  readonly epochs: number;
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
