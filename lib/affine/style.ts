/**
 * How the transforms of a recipe are chosen, parametrized, started and kept invertible. As data, so
 * that a recipe is a value and the code of a site does not know recipes.
 */

import type { SiteSpec } from "../models/family.ts";

export interface TransformStyle {
  /** Behind a norm: a diagonal that folds, or a C x C matrix whose inverse stays at run time. */
  readonly norms: "diagonal" | "full";
  /** Between q and k: what commutes with the model's positions, or the published matrix or vector. */
  readonly qk: "exact" | "matrix" | "vector";
  /** Gains of q's and k's norms stay as they are: where nobody quantizes q and k nothing depends on them. */
  readonly gains?: "fixed";
  readonly updown: boolean;
  /** Diagonals are e^p, and so positive whatever the optimizer does, or p itself. */
  readonly diagonals: "exp" | "plain";
  /** Starts from all consumers' largest magnitudes, or from one consumer's largest signed weight. */
  readonly starts: "magnitude" | "published";
  /** Where activations are quantized and biases are there to take them, or at every place. */
  readonly shifts: "helpful" | "everywhere";
  /** Where the shifts that are everywhere start. */
  readonly shiftStart: "middle" | "zero";
  readonly mask: "ours" | "published";
  /** Smallest magnitude that an entry may have before a step, zeros excepted; 0: any. */
  readonly floor: number;
  /** Share of the diagonal that a row's off-diagonals may reach; 0: any. */
  readonly dominance: number;
  readonly rates: "cosine" | "constant";
}

/** Share of the diagonal that a row's off-diagonals may reach; what is above is projected back. */
export const DOMINANCE_LIMIT = 0.9;

/** Exact wherever it is applied, and invertible by construction. */
export const EXACT_STYLE: TransformStyle = {
  norms: "diagonal",
  qk: "exact",
  updown: true,
  diagonals: "exp",
  starts: "magnitude",
  shifts: "helpful",
  shiftStart: "middle",
  mask: "ours",
  floor: 0,
  dominance: DOMINANCE_LIMIT,
  rates: "cosine",
};

/** What AffineQuant's published code does with 4-bit activations. */
export const PUBLISHED_STYLE: TransformStyle = {
  norms: "diagonal",
  qk: "matrix",
  updown: false,
  diagonals: "plain",
  starts: "published",
  shifts: "everywhere",
  shiftStart: "zero",
  mask: "published",
  floor: 1e-2,
  dominance: 0,
  rates: "constant",
};

/** A model's sites in a style, in the order of folding. */
export function sitesInStyle(
  sites: readonly SiteSpec[],
  { norms, qk, gains, updown }: TransformStyle,
): readonly SiteSpec[] {
  return sites.flatMap((spec): SiteSpec[] => {
    switch (spec.kind) {
      case "updown":
        return updown ? [spec] : [];
      case "norm":
        return [norms === "full" ? { ...spec, kind: "norm-full" } : spec];
      case "qk-gains":
        return gains === "fixed" ? [] : [spec];
      case "qk-pairs":
      case "qk-matrix":
        return [qk === "exact" ? spec : { kind: `qk-${qk}`, q: spec.q, k: spec.k }];
      default:
        return [spec];
    }
  });
}

/** Every form that a model's sites can take, in the order of folding. */
export function sitesInAnyStyle(sites: readonly SiteSpec[]): readonly SiteSpec[] {
  return sites.flatMap((spec): SiteSpec[] => {
    switch (spec.kind) {
      case "norm":
        return [spec, { ...spec, kind: "norm-full" }];
      case "qk-pairs":
      case "qk-matrix":
        return [
          ...(spec.kind === "qk-pairs" ? [spec] : []),
          { kind: "qk-matrix", q: spec.q, k: spec.k },
          { kind: "qk-vector", q: spec.q, k: spec.k },
        ];
      default:
        return [spec];
    }
  });
}

/** Do these sites leave the function of a block as it is whose exact sites are `exact`? */
export function isEquivalent(sites: readonly SiteSpec[], exact: readonly SiteSpec[]): boolean {
  const rotary = exact.some(({ kind }) => kind === "qk-pairs");
  return !rotary || !sites.some(({ kind }) => kind === "qk-matrix" || kind === "qk-vector");
}
