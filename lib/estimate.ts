/** Time, memory and disk of a run before it starts. */

import * as fs from "node:fs";
import * as path from "node:path";
import { keepNotes, keptByBlock } from "./calibration/keep.ts";
import { openSource } from "./calibration/open-source.ts";
import { checkPolish, memoryOf } from "./calibration/polish-memory.ts";
import { resolveSettings, settingsFor, windowLength } from "./calibration/settings.ts";
import { streamBudget } from "./calibration/streams.ts";
import { loadCalibration } from "./calibration/text.ts";
import { checkWriting } from "./calibration/writing-memory.ts";
import { loadTokenizer } from "./data/tokenizer.ts";
import { diskParts, memoryParts, total } from "./estimate/memory.ts";
import { measureUnits, phaseSeconds, stepsPerEpoch } from "./estimate/time.ts";
import type { UnitSeconds, Workload } from "./estimate/work.ts";
import { schemeName } from "./quant/scheme.ts";
import { countBits } from "./report/bits.ts";
import { formatsFor } from "./run-formats.ts";
import { type ComputeDevice, openDevice } from "./tensor/compute-device.ts";
import { setThreads, threads } from "./tensor/device.ts";
import type { QuantizeOptions } from "./types.ts";
import { byteSize } from "./util/format.ts";

/** The options of `quantize`; without `out` the free space of no disk is looked at. */
export type EstimateOptions = Omit<QuantizeOptions, "out"> & { readonly out?: string };

export interface EstimateResult {
  readonly model: string;
  readonly family: string;
  readonly blocks: number;
  readonly windows: number;
  readonly seqlen: number;
  /** "W4A16 g128", "NVFP4". */
  readonly scheme: string;
  /** Codes, scales and zeros of the linears, and those that are kept, by weight. */
  readonly bitsPerWeight: number;
  readonly threads: number;
  /** What was measured, and how it computes. */
  readonly device: string;
  /** Optimizer steps of the whole run. */
  readonly steps: number;
  readonly seconds: number;
  readonly phaseSeconds: Readonly<Record<string, number>>;
  /** What was measured here. */
  readonly measured: UnitSeconds;
  /** At the peak. */
  readonly memoryBytes: number;
  readonly memoryParts: Readonly<Record<string, number>>;
  readonly availableMemoryBytes: number;
  readonly diskBytes: number;
  readonly diskParts: Readonly<Record<string, number>>;
  /** Null when it is not known where the output goes. */
  readonly freeDiskBytes: number | null;
  /** Sentences a person should read, what will not fit among them. */
  readonly notes: readonly string[];
}

/**
 * Estimates a run from its counts and from about a second of measuring on this machine. Reads the
 * text and the headers of the checkpoint, and no weights; writes nothing.
 *
 * Throws: AqError for the options and inputs that quantize refuses before it starts.
 */
export function estimate(options: EstimateOptions): EstimateResult {
  const asked = resolveSettings({ ...options, out: options.out ?? "" });
  streamBudget(options.streamMemory);
  formatsFor(options);
  if (options.threads !== undefined) setThreads(options.threads);
  const { checkpoint, model } = openSource(options.model);
  let device: ComputeDevice | undefined;
  try {
    device = openDevice(options);
    const settings = settingsFor(model, asked, options);
    const seqlen = windowLength(settings.seqlen, model);
    const started = performance.now();
    const text = loadCalibration(options.calib, loadTokenizer(options.model), seqlen, settings);
    const streamMemory = streamBudget(options.streamMemory, device.name);
    if (text.isWritten) checkWriting(model, seqlen, device.name, text.calibration.length);
    checkPolish(model, settings, text.calibration.length, seqlen, memoryOf(device.name));
    const textSeconds = (performance.now() - started) / 1000;
    const work: Workload = {
      device: device.name,
      model,
      settings,
      windows: text.calibration.length,
      evaluationWindows: text.evaluation.length,
      tokens: seqlen,
      textSeconds,
      bytes: [...checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0),
    };
    const measured = measureUnits(work);
    const kept = keptByBlock(model, settings);
    const { bitsPerWeight } = countBits(checkpoint, model, settings.scheme, { kept });
    const phases = phaseSeconds(work, measured);
    const memory = memoryParts(work, checkpoint, streamMemory);
    const disk = diskParts(work, streamMemory);
    const sizes = {
      memoryBytes: total(memory),
      availableMemoryBytes: device.kind === "cpu" ? availableMemory() : memoryOf(device.name),
      diskBytes: total(disk),
      freeDiskBytes: options.out === undefined ? null : freeDisk(options.out),
    };
    const { affineEpochs, roundEpochs } = settings.train;
    const epochs = settings.recipe.name === "rtn" ? 0 : affineEpochs + roundEpochs;
    return {
      model: options.model,
      family: model.family,
      blocks: model.shape.blocks,
      windows: work.windows,
      seqlen,
      scheme: schemeName(settings.scheme),
      bitsPerWeight,
      threads: threads(),
      device: device.description,
      steps: model.shape.blocks * stepsPerEpoch(work) * epochs,
      seconds: total(phases),
      phaseSeconds: phases,
      measured,
      memoryParts: memory,
      diskParts: disk,
      ...sizes,
      notes: [
        ...text.notes,
        ...keepNotes(model, settings),
        ...warnings(sizes, options.streamMemory),
      ],
    };
  } finally {
    device?.release();
    checkpoint.close();
  }
}

function warnings(
  sizes: Pick<
    EstimateResult,
    "memoryBytes" | "availableMemoryBytes" | "diskBytes" | "freeDiskBytes"
  >,
  streamMemory: number | undefined,
): string[] {
  const { memoryBytes, availableMemoryBytes, diskBytes, freeDiskBytes } = sizes;
  const notes: string[] = [];
  if (memoryBytes > availableMemoryBytes) {
    const way =
      streamMemory === undefined
        ? "set --stream-memory, or take fewer --nsamples"
        : "take a shorter --seqlen";
    notes.push(
      `the run needs about ${byteSize(memoryBytes)} of memory and ${byteSize(availableMemoryBytes)} are available: ${way}`,
    );
  }
  if (freeDiskBytes !== null && diskBytes > freeDiskBytes) {
    notes.push(
      `the run needs about ${byteSize(diskBytes)} of disk and ${byteSize(freeDiskBytes)} are free: choose another --out`,
    );
  }
  return notes;
}

function availableMemory(): number {
  const limit = process.constrainedMemory() ?? 0;
  const free = process.availableMemory();
  return limit > 0 ? Math.min(free, limit) : free;
}

/** Free bytes where the folder lies or will lie; null when the system does not tell. */
function freeDisk(out: string): number | null {
  let dir = path.resolve(out);
  while (!fs.existsSync(dir) && path.dirname(dir) !== dir) dir = path.dirname(dir);
  try {
    const { bavail, bsize } = fs.statfsSync(dir);
    return bavail * bsize;
  } catch {
    return null;
  }
}
