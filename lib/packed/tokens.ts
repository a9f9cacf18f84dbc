/** What servers do with the activations of a checkpoint whose description asks for it. */

import type { Graph, Var } from "../autograd/graph.ts";
import { fakeQuant } from "../autograd/ops/fake-quant.ts";
import type { Model } from "../models/family.ts";
import { TOKEN_FLOOR } from "../quant/scheme.ts";
import type { ActivationHook } from "../quant/tokens.ts";
import type { TokenScheme } from "./config.ts";

/** One scale for each token of what linears read; q, k and v stay as they are, and nothing is clipped. */
export function serverTokens(model: Model, { bits, symmetric }: TokenScheme): ActivationHook {
  const read = new Set(model.linears.map(({ activation }) => activation));
  return {
    apply(graph: Graph, name: string, x: Var): Var {
      if (!read.has(name)) return x;
      return fakeQuant(graph, x, undefined, { bits, group: 0, symmetric, floor: TOKEN_FLOOR });
    },
  };
}
