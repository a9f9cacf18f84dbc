/** Epochs over windows, and what to do when training fails: one loop for every phase. */

import { setImmediate } from "node:timers/promises";
import { AqError } from "../errors.ts";
import type { BlockReport } from "../types.ts";
import type { GradientWatcher, StepResult } from "./train-step.ts";

/** Steps with a non-finite loss or gradient that an attempt may skip before it is given up. */
const SKIPS_ALLOWED = 2;
/** Attempts by their rates: full, half, a quarter. */
const ATTEMPTS = [null, "half-rate", "quarter-rate"] as const;

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
  readonly epochs: number;
  start(): State;
  step(state: State, window: number, position: StepPosition): Promise<StepResult>;
  /** Smallest dominance margin after the last applied step; null without matrices. Absent: none. */
  margin?(state: State): Promise<number | null>;
  dispose(state: State): void;
}

/** How a phase ended; without a state it failed at every rate. The caller owns the state. */
export interface PhaseResult<State> {
  readonly state: State | undefined;
  /** Mean loss of each epoch of the attempt that counted. */
  readonly losses: readonly number[];
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
    const state = phase.start();
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
  const steps = epochs * windows;
  const losses: number[] = [];
  let margin: number | null = null;
  let skipped = 0;
  for (let epoch = 0; epoch < epochs; epoch++) {
    let sum = 0;
    let applied = 0;
    for (let n = 0; n < windows; n++) {
      const t = epoch * windows + n;
      const result = await phase.step(state, n, { epoch, t, steps, rate });
      if (result.applied) {
        sum += result.loss;
        applied++;
      } else {
        skipped++;
        hooks.onNote?.(
          `block ${block}, ${phase.name}: step ${t + 1} of ${steps} was not finite and is skipped`,
        );
        if (skipped > SKIPS_ALLOWED) return { losses, margin, skipped };
      }
      hooks.onStep?.(epoch, t + 1, steps, result.loss);
      // Lets timers, signals and the caller's own work in between steps.
      await setImmediate();
      if (hooks.signal?.aborted) {
        throw new AqError("AQ_STOPPED", `stopped in block ${block}, epoch ${epoch + 1}`);
      }
    }
    const loss = applied > 0 ? sum / applied : Number.NaN;
    losses.push(loss);
    if (applied > 0 && phase.margin) margin = await phase.margin(state);
    hooks.onEpoch?.(epoch, loss, margin);
  }
  return { losses, margin, skipped };
}
