/**
 * Phase polish: all blocks at once against the full-precision logits. Gains, biases, clipping logits
 * and rounding offsets learn. Windows held back decide which epoch's state is kept, the start included,
 * so that on them the model never ends further from full precision than it was.
 */

import type { JobPolish } from "../../export/job.ts";
import { readLearnedBlock } from "../../export/learned-block.ts";
import { disposeAll, type LoadedWeights, weightDType } from "../../models/load.ts";
import type { WeightSource } from "../../models/source.ts";
import { scope } from "../../tensor/scope.ts";
import { significant } from "../../util/format.ts";
import { givenGlobals, type RunParts } from "../calibrate-all.ts";
import { type Comparison, divergence, type WrittenBlock } from "../divergence.ts";
import { disposeFinished, throughStored } from "../finish-block.ts";
import { heldBackWindows } from "../polish-memory.ts";
import { PolishModel } from "../polish-model.ts";
import { PolishTraining, tellPolish } from "../polish-training.ts";
import { Teacher } from "../teacher.ts";

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
    tellPolish(parts, {
      epoch: -1,
      step: 0,
      steps: 0,
      loss: null,
      divergence: start,
      secondsLeft: null,
    });
    const { blocks, ...trained } = await train(parts, compared, start);
    return {
      report: {
        windows: windows.length - heldBack,
        heldBack,
        ...trained,
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

type Trained = Pick<JobPolish, "blocks"> &
  Omit<JobPolish["report"], "windows" | "heldBack" | "seconds">;

/** Trains from what calibration left, whose divergence is `start`, and keeps the best epoch's blocks. */
async function train(parts: RunParts, compared: Comparison, start: number): Promise<Trained> {
  const { settings, run, record } = parts;
  const { model, device } = parts.source;
  const student = new PolishModel(model, compared.context, settings);
  try {
    for (let i = 0; i < model.shape.blocks; i++) {
      const { inputGlobals = {} } = record.job.finished[i] ?? {};
      student.add(readLearnedBlock(run.learnedFile(i), device), inputGlobals);
    }
    const training = new PolishTraining(parts, student, compared);
    const values = [start];
    const losses: number[] = [];
    let kept = 0;
    let blocks: JobPolish["blocks"] = [];
    while (losses.length < settings.polish && !training.isOver) {
      losses.push(await training.epoch());
      const value = await divergence(compared, (i) => student.finish(i), disposeFinished);
      if (value < Math.min(...values)) {
        kept = losses.length;
        blocks = storeBlocks(parts, student);
      }
      values.push(value);
      training.tell(losses.at(-1) as number, value);
    }
    return { divergence: values, kept, losses, skippedSteps: training.skipped, blocks };
  } finally {
    student.dispose();
  }
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
