/** The streams' passes through a block, without gradients. */

import { setImmediate } from "node:timers/promises";
import type { ActivationStatistics } from "../affine/site.ts";
import { Eager, type Graph, type Var } from "../autograd/graph.ts";
import { AqError } from "../errors.ts";
import type { TokenNumbers } from "../export/weights.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { disposeAll, type LoadedWeights } from "../models/load.ts";
import { type ActivationHook, passThrough } from "../quant/activations.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { activationHook, type BlockProblem, type BlockScheme } from "./problem.ts";
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
  problem: BlockScheme & Pick<BlockProblem, "context">,
  stored: LoadedWeights,
  numbers: TokenNumbers,
  streams: Streams,
  signal: AbortSignal | undefined,
): Promise<number> {
  const { model, context } = problem;
  const tensors = tokenTensors(numbers, context.device);
  // For each window the squares of the difference and of the target, read when all have passed.
  const squares = Tensor.empty([streams.windows, 2], "f64", context.device);
  try {
    for (let n = 0; n < streams.windows; n++) {
      await breathe(signal);
      scope(() => {
        const x = streams.quantized.window(n);
        const y = forward(model, context, stored, x, (graph) =>
          activationHook(problem, tokenConstants(graph, tensors)),
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
    disposeTokens(tensors);
  }
}

/** A block's token numbers on a device, by activation; the caller owns them (`disposeTokens`). */
export interface TokenTensors {
  readonly clips: LoadedWeights;
  readonly globals: LoadedWeights;
}

export function tokenTensors(
  { tokenClips, inputGlobals }: TokenNumbers,
  device: string,
): TokenTensors {
  const onDevice = (numbers: Readonly<Record<string, number>>): LoadedWeights =>
    Object.fromEntries(
      Object.entries(numbers).map(([name, value]) => [
        name,
        Tensor.from(Float32Array.of(value), [1], "f32", device),
      ]),
    );
  return { clips: onDevice(tokenClips), globals: onDevice(inputGlobals) };
}

export function disposeTokens({ clips, globals }: TokenTensors): void {
  disposeAll(clips);
  disposeAll(globals);
}

/** The same as constants of a graph. */
export function tokenConstants(
  graph: Graph,
  { clips, globals }: TokenTensors,
): { clips: Map<string, Var>; globals: Map<string, Var> } {
  const constants = (tensors: LoadedWeights): Map<string, Var> =>
    new Map(Object.entries(tensors).map(([name, tensor]) => [name, graph.constant(tensor)]));
  return { clips: constants(clips), globals: constants(globals) };
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
export async function breathe(signal: AbortSignal | undefined): Promise<void> {
  await setImmediate();
  if (signal?.aborted) throw new AqError("AQ_STOPPED", "the run was stopped between two windows");
}
