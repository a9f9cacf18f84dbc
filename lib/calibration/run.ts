/** A whole quantization: from a checkpoint folder to a quantized one, in one session or in several. */

import * as path from "node:path";
import { Rotation } from "../affine/rotation.ts";
import { siteName } from "../affine/sites.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { OutputFolder } from "../checkpoint/output-folder.ts";
import { AqError } from "../errors.ts";
import { describedActivations, type EvalModel } from "../eval/eval-model.ts";
import { perplexity } from "../eval/perplexity.ts";
import { type AqConfig, extrasOf } from "../export/aq-config.ts";
import { writeHuggingFace } from "../export/hf.ts";
import { type Job, liveBlocks } from "../export/job.ts";
import { RunLock } from "../export/run-lock.ts";
import { RunState } from "../export/run-state.ts";
import type { StoredBlock } from "../export/stored-block.ts";
import type { Model } from "../models/family.ts";
import { openModel } from "../models/registry.ts";
import { weightSource } from "../models/source.ts";
import { schemeName } from "../quant/scheme.ts";
import { addedBits } from "../report/added.ts";
import { buildReport } from "../report/build.ts";
import { polishCurve } from "../report/curves.ts";
import { writeReport } from "../report/write.ts";
import { type ComputeDevice, openDevice } from "../tensor/compute-device.ts";
import { setThreads, threads } from "../tensor/device.ts";
import type { QuantizeEvent, QuantizeOptions, QuantizeResult } from "../types.ts";
import { packageVersion } from "../util/package.ts";
import { calibrateAll, type QuantizeHooks } from "./calibrate-all.ts";
import { identify, identitySettings } from "./identity.ts";
import { keepNotes, keptKeys } from "./keep.ts";
import { modelFor, openSource } from "./open-source.ts";
import { ownWindows } from "./own-windows.ts";
import { PhaseClock } from "./phase-clock.ts";
import { polishAll } from "./phases/polish.ts";
import { hadamardNote, planOf, untiedNote } from "./plan.ts";
import { checkPolish, memoryOf } from "./polish-memory.ts";
import { checkIdentity, checkResume, findIntact, findJob, leftovers } from "./resume.ts";
import { newJob, RunRecord } from "./run-record.ts";
import { type RunSettings, resolveSettings, settingsFor, windowLength } from "./settings.ts";
import { streamBudget } from "./streams.ts";
import { type CalibrationText, loadCalibration } from "./text.ts";
import { TokenCache } from "./token-cache.ts";
import { checkWriting } from "./writing-memory.ts";

/** What a session works with once its options and input are known to be good. */
interface Session {
  readonly options: QuantizeOptions;
  readonly hooks: QuantizeHooks;
  readonly settings: RunSettings;
  readonly streamMemory: number | undefined;
  readonly device: ComputeDevice;
  readonly checkpoint: Checkpoint;
  /** As the checkpoint has it. */
  readonly original: Model;
  /** With what the settings add to it. */
  readonly model: Model;
  readonly text: CalibrationText;
  readonly run: RunState;
  readonly started: number;
}

/**
 * Quantizes a checkpoint, or goes on where an earlier session of the same run stopped. Events tell of
 * progress; `watch` sees every step's gradients.
 *
 * Throws: AqError for bad options and bad input before any work, AQ_STOPPED when the signal fires.
 */
export async function runQuantize(
  options: QuantizeOptions,
  hooks: QuantizeHooks = {},
): Promise<QuantizeResult> {
  const started = performance.now();
  const asked = resolveSettings(options);
  checkResume(options);
  streamBudget(options.streamMemory);
  if (options.threads !== undefined) setThreads(options.threads);
  const { checkpoint, model: original } = openSource(options.model);
  let device: ComputeDevice | undefined;
  try {
    device = openDevice(options);
    const streamMemory = streamBudget(options.streamMemory, device.name);
    const model = modelFor(checkpoint, original, asked);
    const settings = settingsFor(model, asked, options);
    const run = new RunState(options.out);
    const seqlen = windowLength(settings.seqlen, model);
    const tokens = new TokenCache(options.model, run.dir);
    const text = loadCalibration(options.calib, tokens, seqlen, settings);
    const found = findJob(options.out, run, options);
    if (text.isWritten && !found?.written) {
      checkWriting(original, seqlen, device.name, text.calibration.length);
    }
    if (!found?.polish) {
      checkPolish(model, settings, text.calibration.length, seqlen, memoryOf(device.name));
    }
    const claim = {
      source: options.model,
      overwrite: found !== null || (options.overwrite ?? false),
      keep: leftovers(options.out, run),
    };
    // A finished run is answered for even where nothing can be written any more.
    const folder = found?.status === "done" ? null : OutputFolder.claim(options.out, claim);
    const own = identitySettings(settings, device);
    const identity = await identify(checkpoint, text, own, hooks.signal);
    if (found) checkIdentity(options.out, found, identity);
    if (found?.result && isComplete(options.out)) return answer(options, found, hooks);

    const output = folder ?? OutputFolder.claim(options.out, claim);
    const lock = RunLock.acquire(run.dir);
    try {
      if (found) run.clean();
      else run.reset();
      const job =
        found ??
        newJob({
          model: path.resolve(options.model),
          text: text.source,
          identity,
          blocks: model.shape.blocks,
        });
      const parts = {
        options,
        hooks,
        settings,
        streamMemory,
        device,
        checkpoint,
        original,
        model,
        text,
        run,
        started,
      };
      return await runSession(parts, output, job, tokens);
    } finally {
      lock.release();
    }
  } finally {
    device?.release();
    checkpoint.close();
  }
}

function isComplete(out: string): boolean {
  try {
    openCheckpoint(out).close();
    return true;
  } catch {
    return false;
  }
}

/** Says again what a finished run said. */
function answer(options: QuantizeOptions, job: Job, { onEvent }: QuantizeHooks): QuantizeResult {
  const { blocks, result } = job;
  if (!result) throw new TypeError("the run is not finished");
  onEvent?.({ event: "resume", blocksDone: blocks, blocks, finished: true });
  const again = { ...result, out: options.out };
  onEvent?.({ event: "done", ...again });
  return again;
}

async function runSession(
  session: Session,
  folder: OutputFolder,
  job: Job,
  tokens: TokenCache,
): Promise<QuantizeResult> {
  const { options, hooks, settings, device, checkpoint, model, text, run } = session;
  const record = new RunRecord(run, job, session.started);
  const emit = (event: QuantizeEvent): void => {
    if (event.event === "note") record.note(event.text);
    hooks.onEvent?.(event);
  };
  const told: QuantizeHooks = { ...hooks, onEvent: emit };
  const owned: { dispose(): void }[] = [];
  try {
    emit(startEvent(session));
    if (device.note !== undefined) emit({ event: "note", text: device.note });
    for (const note of text.notes) emit({ event: "note", text: note });
    const { blocks: intact, polish } = findIntact(run, job, (text) => {
      emit({ event: "note", text });
    });
    const finished = job.finished.slice(0, intact);
    record.update({ status: "running", result: null, finished, polish });
    tokens.save();
    if (intact > 0) {
      emit({ event: "resume", blocksDone: intact, blocks: job.blocks, finished: false });
    }

    const measure = async (which: "before" | "after", source: EvalModel): Promise<number> => {
      const result = await perplexity({ ...source, device: device.name }, text.evaluation, {
        onWindow: (window, windows, ppl) => emit({ event: "eval", which, window, windows, ppl }),
        signal: hooks.signal,
      });
      return result.ppl;
    };
    const clock = new PhaseClock();
    if (text.isWritten) clock.enter("text");
    const windows = text.isWritten
      ? await ownWindows({ ...session, record, hooks: told })
      : text.calibration;
    clock.enter("evaluation");
    const pplBefore =
      record.job.pplBefore ??
      (await measure("before", { checkpoint, model: session.original, activations: null }));
    record.update({ pplBefore });
    clock.pause();

    if (settings.rotate) emit({ event: "stage", stage: "rotate" });
    const rotation = settings.rotate ? new Rotation(model, settings.seed, device.name) : null;
    if (rotation) owned.push(rotation);
    if (rotation && model.traits.tiedHead && intact === 0) {
      emit({ event: "note", text: untiedNote(model) });
    }
    if (model.hadamardDown && intact === 0) emit({ event: "note", text: hadamardNote(model) });
    const source = weightSource(checkpoint, model, rotation, device.name);
    const { sites, added, notes } = planOf(model, settings.recipe);
    const has = (name: string): boolean => checkpoint.has(name);
    const { hadamardDown } = model;
    const extras = { hadamardDown: hadamardDown ?? undefined, added };
    const written = openModel(checkpoint.config, has, extras);
    for (const text of intact === 0 ? [...notes, ...keepNotes(model, settings)] : []) {
      emit({ event: "note", text });
    }
    const parts = {
      source,
      written,
      settings,
      windows,
      streamMemory: session.streamMemory,
      run,
      record,
      hooks: told,
    };
    await calibrateAll(parts);
    clock.enter("polish");
    await polishAll(parts);
    const live = liveBlocks(record.job);
    const config: AqConfig = {
      scheme: settings.scheme,
      recipe: settings.recipe.name,
      sites: sites.map(siteName),
      added,
      hadamardDown: model.hadamardDown,
      tokenClips: live.tokenClips,
      inputGlobals: live.inputGlobals,
      kept: live.tokenClips.map((_, i) => [...keptKeys(model, i, settings)]),
    };
    clock.enter("export");
    emit({ event: "stage", stage: "export" });
    const stored = (block: number): StoredBlock => run.openBlock(block, live.set, device.name);
    await writeHuggingFace(folder, source, written, stored, config, packageVersion(), hooks.signal);

    clock.enter("evaluation");
    const pplAfter = await measureOutput(options.out, config, measure);
    const blocks = record.job.finished.map(({ report }) => report);
    const polished = record.job.polish?.report;
    const seconds = record.seconds;
    const result = { seconds, pplBefore, pplAfter, blocks, ...(polished && { polish: polished }) };
    const report = buildReport({
      options,
      settings: { ...settings, device: device.kind, precision: device.precision },
      scheme: settings.scheme,
      recipe: settings.recipe.name,
      source: checkpoint,
      model,
      extras: {
        kept: config.kept?.map((keys) => new Set(keys)) ?? [],
        untiedHead: rotation !== null && model.traits.tiedHead,
        ...addedBits(checkpoint, written),
      },
      calibration: {
        text: text.source,
        windows: windows.length,
        seqlen: text.seqlen,
      },
      perplexity: { before: pplBefore, after: pplAfter, windows: text.evaluation.length },
      blocks,
      curves: polished ? [polishCurve(polished)] : [],
      notes: record.notes,
      seconds: result.seconds,
      phaseSeconds: clock.stop().phaseSeconds,
      device: device.description,
      threads: threads(),
    });
    writeReport(run.dir, report);
    record.update({ status: "done", result });
    emit({ event: "done", out: options.out, ...result });
    return { out: options.out, ...result };
  } catch (error) {
    throw stoppedAt(error, record.job, run);
  } finally {
    for (const item of owned) item.dispose();
  }
}

function startEvent({ options, settings, device, model, text }: Session): QuantizeEvent {
  return {
    event: "start",
    model: options.model,
    family: model.family,
    blocks: model.shape.blocks,
    windows: text.calibration.length,
    seqlen: text.seqlen,
    wbits: settings.scheme.wbits,
    abits: settings.scheme.abits,
    scheme: schemeName(settings.scheme),
    recipe: settings.recipe.name,
    threads: threads(),
    device: device.description,
  };
}

/** Adds to a stop what is kept and how to go on; other errors stay as they are. */
function stoppedAt(error: unknown, job: Job, run: RunState): unknown {
  if (!(error instanceof AqError) || error.code !== "AQ_STOPPED") return error;
  const kept = `${job.finished.length} of ${job.blocks} blocks are stored in ${run.dir}`;
  return new AqError(
    "AQ_STOPPED",
    `${error.message.replace(/[.]$/, "")}; ${kept}, the same command goes on from there`,
    { cause: error },
  );
}

/** Perplexity of the folder that was just written, read back from disk. */
async function measureOutput(
  out: string,
  config: AqConfig,
  measure: (which: "after", source: EvalModel) => Promise<number>,
): Promise<number> {
  const checkpoint = openCheckpoint(out);
  try {
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name), extrasOf(config));
    const activations = describedActivations(config, config.scheme.abits);
    return await measure("after", { checkpoint, model, activations });
  } finally {
    checkpoint.close();
  }
}
