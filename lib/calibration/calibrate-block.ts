/** One block from start to finish: statistics and targets, training, codes, and the streams' next step. */

import { Eager, type Var } from "../autograd/graph.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { AqError } from "../errors.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { disposeAll, type LoadedWeights, loadBlock, weightDType } from "../models/load.ts";
import { type ActivationHook, passThrough } from "../quant/tokens.ts";
import type { DType } from "../tensor/dtype.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { BlockReport } from "../types.ts";
import { disposeParameters, type TrainHooks, type Training, trainBlock } from "./block-trainer.ts";
import {
  disposeFinished,
  type FinishedBlock,
  finishBlock,
  squares,
  storedWeights,
} from "./finish-block.ts";
import { activationHook, type BlockProblem, windowOf } from "./problem.ts";
import { learns } from "./recipe.ts";
import type { RunSettings } from "./settings.ts";
import { ActivationMax } from "./statistics.ts";
import { type Streams, storeWindow } from "./streams.ts";

export type BlockPhase = "statistics" | "affine" | "fold" | "propagate" | "write";

export interface BlockHooks extends TrainHooks {
  onPhase?(phase: BlockPhase): void;
  /** Called with the finished block before it is disposed; stores it. */
  onFinished?(finished: FinishedBlock): void;
}

/** Calibrates block `index` and moves both streams past it. */
export async function calibrateBlock(
  checkpoint: Checkpoint,
  model: Model,
  context: BlockContext,
  streams: Streams,
  settings: RunSettings,
  index: number,
  hooks: BlockHooks,
): Promise<BlockReport & { readonly tokenClips: Readonly<Record<string, number>> }> {
  const started = performance.now();
  const weights = loadBlock(checkpoint, model, index);
  let training: Training | undefined;
  let finished: FinishedBlock | undefined;
  try {
    hooks.onPhase?.("statistics");
    const activationMax = passFullPrecision(
      model,
      context,
      weights,
      streams,
      learns(settings.recipe),
      hooks.signal,
    );
    const problem: BlockProblem = {
      index,
      model,
      context,
      weights,
      activationMax,
      inputs: streams.quantized,
      targets: streams.fp,
      augTargets: streams.aug,
      scheme: settings.scheme,
      recipe: settings.recipe,
      settings: settings.train,
    };
    if (learns(settings.recipe)) hooks.onPhase?.("affine");
    training = await trainBlock(problem, hooks);

    hooks.onPhase?.("fold");
    const names = new Map(model.blockTensors(index).map(({ key, name }) => [key, name]));
    const storedDType = (key: string): DType => weightDType(checkpoint, names.get(key) as string);
    finished = finishBlock(problem, training, streams.sample, storedDType);

    hooks.onPhase?.("propagate");
    const stored = storedWeights(finished, settings.scheme.groupSize, storedDType);
    const streamError = passQuantized(problem, stored, finished.tokenClips, streams, hooks.signal);
    disposeAll(stored);

    hooks.onPhase?.("write");
    hooks.onFinished?.(finished);
    return {
      block: index,
      lossFirst: training.losses[0] ?? null,
      lossLast: training.losses.at(-1) ?? null,
      equivalence: finished.equivalence,
      equivalenceStored: finished.equivalenceStored,
      dominanceMargin: training.margin,
      streamError,
      skippedSteps: training.skippedSteps,
      fallback: training.fallback,
      seconds: (performance.now() - started) / 1000,
      tokenClips: finished.tokenClips,
    };
  } finally {
    disposeAll(weights);
    if (training) disposeParameters(training.parameters);
    if (finished) disposeFinished(finished);
  }
}

/**
 * Moves the full-precision stream past the block, gathering activation statistics on the way, and
 * computes the targets of the second loss.
 */
function passFullPrecision(
  model: Model,
  context: BlockContext,
  weights: LoadedWeights,
  streams: Streams,
  gather: boolean,
  signal: AbortSignal | undefined,
): ReadonlyMap<string, Float32Array> {
  const statistics = new ActivationMax();
  streams.keepSample();
  for (let n = 0; n < streams.windows; n++) {
    throwIfStopped(signal);
    scope(() => {
      const x = windowOf(streams.fp, n);
      storeWindow(
        streams.fp,
        n,
        forward(model, context, weights, x, () => (gather ? statistics : passThrough)),
      );
      if (streams.aug) {
        const input = windowOf(streams.quantized, n);
        storeWindow(
          streams.aug,
          n,
          forward(model, context, weights, input, () => passThrough),
        );
      }
    });
  }
  return statistics.max;
}

/** Moves the quantized stream past the finished block; returns its distance from full precision. */
function passQuantized(
  { model, context, scheme }: BlockProblem,
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
      const x = windowOf(streams.quantized, n);
      const y = forward(model, context, stored, x, (graph) => {
        const clips = new Map<string, Var>();
        for (const [name, logit] of Object.entries(tokenClips)) {
          clips.set(name, graph.constant(Tensor.from(Float32Array.of(logit))));
        }
        return activationHook(scheme, clips);
      });
      const target = windowOf(streams.fp, n);
      apart += squares(target, y);
      size += squares(target, undefined);
      storeWindow(streams.quantized, n, y);
    });
  }
  return Math.sqrt(apart / size);
}

function forward(
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
