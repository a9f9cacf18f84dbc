/** The loss of one window of a block. */

import type { Graph, Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import { mse } from "../autograd/ops/mse.ts";
import { activationHook, type BlockProblem, tokenClipName } from "./problem.ts";

/**
 * Mean squared error of the quantized block on the quantized stream against the targets, plus, with
 * the second loss, against the full-precision block on the same input.
 *
 * `weights` are the block's, already folded and fake-quantized; `vars` holds the clipping logits.
 */
export function blockLoss(
  problem: BlockProblem,
  graph: Graph,
  weights: Readonly<Record<string, Var>>,
  vars: ReadonlyMap<string, Var>,
  n: number,
): Var {
  const { model, scheme, context } = problem;
  const clips = new Map<string, Var>();
  for (const name of model.activations) {
    const clip = vars.get(tokenClipName(name));
    if (clip) clips.set(name, clip);
  }
  const x = graph.constant(problem.inputs.window(n));
  const y = model.block(graph, context, weights, x, activationHook(scheme, clips));
  const loss = mse(graph, y, graph.constant(problem.targets.window(n)));
  if (!problem.augTargets) return loss;
  return add(graph, loss, mse(graph, y, graph.constant(problem.augTargets.window(n))));
}
