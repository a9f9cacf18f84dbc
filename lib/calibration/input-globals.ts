/**
 * The global scales of a block's activations (NVFP4): servers read them from the checkpoint, so they are
 * fixed once the block is finished, from all windows of the quantized stream.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { keptActivations } from "../models/kept.ts";
import type { LoadedWeights } from "../models/load.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { hasGlobalScales, quantizesTokens } from "../quant/scheme.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { breathe, forward } from "./passes.ts";
import { activationHook, type BlockProblem } from "./problem.ts";

/**
 * By activation; empty where the scheme has none. `stored` are the weights of the finished block.
 *
 * Throws: AQ_STOPPED.
 */
export async function inputGlobals(
  problem: BlockProblem,
  stored: LoadedWeights,
  signal: AbortSignal | undefined,
): Promise<Record<string, number>> {
  const { model, context, scheme, kept, inputs } = problem;
  if (!hasGlobalScales(scheme) || !quantizesTokens(scheme)) return {};
  const plain = keptActivations(model, kept);
  const read = model.linears.map(({ activation }) => activation);
  const seen = new Largest(read.filter((name) => !plain.has(name)));
  try {
    for (let n = 0; n < inputs.windows; n++) {
      await breathe(signal);
      scope(() => {
        forward(model, context, stored, inputs.window(n), () =>
          seen.before(activationHook(problem, {})),
        );
      });
    }
    return await seen.finish();
  } finally {
    seen.dispose();
  }
}

/** Follows the global scales of some activations over all that passes. */
class Largest {
  readonly #names: ReadonlySet<string>;
  readonly #globals = new Map<string, Tensor>();

  constructor(names: readonly string[]) {
    this.#names = new Set(names);
  }

  /** Looks at what goes into `inner`. */
  before(inner: ActivationHook): ActivationHook {
    return {
      apply: (graph: Graph, name: string, x: Var, group: number): Var => {
        if (this.#names.has(name)) this.#see(name, x.value.tensor);
        return inner.apply(graph, name, x, group);
      },
    };
  }

  #see(name: string, x: Tensor): void {
    const before = this.#globals.get(name);
    this.#globals.set(name, keep(invokeOne("fp4_global", [x, before])));
    before?.dispose();
  }

  async finish(): Promise<Record<string, number>> {
    const globals: Record<string, number> = {};
    for (const [name, tensor] of this.#globals) {
      const value = (await tensor.readAsync())[0] ?? 1;
      globals[name] = Number.isFinite(value) ? value : 1;
    }
    return globals;
  }

  dispose(): void {
    for (const tensor of this.#globals.values()) tensor.dispose();
    this.#globals.clear();
  }
}
