/** A block's calibration problem with made-up weights and streams, for tests of the training loop. */
import { Eager } from "../../lib/autograd/graph.ts";
import { runBlock } from "../../lib/calibration/finish-block.ts";
import { type BlockProblem, windowOf } from "../../lib/calibration/problem.ts";
import { recipeOf } from "../../lib/calibration/recipe.ts";
import { resolveSettings } from "../../lib/calibration/settings.ts";
import { ActivationMax } from "../../lib/calibration/statistics.ts";
import { storeWindow } from "../../lib/calibration/streams.ts";
import { keep, scope } from "../../lib/tensor/scope.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import type { QuantizeOptions } from "../../lib/types.ts";
import { Draw } from "./random.ts";
import { toTensor } from "./run-op.ts";
import { tensorsOf, tinyModel, tinyWeights } from "./tiny-block.ts";

const TOKENS = 5;

/**
 * Runs `body` on the problem of a tiny block with biases, for `windows` windows; everything is
 * disposed afterwards.
 */
export async function withTinyProblem<T>(
  windows: number,
  options: Omit<QuantizeOptions, "model" | "out">,
  body: (problem: BlockProblem) => T | Promise<T>,
): Promise<T> {
  const model = tinyModel();
  const settings = resolveSettings({ model: "", out: "", ...options });
  const draw = new Draw(61, "f32");
  const weights = tensorsOf(tinyWeights(model, draw), "f32");
  const inputs = toTensor(draw.normal([windows, TOKENS, model.shape.hidden]), {
    device: "cpu",
    dtype: "f32",
  });
  const context = model.context(TOKENS, "f32");
  const statistics = new ActivationMax();
  const targets = Tensor.empty(inputs.shape);
  scope(() => {
    for (let n = 0; n < windows; n++) {
      const x = windowOf(inputs, n);
      storeWindow(targets, n, runBlock(model, context, weights, x));
      const graph = new Eager();
      const constants = Object.entries(weights).map(([key, w]) => [key, graph.constant(w)]);
      model.block(graph, context, Object.fromEntries(constants), graph.constant(x), statistics);
    }
  });
  const owned = [...Object.values(weights), inputs, targets].map((tensor) => keep(tensor));
  try {
    return await body({
      index: 0,
      model,
      context,
      weights,
      activationMax: statistics.max,
      inputs,
      targets,
      augTargets: undefined,
      scheme: settings.scheme,
      recipe: recipeOf(options.recipe ?? "default"),
      settings: settings.train,
    });
  } finally {
    context.dispose();
    for (const tensor of owned) tensor.dispose();
  }
}
