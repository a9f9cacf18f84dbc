/** Trains one block: epochs over windows, and what to do when training fails. */

import { setImmediate } from "node:timers/promises";
import { maskOfEpoch } from "../affine/gradual-mask.ts";
import { startSites } from "../affine/sites.ts";
import type { Mask } from "../autograd/ops/gradual-mask.ts";
import { AqError } from "../errors.ts";
import { CLIP_START, quantizesTokens } from "../quant/scheme.ts";
import { startClip } from "../quant/weights.ts";
import type { BlockReport } from "../types.ts";
import { cosine, Parameter } from "./parameters.ts";
import { type BlockProblem, tokenClipName, weightClipName } from "./problem.ts";
import { learns } from "./recipe.ts";
import { type GradientWatcher, trainStep } from "./train-step.ts";

/** Steps with a non-finite loss or gradient that a block may skip before it starts again. */
const SKIPS_ALLOWED = 2;
/** What the attempts at a block are called: full rates, half, a quarter. */
const ATTEMPTS = [null, "half-rate", "quarter-rate"] as const;

export interface TrainHooks {
  onStep?(epoch: number, step: number, steps: number, loss: number): void;
  onEpoch?(epoch: number, loss: number, margin: number | null): void;
  /** A sentence for the log. */
  onNote?(text: string): void;
  readonly watch?: GradientWatcher | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A trained block. The caller owns the parameters; without any, the block is rounded to nearest. */
export interface Training {
  readonly parameters: readonly Parameter[];
  /** The mask of the last epoch: folding uses it. */
  readonly mask: Mask;
  /** Mean loss of each epoch of the attempt that counted. */
  readonly losses: readonly number[];
  readonly margin: number | null;
  readonly skippedSteps: number;
  readonly fallback: BlockReport["fallback"];
}

/** Parameters of a block at their starting values. */
export function startParameters(problem: BlockProblem): Parameter[] {
  const { model, recipe, scheme, settings, weights, activationMax } = problem;
  const parameters: Parameter[] = [];
  if (recipe.sites) {
    const context = { shape: model.shape, weights, activationMax, alpha: settings.alpha };
    for (const [name, start] of startSites(model.sites, context)) {
      parameters.push(new Parameter(name, "transform", start));
    }
  }
  if (recipe.weightClip) {
    for (const { key, out, in: columns } of model.linears) {
      const start = { ...startClip(out, columns, scheme.groupSize), masked: false };
      parameters.push(new Parameter(weightClipName(key), "clip", start));
    }
  }
  if (recipe.tokenClip && quantizesTokens(scheme)) {
    for (const name of model.activations) {
      const start = { data: Float32Array.of(CLIP_START), shape: [1], masked: false };
      parameters.push(new Parameter(tokenClipName(name), "clip", start));
    }
  }
  return parameters;
}

/**
 * Trains a block; never stops a run. A step whose loss or gradient is not finite is skipped; after
 * three the block starts again at half the rates, at most twice; then it is left to round to nearest.
 *
 * Throws: AQ_STOPPED when the signal fires.
 */
export async function trainBlock(problem: BlockProblem, hooks: TrainHooks = {}): Promise<Training> {
  const { epochs, sf } = problem.settings;
  const untrained = { band: 0, sf };
  let skippedSteps = 0;
  if (!learns(problem.recipe) || epochs === 0) {
    return {
      parameters: [],
      mask: untrained,
      losses: [],
      margin: null,
      skippedSteps,
      fallback: null,
    };
  }
  for (const [attempt, fallback] of ATTEMPTS.entries()) {
    const parameters = startParameters(problem);
    try {
      const result = await runEpochs(problem, parameters, 0.5 ** attempt, hooks);
      skippedSteps += result.skipped;
      if (result.losses.length === epochs) {
        const mask = maskOfEpoch(epochs - 1, epochs, problem.model.shape.headDim, sf);
        return {
          parameters,
          mask,
          losses: result.losses,
          margin: result.margin,
          skippedSteps,
          fallback,
        };
      }
    } catch (error) {
      disposeParameters(parameters);
      throw error;
    }
    disposeParameters(parameters);
    const next = ATTEMPTS[attempt + 1];
    hooks.onNote?.(
      `block ${problem.index}: ${SKIPS_ALLOWED + 1} steps were not finite; ` +
        (next ? `starting again at ${next.replace("-", " the ")}` : "rounding it to nearest"),
    );
  }
  return {
    parameters: [],
    mask: untrained,
    losses: [],
    margin: null,
    skippedSteps,
    fallback: "rtn",
  };
}

export function disposeParameters(parameters: readonly Parameter[]): void {
  for (const parameter of parameters) parameter.dispose();
}

interface Attempt {
  readonly losses: number[];
  readonly margin: number | null;
  readonly skipped: number;
}

/** All epochs at `rate` times the rates; ends early, with fewer losses, after too many skips. */
async function runEpochs(
  problem: BlockProblem,
  parameters: readonly Parameter[],
  rate: number,
  hooks: TrainHooks,
): Promise<Attempt> {
  const { settings, inputs, model } = problem;
  const windows = inputs.shape[0] as number;
  const steps = settings.epochs * windows;
  const losses: number[] = [];
  let margin: number | null = null;
  let skipped = 0;
  for (let epoch = 0; epoch < settings.epochs; epoch++) {
    const mask = maskOfEpoch(epoch, settings.epochs, model.shape.headDim, settings.sf);
    let sum = 0;
    let applied = 0;
    for (let n = 0; n < windows; n++) {
      const t = epoch * windows + n;
      const fall = rate * cosine(t, steps);
      const result = trainStep(
        problem,
        parameters,
        n,
        mask,
        {
          step: t + 1,
          transformLr: settings.letLr * fall,
          clipLr: settings.lwcLr * fall,
          weightDecay: settings.weightDecay,
        },
        hooks.watch,
      );
      if (result.applied) {
        sum += result.loss;
        applied++;
        margin = result.margin ?? margin;
      } else {
        skipped++;
        hooks.onNote?.(
          `block ${problem.index}: step ${t + 1} of ${steps} was not finite and is skipped`,
        );
        if (skipped > SKIPS_ALLOWED) return { losses, margin, skipped };
      }
      hooks.onStep?.(epoch, t + 1, steps, result.loss);
      // Lets timers, signals and the caller's own work in between steps.
      await setImmediate();
      if (hooks.signal?.aborted)
        throw new AqError("AQ_STOPPED", `stopped in block ${problem.index}, epoch ${epoch + 1}`);
    }
    const loss = applied > 0 ? sum / applied : Number.NaN;
    losses.push(loss);
    hooks.onEpoch?.(epoch, loss, margin);
  }
  return { losses, margin, skipped };
}
