/** All sites of a block: their starts, their fold in order, their description. */

import type { Graph, Var } from "../autograd/graph.ts";
import type { LastInverses } from "../autograd/ops/lu-inverse.ts";
import type { ModelShape, SiteSpec } from "../models/family.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { MaskOf } from "./gradual-mask.ts";
import { normFullSite } from "./norm-full-site.ts";
import { normSite } from "./norm-site.ts";
import { qkGainsSite } from "./qk-gains-site.ts";
import { qkMatrixSite } from "./qk-matrix-site.ts";
import { qkPairsSite } from "./qk-pairs-site.ts";
import { qkVectorSite } from "./qk-vector-site.ts";
import type { FoldedWeights, SiteKind, StartContext, StartValue } from "./site.ts";
import type { TransformStyle } from "./style.ts";
import { updownSite } from "./updown-site.ts";
import { voSite } from "./vo-site.ts";

const KINDS: { readonly [K in SiteSpec["kind"]]: SiteKind<Extract<SiteSpec, { kind: K }>> } = {
  updown: updownSite,
  norm: normSite,
  "norm-full": normFullSite,
  vo: voSite,
  "qk-pairs": qkPairsSite,
  "qk-gains": qkGainsSite,
  "qk-matrix": qkMatrixSite,
  "qk-vector": qkVectorSite,
};

function kindOf(spec: SiteSpec): SiteKind<SiteSpec> {
  return KINDS[spec.kind] as SiteKind<SiteSpec>;
}

/** Name of a site, unique in its block: the kind, and the norm where there are two. */
export function siteName(spec: SiteSpec): string {
  return "norm" in spec ? `${spec.kind}.${spec.norm}` : spec.kind;
}

/** Starting values of every parameter of the sites, as `site.parameter`. */
export function startSites(
  specs: readonly SiteSpec[],
  context: StartContext,
): Map<string, StartValue> {
  const starts = new Map<string, StartValue>();
  for (const spec of specs) {
    for (const [name, value] of Object.entries(kindOf(spec).start(spec, context))) {
      starts.set(`${siteName(spec)}.${name}`, value);
    }
  }
  return starts;
}

/** A block's weights as constants of a graph; biases become columns, as the folds want them. */
export function constants(graph: Graph, weights: Readonly<Record<string, Tensor>>): FoldedWeights {
  return Object.fromEntries(
    Object.entries(weights).map(([key, tensor]) => [
      key,
      graph.constant(key.endsWith(".bias") ? tensor.reshape([tensor.size, 1]) : tensor),
    ]),
  );
}

/**
 * Folds all sites, in the order of the specs, into `weights`. Without `maskOf` the matrices among the
 * parameters come under their masks.
 */
export function foldSites(
  specs: readonly SiteSpec[],
  graph: Graph,
  weights: FoldedWeights,
  parameters: ReadonlyMap<string, Var>,
  shape: ModelShape,
  maskOf: MaskOf | undefined,
  inverses?: LastInverses,
): void {
  for (const spec of specs) {
    const prefix = `${siteName(spec)}.`;
    const own = Object.fromEntries(
      [...parameters]
        .filter(([name]) => name.startsWith(prefix))
        .map(([name, v]) => [name.slice(prefix.length), v]),
    );
    kindOf(spec).fold(spec, { graph, weights, shape, maskOf, inverses }, own);
  }
}

/** Keys of the weights that folding makes where a block does not have them, each once. */
export function addedBySites(specs: readonly SiteSpec[], style: TransformStyle): readonly string[] {
  return [...new Set(specs.flatMap((spec) => kindOf(spec).adds?.(spec, style) ?? []))];
}

/** What `inspect` says of a site. */
export function describeSite(
  spec: SiteSpec,
  shape: ModelShape,
): { map: string; parameters: number; foldsInto: string[] } {
  return kindOf(spec).describe(spec, shape);
}
