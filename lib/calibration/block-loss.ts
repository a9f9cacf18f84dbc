/** The loss of a block on some windows. */

import type { Graph, Var } from "../autograd/graph.ts";
import { mse } from "../autograd/ops/mse.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { activationHook, type BlockProblem, tokenClipName } from "./problem.ts";
import type { WindowRange } from "./stream.ts";

/** What a step is about: states into the block, its targets, and those of the second loss. */
export function windowInputs(problem: BlockProblem, windows: WindowRange): Tensor[] {
  const { inputs, targets, augTargets } = problem;
  const streams = augTargets ? [inputs, targets, augTargets] : [inputs, targets];
  return streams.map((stream) => stream.range(windows));
}

/**
 * Mean over the windows: mean squared error of the quantized block on the quantized stream against the
 * targets, plus, with the second loss, against the full-precision block on the same input.
 *
 * `weights` are the block's, already folded and fake-quantized; `vars` holds the clipping logits;
 * `windows` is what windowInputs gives.
 */
export function blockLoss(
  problem: BlockProblem,
  graph: Graph,
  weights: Readonly<Record<string, Var>>,
  vars: ReadonlyMap<string, Var>,
  windows: readonly Tensor[],
): Var {
  const { model, context } = problem;
  const clips = new Map<string, Var>();
  for (const name of model.activations) {
    const clip = vars.get(tokenClipName(name));
    if (clip) clips.set(name, clip);
  }
  const [x, target, augTarget] = windows.map((tensor) => graph.constant(tensor));
  if (!x || !target) throw new TypeError("a step needs states and targets");
  const y = model.block(graph, context, weights, x, activationHook(problem, { clips }));
  return mse(graph, y, target, augTarget);
}
