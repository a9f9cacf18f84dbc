/** The streams' passes through a block, without gradients. */

import type { ActivationStatistics } from "../affine/site.ts";
import { Eager, type Var } from "../autograd/graph.ts";
import { AqError } from "../errors.ts";
import type { BlockContext, Model } from "../models/family.ts";
import type { LoadedWeights } from "../models/load.ts";
import { type ActivationHook, passThrough } from "../quant/tokens.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { squares } from "./finish-block.ts";
import { activationHook, type BlockProblem } from "./problem.ts";
import { StatisticsHook } from "./statistics.ts";
import type { Streams } from "./streams.ts";

/**
 * Moves the full-precision stream past the block, gathering activation statistics on the way, and
 * computes the targets of the second loss.
 */
export function passFullPrecision(
  model: Model,
  context: BlockContext,
  weights: LoadedWeights,
  streams: Streams,
  gather: boolean,
  signal: AbortSignal | undefined,
): ActivationStatistics {
  const statistics = new StatisticsHook();
  streams.keepSample();
  for (let n = 0; n < streams.windows; n++) {
    throwIfStopped(signal);
    scope(() => {
      const x = streams.fp.window(n);
      const hook = gather ? statistics : passThrough;
      streams.fp.store(
        n,
        forward(model, context, weights, x, () => hook),
      );
      if (gather) statistics.endWindow(n === streams.windows - 1);
      if (streams.aug) {
        const input = streams.quantized.window(n);
        streams.aug.store(
          n,
          forward(model, context, weights, input, () => passThrough),
        );
      }
    });
  }
  return statistics;
}

/** Moves the quantized stream past the finished block; returns its distance from full precision. */
export function passQuantized(
  { model, context, scheme }: Pick<BlockProblem, "model" | "context" | "scheme">,
  stored: LoadedWeights,
  tokenClips: Readonly<Record<string, number>>,
  streams: Streams,
  signal: AbortSignal | undefined,
): number {
  let apart = 0;
  let size = 0;
  for (let n = 0; n < streams.windows; n++) {
    throwIfStopped(signal);
    scope(() => {
      const x = streams.quantized.window(n);
      const y = forward(model, context, stored, x, (graph) =>
        activationHook(scheme, clipConstants(graph, tokenClips)),
      );
      const target = streams.fp.window(n);
      apart += squares(target, y);
      size += squares(target, undefined);
      streams.quantized.store(n, y);
    });
  }
  return Math.sqrt(apart / size);
}

/** Learned clipping logits as constants of a graph. */
export function clipConstants(
  graph: Eager,
  tokenClips: Readonly<Record<string, number>>,
): Map<string, Var> {
  const clips = new Map<string, Var>();
  for (const [name, logit] of Object.entries(tokenClips)) {
    clips.set(name, graph.constant(Tensor.from(Float32Array.of(logit))));
  }
  return clips;
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

function throwIfStopped(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AqError("AQ_STOPPED", "the run was stopped between two windows");
}
