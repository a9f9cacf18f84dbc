/** The training of phase polish: epochs over the windows that are not held back, at rates that the steps allow. */

import { setImmediate } from "node:timers/promises";
import { klDiv } from "../autograd/ops/kl-div.ts";
import { AqError } from "../errors.ts";
import { clipsTokens } from "../quant/scheme.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { createRandom, type Random } from "../util/random.ts";
import type { RunParts } from "./calibrate-all.ts";
import type { Comparison } from "./divergence.ts";
import { cosine } from "./parameters.ts";
import type { PolishModel, PolishRates } from "./polish-model.ts";
import type { RunSettings } from "./settings.ts";
import type { StepParts } from "./train-step.ts";
import { trainSteps } from "./train-steps.ts";

/** Rate of gains and biases, where there are steps enough. */
const GAIN_RATE = 1e-3;
/** Rate of the clipping logits, as a share of the affine phase's. */
const CLIP_SHARE = 0.3;
/**
 * With fewer steps than this both are lower in proportion, down to a tenth: little text is soon learned by
 * heart, and then no epoch is kept (docs/method.md).
 */
const STEPS_ENOUGH = 1000;
const LEAST_PACE = 0.1;
/**
 * How far an offset goes in a step; the second where activations are whole numbers and no Hadamard transform
 * helps them, so that there is more to win (docs/method.md).
 */
const OFFSET_RATE = 0.0015;
const FAR_OFFSET_RATE = 0.003;
/** Steps with a non-finite loss or gradient that may be skipped before training ends. */
const SKIPS_ALLOWED = 2;
/** Keeps the order of the windows apart from what else is drawn from the run's seed. */
const SEED_OFFSET = 2 ** 52;

/** The rates of a training of so many steps, before they fall. */
export function polishRates(
  { scheme, train, hadamardDown }: Pick<RunSettings, "scheme" | "train" | "hadamardDown">,
  steps: number,
): PolishRates {
  const pace = Math.min(1, Math.max(LEAST_PACE, steps / STEPS_ENOUGH));
  return {
    gain: pace * GAIN_RATE,
    clip: pace * train.lwcLr * CLIP_SHARE,
    offset: clipsTokens(scheme) && !hadamardDown ? FAR_OFFSET_RATE : OFFSET_RATE,
  };
}

/** The optimizer's way through the windows that are not held back. */
export class PolishTraining {
  /** Steps that were not finite. */
  skipped = 0;
  readonly #parts: RunParts;
  readonly #student: PolishModel;
  readonly #compared: Comparison;
  readonly #random: Random;
  readonly #windows: number;
  readonly #steps: number;
  readonly #rates: PolishRates;
  readonly #began = performance.now();
  #done = 0;

  constructor(parts: RunParts, student: PolishModel, compared: Comparison) {
    const { windows, settings } = parts;
    this.#parts = parts;
    this.#student = student;
    this.#compared = compared;
    this.#random = createRandom(settings.seed + SEED_OFFSET);
    this.#windows = windows.length - compared.on.length;
    this.#steps = settings.polish * this.#windows;
    this.#rates = polishRates(settings, this.#steps);
  }

  /** Too many steps were not finite. */
  get isOver(): boolean {
    return this.skipped > SKIPS_ALLOWED;
  }

  /** Mean loss of one epoch, in a new order; ends early after too many skips. Throws: AQ_STOPPED. */
  async epoch(): Promise<number> {
    const { hooks } = this.#parts;
    const order = shuffled(this.#windows, this.#random).map((n, i) => ({ n, t: this.#done + i }));
    let sum = 0;
    let applied = 0;
    await trainSteps(
      order,
      (item) => this.#step(item),
      async (_, { loss, applied: isApplied }) => {
        this.#done++;
        if (isApplied) {
          sum += loss;
          applied++;
        } else {
          this.skipped++;
          const text = `polish: step ${this.#done} of ${this.#steps} was not finite and is skipped`;
          const last = this.isOver ? "; too many were, training ends" : "";
          hooks.onEvent?.({ event: "note", text: text + last });
          if (last) return false;
        }
        this.tell(loss, null);
        await setImmediate();
        if (hooks.signal?.aborted) throw new AqError("AQ_STOPPED", "stopped while polishing");
        return true;
      },
    );
    return applied > 0 ? sum / applied : Number.NaN;
  }

  /** Step `t` from 0, on window n. */
  #step({ n, t }: { readonly n: number; readonly t: number }): StepParts {
    const { windows, hooks } = this.#parts;
    const { outer, teacher } = this.#compared;
    return {
      parameters: this.#student.tensors(),
      inputs: () => [teacher.logits(n)],
      record: (tape, vars, [goal]) => {
        const logits = this.#student.logits(tape, outer, vars, windows[n] as Int32Array);
        return klDiv(tape, logits, tape.constant(goal as Tensor));
      },
      apply: (gradients, control) => {
        this.#student.update(gradients, control, this.#rates);
        return undefined;
      },
      rate: cosine(t, this.#steps),
      step: t + 1,
      watch: hooks.watch,
    };
  }

  /** Says where the training stands; with a divergence, that an epoch has ended. */
  tell(loss: number, value: number | null): void {
    const seconds = (performance.now() - this.#began) / 1000;
    const left = (seconds * (this.#steps - this.#done)) / Math.max(1, this.#done);
    tellPolish(this.#parts, {
      epoch: Math.floor((this.#done - 1) / this.#windows),
      step: this.#done,
      steps: this.#steps,
      loss,
      divergence: value,
      secondsLeft: seconds < 1 ? null : left,
    });
  }
}

type Position = Omit<
  Extract<Parameters<NonNullable<RunParts["hooks"]["onEvent"]>>[0], { event: "polish" }>,
  "event" | "epochs"
>;

/** Says where polish stands. */
export function tellPolish({ settings, hooks }: RunParts, position: Position): void {
  hooks.onEvent?.({ event: "polish", epochs: settings.polish, ...position });
}

/** 0 .. n - 1 in random order (Fisher and Yates). */
function shuffled(n: number, random: Random): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}
