/**
 * Phase polish: all blocks at once against the full-precision logits. Gains, biases, clipping logits
 * and rounding offsets learn. Windows held back decide which epoch's state is kept, the start included,
 * so that on them the model never ends further from full precision than it was.
 */

import { setImmediate } from "node:timers/promises";
import { klDiv } from "../../autograd/ops/kl-div.ts";
import { AqError } from "../../errors.ts";
import type { JobPolish } from "../../export/job.ts";
import { readLearnedBlock } from "../../export/learned-block.ts";
import { disposeAll, type LoadedWeights, weightDType } from "../../models/load.ts";
import type { WeightSource } from "../../models/source.ts";
import { scope } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { significant } from "../../util/format.ts";
import { createRandom, type Random } from "../../util/random.ts";
import { givenGlobals, type RunParts } from "../calibrate-all.ts";
import { type Comparison, divergence, type WrittenBlock } from "../divergence.ts";
import { disposeFinished, throughStored } from "../finish-block.ts";
import { cosine } from "../parameters.ts";
import { heldBackWindows } from "../polish-memory.ts";
import { PolishModel } from "../polish-model.ts";
import { Teacher } from "../teacher.ts";
import type { StepParts } from "../train-step.ts";
import { trainSteps } from "../train-steps.ts";

/** Rate of gains and biases, where there are steps enough. */
const GAIN_RATE = 3e-4;
/** Rate of the clipping logits, as a share of the affine phase's. */
const CLIP_SHARE = 0.3;
/**
 * With fewer steps than this both are lower in proportion, down to a third: little text is soon learned by
 * heart, and then no epoch is kept (docs/method.md).
 */
const STEPS_ENOUGH = 1000;
const LEAST_PACE = 1 / 3;
/** Furthest that an offset goes in a step. With more of them it can go all of its way, if they agree. */
const MAX_OFFSET_RATE = 0.0015;
/** Steps with a non-finite loss or gradient that may be skipped before training ends. */
const SKIPS_ALLOWED = 2;
/** Keeps the order of the windows apart from what else is drawn from the run's seed. */
const SEED_OFFSET = 2 ** 52;

/**
 * Polishes the stored blocks if the settings want it and it is not done yet; the record then says what
 * came of it. It starts from what is on disk, and so comes out the same in a later session.
 *
 * Throws: AQ_STOPPED.
 */
export async function polishAll(parts: RunParts): Promise<void> {
  const { settings, run, record, hooks } = parts;
  if (settings.polish === 0) return;
  if (!record.job.polish) {
    hooks.onEvent?.({ event: "stage", stage: "polish" });
    const polish = await polishStored(parts);
    hooks.onEvent?.({ event: "note", text: summary(polish) });
    record.update({ polish });
  }
  run.dropLearned();
}

async function polishStored(parts: RunParts): Promise<JobPolish> {
  const { source, settings, windows, run, record, hooks } = parts;
  const { model } = source;
  const began = performance.now();
  const heldBack = heldBackWindows(windows.length);
  const on = windows.map((_, n) => n).slice(windows.length - heldBack);
  const owned: (() => void)[] = [];
  const own = <T>(item: T, dispose: (item: T) => void): T => {
    owned.push(() => dispose(item));
    return item;
  };
  try {
    const { device } = source;
    const tokens = windows[0]?.length ?? 0;
    const context = own(model.context(tokens, "f32", device), (c) => c.dispose());
    const outer = own(writtenOuter(source), disposeAll);
    const { streamMemory: memory } = parts;
    const taught = Teacher.run(source, context, windows, { memory, dir: run.dir }, hooks.signal);
    const teacher = own(await taught, (t) => t.dispose());
    const { signal } = hooks;
    const compared = { source, context, outer, teacher, windows, on, settings, signal };

    run.dropPolished();
    const start = await divergence(compared, (i) => storedBlock(parts, i), disposeFinished);
    tell(parts, { epoch: -1, step: 0, steps: 0, loss: null, divergence: start, secondsLeft: null });
    const student = own(new PolishModel(model, context, settings), (s) => s.dispose());
    for (let i = 0; i < model.shape.blocks; i++) {
      const { inputGlobals = {} } = record.job.finished[i] ?? {};
      student.add(readLearnedBlock(run.learnedFile(i), device), inputGlobals);
    }

    const training = new Training(parts, student, compared);
    const values = [start];
    const losses: number[] = [];
    let kept = 0;
    let blocks: JobPolish["blocks"] = [];
    while (losses.length < settings.polish && training.skipped <= SKIPS_ALLOWED) {
      losses.push(await training.epoch());
      const value = await divergence(compared, (i) => student.finish(i), disposeFinished);
      if (value < Math.min(...values)) {
        kept = losses.length;
        blocks = storeBlocks(parts, student);
      }
      values.push(value);
      training.tell(losses.at(-1) as number, value);
    }
    return {
      report: {
        windows: windows.length - heldBack,
        heldBack,
        divergence: values,
        kept,
        losses,
        skippedSteps: training.skipped,
        seconds: (performance.now() - began) / 1000,
      },
      blocks,
    };
  } finally {
    for (const dispose of owned.reverse()) dispose();
    // Nothing counts before the record says so; what is left of a stop would only take space.
    if (!record.job.polish && hooks.signal?.aborted) run.dropPolished();
  }
}

/** The optimizer's way through the windows that are not held back. */
class Training {
  /** Steps that were not finite. */
  skipped = 0;
  readonly #parts: RunParts;
  readonly #student: PolishModel;
  readonly #compared: Comparison;
  readonly #random: Random;
  readonly #windows: number;
  readonly #steps: number;
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
          const last = this.skipped > SKIPS_ALLOWED ? "; too many were, training ends" : "";
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
    const { windows, settings, hooks } = this.#parts;
    const { outer, teacher } = this.#compared;
    const pace = Math.min(1, Math.max(LEAST_PACE, this.#steps / STEPS_ENOUGH));
    const rates = {
      gain: pace * GAIN_RATE,
      clip: pace * settings.train.lwcLr * CLIP_SHARE,
      offset: Math.min(1 / this.#steps, MAX_OFFSET_RATE),
    };
    return {
      parameters: this.#student.tensors(),
      inputs: () => [teacher.logits(n)],
      record: (tape, vars, [goal]) => {
        const logits = this.#student.logits(tape, outer, vars, windows[n] as Int32Array);
        return klDiv(tape, logits, tape.constant(goal as Tensor));
      },
      apply: (gradients, control) => {
        this.#student.update(gradients, control, rates);
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
    tell(this.#parts, {
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

function tell({ settings, hooks }: RunParts, position: Position): void {
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

/** Embeddings, last norm and head as a reader of the written checkpoint sees them. */
function writtenOuter(source: WeightSource): LoadedWeights {
  const { checkpoint, model, rotation } = source;
  const outer = source.loadOuter();
  if (!rotation) return outer;
  const names = new Map(model.outerTensors().map(({ key, name }) => [key, name]));
  const cast = Object.entries(outer).map(([key, tensor]) => {
    // A head that was tied is stored as its embedding was.
    const name = names.get(key) ?? (names.get("embedding") as string);
    const stored = scope(() => throughStored(tensor, weightDType(checkpoint, name)));
    if (stored !== tensor) tensor.dispose();
    return [key, stored];
  });
  return Object.fromEntries(cast) as LoadedWeights;
}

/** A block as calibration left it. */
function storedBlock(
  { source, written, settings, run, record }: RunParts,
  i: number,
): WrittenBlock {
  const file = run.openBlock(i, "blocks", source.device);
  try {
    const finished = file.load(i, written, settings.scheme.groupSize);
    const { tokenClips = {}, inputGlobals = {} } = record.job.finished[i] ?? {};
    return { ...finished, tokenClips, inputGlobals };
  } finally {
    file.close();
  }
}

/** Writes all blocks as they are now, over those of an earlier epoch. */
function storeBlocks({ written, run }: RunParts, student: PolishModel): JobPolish["blocks"] {
  return Array.from({ length: written.shape.blocks }, (_, i) => {
    const finished = student.finish(i);
    const { tokenClips, inputGlobals } = finished;
    try {
      const metadata = { block: String(i), token_clips: JSON.stringify(tokenClips) };
      run.writeBlock(i, written, finished, metadata, "polished");
    } finally {
      disposeFinished(finished);
    }
    const sha256 = run.blockHash(i, "polished") as string;
    return { sha256, tokenClips, ...givenGlobals(inputGlobals) };
  });
}

function summary({ report: { divergence: values, heldBack, kept, losses } }: JobPolish): string {
  const [start, best] = [values[0] as number, values[kept] as number].map((x) => significant(x));
  const on = `the divergence from full precision on ${heldBack} windows held back`;
  return kept === 0
    ? `polish: no epoch lowered ${on} from ${start}; the blocks stay as they were`
    : `polish: ${on} went from ${start} to ${best}, the state after epoch ${kept} of ${losses.length} is kept`;
}
