/** One block from start to finish: statistics and targets, the phases, codes, and the streams' next step. */

import type { ActivationStatistics } from "../affine/site.ts";
import type { LearnedBlock } from "../export/learned-block.ts";
import type { TokenNumbers } from "../export/weights.ts";
import type { BlockContext } from "../models/family.ts";
import { disposeAll } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import type { QuantizedWeight } from "../quant/quantizer.ts";
import type { DType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { BlockReport, LayerError } from "../types.ts";
import type { PhaseResult, TrainHooks } from "./attempts.ts";
import {
  disposeFinished,
  type FinishedBlock,
  type FoldedBlock,
  foldBlock,
  quantizeBlock,
  storedWeights,
} from "./finish-block.ts";
import { inputGlobals } from "./input-globals.ts";
import { keptKeys } from "./keep.ts";
import { layerErrors } from "./layer-errors.ts";
import { disposeParameters } from "./parameters.ts";
import { passFullPrecision, passQuantized } from "./passes.ts";
import { PhaseClock } from "./phase-clock.ts";
import { type AffineResult, affinePhase } from "./phases/affine.ts";
import { gptqPhase } from "./phases/gptq.ts";
import { disposeRounding, type Rounding, roundPhase } from "./phases/round.ts";
import type { BlockProblem } from "./problem.ts";
import { learns } from "./recipe.ts";
import type { RunSettings } from "./settings.ts";
import type { Streams } from "./streams.ts";

export type BlockPhase =
  | "statistics"
  | "affine"
  | "fold"
  | "round"
  | "gptq"
  | "propagate"
  | "write";

export interface BlockHooks extends TrainHooks {
  onPhase?(phase: BlockPhase): void;
  /** Called with the finished block, and what its codes come from, before both are disposed; stores it. */
  onFinished?(finished: FinishedBlock, learned: LearnedBlock): void;
}

/** Calibrates block `index` and moves both streams past it. */
export async function calibrateBlock(
  source: WeightSource,
  context: BlockContext,
  streams: Streams,
  settings: RunSettings,
  index: number,
  hooks: BlockHooks,
): Promise<BlockReport & TokenNumbers> {
  const { model } = source;
  const clock = new PhaseClock();
  const enter = (phase: BlockPhase): void => {
    clock.enter(phase);
    hooks.onPhase?.(phase);
  };
  clock.enter("load");
  await source.arrived();
  const weights = source.loadBlock(index);
  if (index + 1 < model.shape.blocks) source.readAhead(index + 1);
  const owned: (() => void)[] = [() => disposeAll(weights)];
  try {
    enter("statistics");
    const statistics: ActivationStatistics = await passFullPrecision(
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
      statistics,
      inputs: streams.quantized,
      targets: streams.fp,
      augTargets: streams.aug,
      scheme: settings.scheme,
      kept: keptKeys(model, index, settings),
      recipe: settings.recipe,
      settings: settings.train,
      rotated: source.rotation !== null,
    };
    if (learns(settings.recipe)) enter("affine");
    const affine = await affinePhase(problem, hooks);
    owned.push(() => disposeParameters(affine.parameters));

    enter("fold");
    const storedDType = (key: string): DType => source.storedDType(index, key);
    const folded = foldBlock(problem, affine, source, streams.sample);
    owned.push(() => disposeAll(folded.weights));

    let round: PhaseResult<Rounding> | undefined;
    if (
      settings.recipe.rounding === "learned" &&
      settings.train.roundEpochs > 0 &&
      !affine.failed
    ) {
      enter("round");
      const clips = affine.parameters.filter((p) => p.group === "clip");
      round = await roundPhase(problem, folded.weights, clips, shifted(hooks, settings));
      const rounding = round.state;
      if (rounding) owned.push(() => disposeRounding(rounding));
    }
    const clips = round?.state?.clips ?? affine.parameters.filter((p) => p.group === "clip");
    let known: Readonly<Record<string, QuantizedWeight>> = {};
    if (settings.recipe.rounding === "gptq" && !affine.failed) {
      enter("gptq");
      known = await gptqPhase(problem, folded.weights, clips, hooks.signal);
    }
    const offsets = round?.state?.offsets ?? new Map<string, Tensor>();
    const made = quantizeBlock(problem, folded.weights, clips, offsets, known);
    owned.push(() => disposeFinished(made));

    enter("propagate");
    const stored = storedWeights(made, settings.scheme.groupSize, storedDType);
    let finished: FinishedBlock;
    let layers: Readonly<Record<string, LayerError>>;
    let streamError: number;
    try {
      finished = { ...made, inputGlobals: await inputGlobals(problem, stored, hooks.signal) };
      layers = await layerErrors(problem, folded.weights, stored, finished, hooks.signal);
      streamError = await passQuantized(problem, stored, finished, streams, hooks.signal);
    } finally {
      disposeAll(stored);
    }

    enter("write");
    hooks.onFinished?.(finished, {
      weights: folded.weights,
      clips: Object.fromEntries(clips.map(({ name, value }) => [name, value])),
      offsets: Object.fromEntries(offsets),
    });
    return {
      block: index,
      ...report(affine, folded, round),
      streamError,
      layers,
      ...clock.stop(),
      tokenClips: finished.tokenClips,
      inputGlobals: finished.inputGlobals,
    };
  } finally {
    for (const dispose of owned.reverse()) dispose();
  }
}

/** Hooks of the second phase: its epochs and steps follow those of the first. */
function shifted(hooks: BlockHooks, { train }: RunSettings): TrainHooks {
  return {
    ...hooks,
    onStep: (epoch, step, steps, loss) => {
      const before = (steps / train.roundEpochs) * train.affineEpochs;
      hooks.onStep?.(epoch + train.affineEpochs, step + before, steps + before, loss);
    },
    onEpoch: (epoch, loss) => hooks.onEpoch?.(epoch + train.affineEpochs, loss, null),
  };
}

function report(
  affine: AffineResult,
  folded: FoldedBlock,
  round: PhaseResult<Rounding> | undefined,
): Omit<BlockReport, "block" | "streamError" | "seconds" | "phaseSeconds"> {
  const losses: Record<string, readonly number[]> = {};
  if (affine.losses.length > 0) losses["affine"] = affine.losses;
  if (round && round.losses.length > 0) losses["round"] = round.losses;
  const all = Object.values(losses).flat();
  const roundFallback = round && !round.state ? "nearest" : (round?.fallback ?? null);
  return {
    lossFirst: all[0] ?? null,
    lossLast: all.at(-1) ?? null,
    losses,
    equivalence: folded.equivalence,
    equivalenceStored: folded.equivalenceStored,
    equivalent: folded.equivalent,
    dominanceMargin: affine.margin,
    skippedSteps: affine.skippedSteps + (round?.skippedSteps ?? 0),
    fallback: affine.failed ? "rtn" : (roundFallback ?? affine.fallback),
  };
}
