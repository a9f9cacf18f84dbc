/** The streams' passes through a block, without gradients. */

import { setImmediate } from "node:timers/promises";
import type { ActivationStatistics } from "../affine/site.ts";
import { Eager, type Var } from "../autograd/graph.ts";
import { AqError } from "../errors.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { disposeAll, type LoadedWeights } from "../models/load.ts";
import { type ActivationHook, passThrough } from "../quant/tokens.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { activationHook, type BlockProblem } from "./problem.ts";
import { StatisticsHook } from "./statistics.ts";
import type { Streams } from "./streams.ts";

/**
 * Moves the full-precision stream past the block, gathering activation statistics on the way, and
 * computes the targets of the second loss. Throws: AQ_STOPPED.
 */
export async function passFullPrecision(
  model: Model,
  context: BlockContext,
  weights: LoadedWeights,
  streams: Streams,
  gather: boolean,
  signal: AbortSignal | undefined,
): Promise<ActivationStatistics> {
  const statistics = new StatisticsHook(streams.windows);
  try {
    streams.keepSample();
    for (let n = 0; n < streams.windows; n++) {
      await breathe(signal);
      scope(() => {
        const x = streams.fp.window(n);
        const hook = gather ? statistics : passThrough;
        streams.fp.store(
          n,
          forward(model, context, weights, x, () => hook),
        );
        statistics.endWindow();
        if (streams.aug) {
          const input = streams.quantized.window(n);
          streams.aug.store(
            n,
            forward(model, context, weights, input, () => passThrough),
          );
        }
      });
    }
    return await statistics.finish();
  } finally {
    statistics.dispose();
  }
}

/**
 * Moves the quantized stream past the finished block; returns its distance from full precision.
 * Throws: AQ_STOPPED.
 */
export async function passQuantized(
  { model, context, scheme }: Pick<BlockProblem, "model" | "context" | "scheme">,
  stored: LoadedWeights,
  tokenClips: Readonly<Record<string, number>>,
  streams: Streams,
  signal: AbortSignal | undefined,
): Promise<number> {
  const clips = clipTensors(tokenClips, context.device);
  // For each window the squares of the difference and of the target, read when all have passed.
  const squares = Tensor.empty([streams.windows, 2], "f64", context.device);
  try {
    for (let n = 0; n < streams.windows; n++) {
      await breathe(signal);
      scope(() => {
        const x = streams.quantized.window(n);
        const y = forward(model, context, stored, x, (graph) =>
          activationHook(scheme, clipConstants(graph, clips)),
        );
        const target = streams.fp.window(n);
        invokeOne("sq_diff", [target, y], {}, squares.view(2 * n, [1]));
        invokeOne("sq_diff", [target, undefined], {}, squares.view(2 * n + 1, [1]));
        streams.quantized.store(n, y);
      });
    }
    let apart = 0;
    let size = 0;
    for (const [i, value] of (await squares.readAsync()).entries()) {
      if (i % 2 === 0) apart += value;
      else size += value;
    }
    return Math.sqrt(apart / size);
  } finally {
    squares.dispose();
    disposeAll(clips);
  }
}

/** Learned clipping logits on a device, by activation; the caller owns them. */
export function clipTensors(
  tokenClips: Readonly<Record<string, number>>,
  device: string,
): LoadedWeights {
  return Object.fromEntries(
    Object.entries(tokenClips).map(([name, logit]) => [
      name,
      Tensor.from(Float32Array.of(logit), [1], "f32", device),
    ]),
  );
}

/** The same as constants of a graph. */
export function clipConstants(graph: Eager, clips: LoadedWeights): Map<string, Var> {
  return new Map(Object.entries(clips).map(([name, logit]) => [name, graph.constant(logit)]));
}

/** The block on one window, with activations as the hook wants them. */
export function forward(
  model: Model,
  context: BlockContext,
  weights: LoadedWeights,
  x: Tensor,
  hookFor: (graph: Eager) => ActivationHook,
): Tensor {
  const graph = new Eager();
  const w = Object.fromEntries(Object.entries(weights).map(([key, t]) => [key, graph.constant(t)]));
  return model.block(graph, context, w, graph.constant(x), hookFor(graph)).value.tensor;
}

/** Lets timers, signals and the caller's own work in. Throws: AQ_STOPPED. */
async function breathe(signal: AbortSignal | undefined): Promise<void> {
  await setImmediate();
  if (signal?.aborted) throw new AqError("AQ_STOPPED", "the run was stopped between two windows");
}
