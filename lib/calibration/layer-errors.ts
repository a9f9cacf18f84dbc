/**
 * What quantizing costs each linear of a finished block, its weights and its input apart: so that a
 * person sees which ones to leave as they are.
 */

import { Eager, type Graph, type Var } from "../autograd/graph.ts";
import { linear } from "../autograd/ops/linear.ts";
import type { TokenNumbers } from "../export/weights.ts";
import type { LinearSpec } from "../models/family.ts";
import type { LoadedWeights } from "../models/load.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { withFullPrecision } from "../tensor/compute-device.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { LayerError } from "../types.ts";
import { linearNames } from "./keep.ts";
import { breathe, disposeTokens, forward, tokenConstants, tokenTensors } from "./passes.ts";
import { activationHook, type BlockProblem } from "./problem.ts";

/** Windows that are looked at, spread evenly. */
const WINDOWS = 4;
/** Sums of squares of a linear in a window: its output, and the change by its weights and by its input. */
const SUMS = 3;

/**
 * By key of each linear that is quantized. Inputs are those of the block in full precision, behind the
 * quantized blocks before it, so that no linear answers for another one of its block. `folded` are the
 * weights in full precision, `stored` what a reader of the written checkpoint sees; to be called before
 * the streams move past the block.
 *
 * Throws: AQ_STOPPED.
 */
export async function layerErrors(
  problem: Pick<BlockProblem, "index" | "model" | "context" | "scheme" | "kept" | "inputs">,
  folded: LoadedWeights,
  stored: LoadedWeights,
  numbers: TokenNumbers,
  signal: AbortSignal | undefined,
): Promise<Record<string, LayerError>> {
  const { index, model, context, kept, inputs } = problem;
  const linears = model.linears.filter(({ key }) => !kept.has(key));
  const count = Math.min(WINDOWS, inputs.windows);
  if (linears.length === 0 || count === 0) return {};
  const tensors = tokenTensors(numbers, context.device);
  // Read when all windows have passed, so that a GPU need not be waited for.
  const sums = Tensor.empty([count, linears.length, SUMS], "f64", context.device);
  const quantized = new Set<string>();
  try {
    for (let i = 0; i < count; i++) {
      await breathe(signal);
      const sumsOf = (position: number): Tensor[] =>
        Array.from({ length: SUMS }, (_, j) =>
          sums.view((i * linears.length + position) * SUMS + j, [1]),
        );
      scope(() => {
        const x = inputs.window(Math.floor((i * inputs.windows) / count));
        const hookFor = (graph: Eager): ActivationHook => {
          const quantizers = activationHook(problem, tokenConstants(graph, tensors));
          return new Comparison({ linears, folded, stored, quantizers, sumsOf, quantized });
        };
        // Rounded products would hide what wide codes change.
        withFullPrecision(context.device, () => forward(model, context, folded, x, hookFor));
      });
    }
    const squares = await sums.readAsync();
    const total = (position: number, j: number): number => {
      const places = Array.from({ length: count }, (_, i) => i * linears.length + position);
      return places.reduce((sum, place) => sum + (squares[place * SUMS + j] ?? 0), 0);
    };
    const names = linearNames(model, index);
    const errors = linears.map(({ key, activation }, position): [string, LayerError] => {
      const size = total(position, 0);
      const share = (j: number): number => (size > 0 ? Math.sqrt(total(position, j) / size) : 0);
      const byInput = quantized.has(activation) ? share(2) : null;
      return [key, { name: names.get(key) ?? key, weight: share(1), activation: byInput }];
    });
    return Object.fromEntries(errors);
  } finally {
    sums.dispose();
    disposeTokens(tensors);
  }
}

interface Compared {
  readonly linears: readonly LinearSpec[];
  readonly folded: LoadedWeights;
  readonly stored: LoadedWeights;
  readonly quantizers: ActivationHook;
  /** Where a linear's sums of the window go. */
  readonly sumsOf: (position: number) => Tensor[];
  /** Names of the activations that turn out to be quantized. */
  readonly quantized: Set<string>;
}

/** Compares each linear's outputs where its input comes by, and passes the input on as it is. */
class Comparison implements ActivationHook {
  readonly #compared: Compared;

  constructor(compared: Compared) {
    this.#compared = compared;
  }

  apply(graph: Graph, name: string, x: Var, group: number): Var {
    const { linears, quantizers, quantized } = this.#compared;
    if (!linears.some(({ activation }) => activation === name)) return x;
    scope(() => {
      const changed = quantizers.apply(graph, name, x, group);
      if (changed !== x) quantized.add(name);
      const rounded = changed === x ? undefined : changed;
      for (const [position, { key, activation }] of linears.entries()) {
        if (activation === name) this.#compare(key, position, x.value.tensor, rounded);
      }
    });
    return x;
  }

  #compare(key: string, position: number, input: Tensor, rounded: Var | undefined): void {
    const { folded, stored, sumsOf } = this.#compared;
    const graph = new Eager();
    const [w, wq] = [folded[key] as Tensor, stored[key] as Tensor];
    const [size, byWeights, byInput] = sumsOf(position);
    // Not the block's own value, which keeps what products make of it.
    const x = graph.constant(input);
    const outputOf = (x: Var, w: Tensor): Tensor =>
      linear(graph, x, graph.constant(w)).value.tensor;
    const y = outputOf(x, w);
    const compare = (other: Tensor, into: Tensor | undefined): void => {
      invokeOne("sq_diff", [y, other], {}, into);
      other.dispose();
    };
    invokeOne("sq_diff", [y, undefined], {}, size);
    compare(outputOf(x, wq), byWeights);
    if (rounded) compare(outputOf(rounded, w), byInput);
    y.dispose();
  }
}
