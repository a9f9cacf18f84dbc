/** Which layers suffer most from being quantized, from the errors that every block reports. */

import type { BlockReport, LayerError } from "../types.ts";

/** A linear of a block. */
export interface RankedLayer extends LayerError {
  readonly block: number;
  readonly linear: string;
  /** Both parts together, as if they had nothing to do with each other: the root of the sum of squares. */
  readonly both: number;
}

/** A layer stands out where its error is this many times the median. */
const STANDS_OUT = 1.5;
/** Patterns that a hint may have; more would be no hint. */
const MAX_PATTERNS = 8;

/** All layers, the worst first. */
export function rankLayers(blocks: readonly BlockReport[]): RankedLayer[] {
  const all = blocks.flatMap(({ block, layers = {} }) =>
    Object.entries(layers).map(([linear, error]) => {
      const both = Math.hypot(error.weight, error.activation ?? 0);
      return { block, linear, ...error, both };
    }),
  );
  return all
    .filter(({ both }) => Number.isFinite(both))
    .sort((a, b) => b.both - a.both || a.block - b.block);
}

/** Those whose error is far above that of the others; `ranked` as rankLayers gives it. */
export function outstanding(ranked: readonly RankedLayer[]): readonly RankedLayer[] {
  const median = ranked[Math.floor(ranked.length / 2)]?.both ?? 0;
  return ranked.filter(({ both }) => both > STANDS_OUT * median);
}

/**
 * What to give to `--keep` for the layers that stand out: a pattern for all blocks where the same linear
 * does in most of them, else names, the worst first. Empty where none stands out.
 */
export function keepHint(ranked: readonly RankedLayer[]): string[] {
  const worst = outstanding(ranked);
  const patterns = new Set<string>();
  for (const { linear, name } of worst) {
    const same = (layers: readonly RankedLayer[]): number =>
      layers.filter((layer) => layer.linear === linear).length;
    const isUsual = same(worst) > 1 && same(worst) > same(ranked) / 2;
    patterns.add(isUsual ? `*.${name.replace(/^.*\.\d+\./, "")}` : name);
  }
  return [...patterns].slice(0, MAX_PATTERNS);
}
