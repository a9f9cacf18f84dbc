/** What a recipe does to a model: its sites, the tensors that it adds, and what a person should know. */

import { addedBySites } from "../affine/sites.ts";
import { isEquivalent } from "../affine/style.ts";
import { isRunTime } from "../export/aq-config.ts";
import type { Model, SiteSpec } from "../models/family.ts";
import { oddPart } from "../models/hadamard-down.ts";
import { type Recipe, recipeSites } from "./recipe.ts";

export interface Plan {
  readonly sites: readonly SiteSpec[];
  /** Keys of tensors that the recipe makes and the model's architecture lacks. */
  readonly added: readonly string[];
  readonly notes: readonly string[];
}

export function planOf(model: Model, recipe: Recipe): Plan {
  const sites = recipeSites(model, recipe);
  const known = new Set(model.blockTensors(0).map(({ key }) => key));
  const added = addedBySites(sites, recipe.transforms).filter((key) => !known.has(key));
  const notes: string[] = [];
  if (!isEquivalent(sites, model.sites)) {
    notes.push(
      "the published transform between q and k does not commute with rotary positions: blocks change more than rounding explains, which the report shows as equivalent: false",
    );
  }
  if (added.length > 0) {
    const { hidden, blocks } = model.shape;
    const matrices = added.filter(isRunTime).length * blocks;
    const numbers = (matrices * hidden * hidden).toLocaleString("en-US");
    const what = matrices > 0 ? `${matrices} matrices of ${hidden} x ${hidden}` : "biases";
    const cost = matrices > 0 ? `, ${numbers} numbers that are applied at run time` : "";
    notes.push(
      `the output holds ${what} that its architecture does not have${cost}: it gets a model_type of our own, which stock loaders refuse`,
    );
  }
  return { sites, added, notes };
}

/** What the rotation costs a model whose head is its embedding. */
export function untiedNote({ shape: { vocabulary, hidden } }: Model): string {
  const numbers = (vocabulary * hidden).toLocaleString("en-US");
  return `the residual stream is rotated, so the head is no longer the embedding: the output stores it as a tensor of its own, ${numbers} numbers more`;
}

/** What the transform costs when the model runs, and who can run it. */
export function hadamardNote({ shape: { mlp } }: Model): string {
  const odd = oddPart(mlp);
  const sums = (mlp * (Math.log2(mlp / odd) + (odd > 1 ? odd : 0))).toLocaleString("en-US");
  return `a Hadamard transform runs before the down projection of every block, about ${sums} additions a token; other loaders refuse the output, since they would leave it out`;
}
