/** Epochs over windows, and what to do when training fails: one loop for every phase. */

import { setImmediate } from "node:timers/promises";
import { AqError } from "../errors.ts";
import type { BlockReport } from "../types.ts";
import { StepRecorder } from "./step-recorder.ts";
import type { WindowRange } from "./stream.ts";
import type { GradientWatcher, StepParts } from "./train-step.ts";
import { trainSteps } from "./train-steps.ts";

/** Steps with a non-finite loss or gradient that an attempt may skip before it is given up. */
const SKIPS_ALLOWED = 2;
/** Attempts by their rates: full, half, a quarter. */
const ATTEMPTS = [null, "half-rate", "quarter-rate"] as const;

/** Steps that must be alike for recording one to pay. */
const FEWEST_RECORDED = 4;

export interface TrainHooks {
  onStep?(epoch: number, step: number, steps: number, loss: number): void;
  onEpoch?(epoch: number, loss: number, margin: number | null): void;
  /** A sentence for the log. */
  onNote?(text: string): void;
  readonly watch?: GradientWatcher | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Where a step stands: step `t` of `steps` from 0, skipped ones counted, at `rate` times the rates. */
export interface StepPosition {
  readonly epoch: number;
  readonly t: number;
  readonly steps: number;
  readonly rate: number;
}

/** A phase that trains. `start` makes its state anew for each attempt. */
export interface Phase<State> {
  readonly name: string;
  readonly block: number;
  readonly windows: number;
  /** Windows of a step; the last step of an epoch may have fewer. */
  readonly batch: number;
  readonly epochs: number;
  readonly device: string;
  /** Between which steps of whole batches nothing changes but inputs, rate and step. */
  readonly repeats: "never" | "within an epoch" | "always";
  start(): Promise<State>;
  step(state: State, windows: WindowRange, position: StepPosition): StepParts;
  dispose(state: State): void;
}

/** How a phase ended; without a state it failed at every rate. The caller owns the state. */
export interface PhaseResult<State> {
  readonly state: State | undefined;
  /** Mean loss of each epoch of the attempt that counted. */
  readonly losses: readonly number[];
  /** Smallest dominance margin after the last applied step; null without matrices. */
  readonly margin: number | null;
  readonly skippedSteps: number;
  /** null, or the rate that it took. */
  readonly fallback: Extract<BlockReport["fallback"], null | "half-rate" | "quarter-rate">;
}

/**
 * Trains a phase; never stops a run. A step whose loss or gradient is not finite is skipped; after
 * three the phase starts again at half the rates, at most twice.
 *
 * Throws: AQ_STOPPED when the signal fires.
 */
export async function trainPhase<State>(
  phase: Phase<State>,
  hooks: TrainHooks,
): Promise<PhaseResult<State>> {
  let skippedSteps = 0;
  for (const [attempt, fallback] of ATTEMPTS.entries()) {
    const state = await phase.start();
    try {
      const result = await runEpochs(phase, state, 0.5 ** attempt, hooks);
      skippedSteps += result.skipped;
      if (result.losses.length === phase.epochs) {
        return { state, losses: result.losses, margin: result.margin, skippedSteps, fallback };
      }
    } catch (error) {
      phase.dispose(state);
      throw error;
    }
    phase.dispose(state);
    const next = ATTEMPTS[attempt + 1];
    const then = next
      ? `starting again at ${next === "half-rate" ? "half" : "a quarter of"} the rate`
      : "rounding it to nearest";
    hooks.onNote?.(
      `block ${phase.block}, ${phase.name}: ${SKIPS_ALLOWED + 1} steps were not finite; ${then}`,
    );
  }
  return { state: undefined, losses: [], margin: null, skippedSteps, fallback: null };
}

interface Attempt {
  readonly losses: number[];
  readonly margin: number | null;
  readonly skipped: number;
}

/** All epochs at `rate` times the rates; ends early, with fewer losses, after too many skips. */
async function runEpochs<State>(
  phase: Phase<State>,
  state: State,
  rate: number,
  hooks: TrainHooks,
): Promise<Attempt> {
  const { windows, epochs, block } = phase;
  const batch = Math.min(phase.batch, windows);
  const perEpoch = Math.ceil(windows / batch);
  const steps = epochs * perEpoch;
  const losses: number[] = [];
  let margin: number | null = null;
  let skipped = 0;
  const recorder = new StepRecorder(phase.device);
  try {
    for (let epoch = 0; epoch < epochs; epoch++) {
      let sum = 0;
      let applied = 0;
      await trainSteps(
        cut(windows, batch, epoch * perEpoch),
        ({ range, t }) => ({
          ...phase.step(state, range, { epoch, t, steps, rate }),
          repeats: range.count === batch ? likeness(phase, epoch) : undefined,
        }),
        async ({ range, t }, result) => {
          if (result.applied) {
            sum += result.loss * range.count;
            applied += range.count;
            margin = result.margin;
          } else {
            skipped++;
            hooks.onNote?.(
              `block ${block}, ${phase.name}: step ${t + 1} of ${steps} was not finite and is skipped`,
            );
            if (skipped > SKIPS_ALLOWED) return false;
          }
          hooks.onStep?.(epoch, t + 1, steps, result.loss);
          // Lets timers, signals and the caller's own work in between steps.
          await setImmediate();
          if (hooks.signal?.aborted) {
            throw new AqError("AQ_STOPPED", `stopped in block ${block}, epoch ${epoch + 1}`);
          }
          return true;
        },
        recorder,
      );
      if (skipped > SKIPS_ALLOWED) break;
      const loss = applied > 0 ? sum / applied : Number.NaN;
      losses.push(loss);
      hooks.onEpoch?.(epoch, loss, margin);
    }
  } finally {
    recorder.dispose();
  }
  return { losses, margin, skipped };
}

/** Name of the steps of whole batches that are alike; undefined where there are too few to record one. */
function likeness<State>(
  { windows, batch, epochs, repeats }: Phase<State>,
  epoch: number,
): string | undefined {
  const inEpoch = Math.floor(windows / Math.min(batch, windows));
  // A smaller batch at the end of an epoch comes between.
  const isWhole = windows % batch === 0;
  const alike = repeats === "always" && isWhole ? epochs * inEpoch : inEpoch;
  if (repeats === "never" || alike < FEWEST_RECORDED) return undefined;
  return repeats === "always" ? "all" : `epoch ${epoch}`;
}

/** The windows of each step of an epoch, and its number `t` over all epochs. */
function* cut(
  windows: number,
  batch: number,
  start: number,
): Generator<{ readonly range: WindowRange; readonly t: number }> {
  for (let first = 0, t = start; first < windows; first += batch, t++) {
    yield { range: { first, count: Math.min(batch, windows - first) }, t };
  }
}
