/** All blocks, front to back: those of earlier sessions passed, the others calibrated and stored. */

import { setImmediate } from "node:timers/promises";
import { AqError } from "../errors.ts";
import type { RunState } from "../export/run-state.ts";
import type { TokenNumbers } from "../export/weights.ts";
import type { BlockContext, Model } from "../models/family.ts";
import type { WeightSource } from "../models/source.ts";
import type { QuantizeEvent, RunHooks } from "../types.ts";

import { type BlockHooks, calibrateBlock } from "./calibrate-block.ts";
import { disposeFinished } from "./finish-block.ts";
import { replayBlock } from "./replay.ts";
import type { RunRecord } from "./run-record.ts";
import type { RunSettings } from "./settings.ts";
import { Streams } from "./streams.ts";
import { TimeLeft } from "./time-left.ts";
import type { GradientWatcher } from "./train-step.ts";

/** How to follow and stop a run, and see its gradients. */
export type QuantizeHooks = RunHooks<QuantizeEvent> & { readonly watch?: GradientWatcher };

/** What a run works on. */
export interface RunParts {
  readonly source: WeightSource;
  /** The model with all tensors that the run makes. */
  readonly written: Model;
  readonly settings: RunSettings;
  readonly windows: readonly Int32Array[];
  /** Bytes for the streams in memory; undefined: no limit. */
  readonly streamMemory: number | undefined;
  readonly run: RunState;
  readonly record: RunRecord;
  readonly hooks: QuantizeHooks;
}

/**
 * Afterwards the record lists every block.
 *
 * Throws: AQ_STOPPED when the signal fires; what was finished before stays stored.
 */
export async function calibrateAll(parts: RunParts): Promise<void> {
  const { source, settings, windows, record, hooks } = parts;
  const { blocks } = source.model.shape;
  const done = record.job.finished.length;
  if (done === blocks) return;
  const context = source.model.context(windows[0]?.length ?? 0, "f32", source.device);
  let streams: Streams | undefined;
  try {
    const withAug = settings.train.augLoss && settings.recipe.name !== "rtn";
    streams = new Streams(source, windows, withAug, {
      memory: parts.streamMemory,
      dir: parts.run.dir,
    });
    for (let block = 0; block < done; block++) {
      await pauseForSignals(hooks.signal, block);
      await replay(parts, context, streams, block);
    }
    const left = new TimeLeft(blocks - done);
    for (let block = done; block < blocks; block++) {
      await pauseForSignals(hooks.signal, block);
      const { tokenClips, inputGlobals, ...report } = await calibrateBlock(
        source,
        context,
        streams,
        settings,
        block,
        blockHooks(parts, block, (share) => left.estimate(block - done, share)),
      );
      record.addBlock({ report, tokenClips, ...givenGlobals(inputGlobals) });
      hooks.onEvent?.({ event: "block", blocks, ...report });
    }
  } finally {
    await source.stopReading();
    context.dispose();
    streams?.dispose();
  }
}

/** Passes a stored block, and says so if the streams do not come out as they were. */
async function replay(
  { source, written, settings, run, record, hooks }: RunParts,
  context: BlockContext,
  streams: Streams,
  block: number,
): Promise<void> {
  const stored = record.job.finished[block];
  if (!stored) throw new TypeError(`block ${block} is not recorded`);
  hooks.onEvent?.({ event: "phase", block, phase: "replay" });
  const file = run.openBlock(block, "blocks", source.device);
  try {
    const finished = file.load(block, written, settings.scheme.groupSize);
    const { tokenClips, inputGlobals = {}, report } = stored;
    const numbers = { tokenClips, inputGlobals };
    let error: number;
    try {
      const { signal } = hooks;
      error = await replayBlock(
        source,
        context,
        streams,
        settings,
        block,
        finished,
        numbers,
        signal,
      );
    } finally {
      disposeFinished({ ...finished, ...numbers });
    }
    if (error !== report.streamError) {
      const text = `block ${block + 1} of the earlier session gives a stream error of ${error} on this machine, ${report.streamError} when it was made: the result will be as good, but not the same to the last bit`;
      record.note(text);
      hooks.onEvent?.({ event: "note", text });
    }
  } finally {
    file.close();
  }
}

function blockHooks(
  { source, written, settings, run, hooks }: RunParts,
  block: number,
  estimate: (share: number) => number | null,
): BlockHooks {
  const emit = (event: QuantizeEvent): void => hooks.onEvent?.(event);
  const { blocks } = source.model.shape;
  const epochs = settings.train.affineEpochs + settings.train.roundEpochs;
  return {
    onPhase: (phase) => emit({ event: "phase", block, phase }),
    onStep: (epoch, step, steps, loss) => {
      const secondsLeft = estimate(step / steps);
      emit({ event: "step", block, blocks, epoch, epochs, step, steps, loss, secondsLeft });
    },
    onEpoch: (epoch, loss, dominanceMargin) => {
      const secondsLeft = estimate((epoch + 1) / epochs);
      emit({ event: "epoch", block, blocks, epoch, epochs, loss, dominanceMargin, secondsLeft });
    },
    onNote: (text) => emit({ event: "note", text }),
    onFinished: (finished, learned) => {
      const clips = JSON.stringify(finished.tokenClips);
      if (settings.polish > 0) run.writeLearned(block, learned);
      run.writeBlock(block, written, finished, { block: String(block), token_clips: clips });
    },
    watch: hooks.watch,
    signal: hooks.signal,
  };
}

/** The field of a record, where there is something in it. */
export function givenGlobals(inputGlobals: TokenNumbers["inputGlobals"]): Partial<TokenNumbers> {
  return Object.keys(inputGlobals).length > 0 ? { inputGlobals } : {};
}

/** Lets a signal arrive between two blocks. Throws: AQ_STOPPED. */
async function pauseForSignals(signal: AbortSignal | undefined, block: number): Promise<void> {
  await setImmediate();
  if (signal?.aborted) throw new AqError("AQ_STOPPED", `stopped before block ${block + 1}`);
}
