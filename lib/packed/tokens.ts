/** What servers do with the activations of a checkpoint whose description asks for it. */

import type { Graph, Var } from "../autograd/graph.ts";
import { fakeQuant } from "../autograd/ops/fake-quant.ts";
import type { Model } from "../models/family.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { float4Scheme, type QuantScheme, TOKEN_FLOOR } from "../quant/scheme.ts";
import type { TokenScheme } from "./config.ts";
import type { PackedWeights } from "./open.ts";

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

/** Keys of each block's linears that are not packed. */
export function keptLinears(model: Model, packed: PackedWeights): string[][] {
  const linears = new Set(model.linears.map(({ key }) => key));
  return Array.from({ length: model.shape.blocks }, (_, block) =>
    model
      .blockTensors(block)
      .filter(({ key, name }) => linears.has(key) && !packed.has(name))
      .map(({ key }) => key),
  );
}

/** How activations of 4-bit floats are quantized, in the words of the runs that write such folders. */
export interface ServerFloats {
  readonly scheme: QuantScheme;
  /** Global scales by activation, for each block. */
  readonly globals: readonly Readonly<Record<string, number>>[];
}

/**
 * The same for 4-bit floats, or null where the folder leaves activations alone. Linears that read one
 * activation share its scale: servers run them as one.
 *
 * Throws: AQ_FORMAT, AQ_FILE.
 */
export function serverFloats(model: Model, packed: PackedWeights): ServerFloats | null {
  const { numbers } = packed.tokens ?? {};
  if (!numbers) return null;
  const globals = Array.from({ length: model.shape.blocks }, (_, block) => {
    const names = new Map(model.blockTensors(block).map(({ key, name }) => [key, name]));
    const own: Record<string, number> = {};
    for (const { key, activation } of model.linears) {
      const name = names.get(key) ?? "";
      const input = packed.has(name) ? packed.input(name) : null;
      // Where they differ, servers take the one of the largest range, whose scale is the smallest.
      if (input !== null) own[activation] = Math.min(input, own[activation] ?? input);
    }
    return own;
  });
  return { scheme: float4Scheme(numbers, 4), globals };
}
