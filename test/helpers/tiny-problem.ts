/** A block's calibration problem with made-up weights and streams, for tests of the training loop. */
import { Eager } from "../../lib/autograd/graph.ts";
import { runBlock } from "../../lib/calibration/finish-block.ts";
import type { BlockProblem } from "../../lib/calibration/problem.ts";
import { recipeOf } from "../../lib/calibration/recipe.ts";
import { resolveSettings } from "../../lib/calibration/settings.ts";
import { StatisticsHook } from "../../lib/calibration/statistics.ts";
import { Stream } from "../../lib/calibration/stream.ts";
import { scope } from "../../lib/tensor/scope.ts";
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
  device = "cpu",
): Promise<T> {
  const model = tinyModel();
  const settings = resolveSettings({ model: "", out: "", recipe: "affine", ...options });
  const draw = new Draw(61, "f32");
  const weights = tensorsOf(tinyWeights(model, draw), "f32", device);
  const shape = { windows, tokens: TOKENS, channels: model.shape.hidden };
  const inputs = new Stream(shape, undefined, device);
  const targets = new Stream(shape, undefined, device);
  const start = draw.normal([windows, TOKENS, model.shape.hidden]);
  const context = model.context(TOKENS, "f32", device);
  const seen = new StatisticsHook(windows);
  scope(() => {
    const states = toTensor(start, { device, dtype: "f32" });
    const size = TOKENS * model.shape.hidden;
    for (let n = 0; n < windows; n++) {
      inputs.store(n, states.view(n * size, [1, TOKENS, model.shape.hidden]));
      const x = inputs.window(n);
      targets.store(n, runBlock(model, context, weights, x));
      const graph = new Eager();
      const constants = Object.entries(weights).map(([key, w]) => [key, graph.constant(w)]);
      model.block(graph, context, Object.fromEntries(constants), graph.constant(x), seen);
      seen.endWindow();
    }
  });
  const statistics = await seen.finish();
  const owned = [...Object.values(weights), inputs, targets, seen];
  try {
    return await body({
      index: 0,
      model,
      context,
      weights,
      statistics,
      inputs,
      targets,
      augTargets: undefined,
      scheme: settings.scheme,
      kept: new Set(),
      recipe: recipeOf(options.recipe ?? "affine"),
      settings: settings.train,
      rotated: false,
    });
  } finally {
    context.dispose();
    for (const tensor of owned) tensor.dispose();
  }
}
