/** A whole quantization: from a checkpoint folder to a quantized one, in one session or in several. */

import * as path from "node:path";
import { Rotation } from "../affine/rotation.ts";
import { siteName } from "../affine/sites.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { OutputFolder } from "../checkpoint/output-folder.ts";
import { AqError } from "../errors.ts";
import { type EvalModel, perplexity } from "../eval/perplexity.ts";
import { AQ_CONFIG_NAME, type AqConfig, readAqConfig } from "../export/aq-config.ts";
import { writeHuggingFace } from "../export/hf.ts";
import type { Job } from "../export/job.ts";
import { RunLock } from "../export/run-lock.ts";
import { RunState } from "../export/run-state.ts";
import type { Model } from "../models/family.ts";
import { openModel } from "../models/registry.ts";
import { weightSource } from "../models/source.ts";
import { buildReport } from "../report/build.ts";
import { writeReport } from "../report/write.ts";
import { deviceInfo, setThreads, threads } from "../tensor/device.ts";
import type { QuantizeEvent, QuantizeOptions, QuantizeResult } from "../types.ts";
import { packageVersion } from "../util/package.ts";
import { calibrateAll, type QuantizeHooks } from "./calibrate-all.ts";
import { identify } from "./identity.ts";
import { PhaseClock } from "./phase-clock.ts";
import { checkIdentity, checkResume, countIntact, findJob, leftovers } from "./resume.ts";
import { newJob, RunRecord } from "./run-record.ts";
import { type RunSettings, resolveSettings, windowLength } from "./settings.ts";
import { streamBudget } from "./streams.ts";
import { type CalibrationText, loadCalibration } from "./text.ts";
import { TokenCache } from "./token-cache.ts";

/** Opens the model of an options object for quantizing. Throws: AQ_MODEL if it already is quantized. */
function openSource(dir: string): { checkpoint: Checkpoint; model: Model } {
  const checkpoint = openCheckpoint(dir);
  try {
    if (checkpoint.quantization || readAqConfig(dir)) {
      const how = checkpoint.quantization
        ? "quantization_config in its config.json"
        : AQ_CONFIG_NAME;
      throw new AqError(
        "AQ_MODEL",
        `${dir} is already quantized (${how}); quantize the full-precision checkpoint it was made from`,
      );
    }
    return { checkpoint, model: openModel(checkpoint.config, (name) => checkpoint.has(name)) };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

/** What a session works with once its options and input are known to be good. */
interface Session {
  readonly options: QuantizeOptions;
  readonly hooks: QuantizeHooks;
  readonly settings: RunSettings;
  readonly streamMemory: number | undefined;
  readonly checkpoint: Checkpoint;
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
  const settings = resolveSettings(options);
  checkResume(options);
  const streamMemory = streamBudget(options.streamMemory);
  if (options.threads !== undefined) setThreads(options.threads);
  const { checkpoint, model } = openSource(options.model);
  try {
    const run = new RunState(options.out);
    const seqlen = windowLength(settings.seqlen, model.shape.maxTokens);
    const tokens = new TokenCache(options.model, run.dir);
    const text = loadCalibration(options.calib, tokens, seqlen, settings);
    const found = findJob(options.out, run, options);
    const claim = {
      source: options.model,
      overwrite: found !== null || (options.overwrite ?? false),
      keep: leftovers(options.out, run),
    };
    // A finished run is answered for even where nothing can be written any more.
    const folder = found?.status === "done" ? null : OutputFolder.claim(options.out, claim);
    const identity = await identify(checkpoint, text, identitySettings(settings), hooks.signal);
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
        checkpoint,
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
    checkpoint.close();
  }
}

/** Settings that the result depends on; the windows' length is compared by the windows themselves. */
function identitySettings({ seqlen: _, ...settings }: RunSettings): object {
  return settings;
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
  const { options, hooks, settings, checkpoint, model, text, run } = session;
  const record = new RunRecord(run, job, session.started);
  const emit = (event: QuantizeEvent): void => {
    if (event.event === "note") record.note(event.text);
    hooks.onEvent?.(event);
  };
  const told: QuantizeHooks = { ...hooks, onEvent: emit };
  const owned: { dispose(): void }[] = [];
  try {
    emit(startEvent(session));
    for (const note of text.notes) emit({ event: "note", text: note });
    const intact = countIntact(run, job, (note) => emit({ event: "note", text: note }));
    record.update({ status: "running", result: null, finished: job.finished.slice(0, intact) });
    tokens.save();
    if (intact > 0) {
      emit({ event: "resume", blocksDone: intact, blocks: job.blocks, finished: false });
    }

    const measure = async (which: "before" | "after", source: EvalModel): Promise<number> => {
      const result = await perplexity(source, text.evaluation, {
        onWindow: (window, windows, ppl) => emit({ event: "eval", which, window, windows, ppl }),
        signal: hooks.signal,
      });
      return result.ppl;
    };
    const clock = new PhaseClock();
    clock.enter("evaluation");
    const pplBefore =
      record.job.pplBefore ?? (await measure("before", { checkpoint, model, activations: null }));
    record.update({ pplBefore });
    clock.pause();

    if (settings.rotate) emit({ event: "stage", stage: "rotate" });
    const rotation = settings.rotate ? new Rotation(model, settings.seed) : null;
    if (rotation) owned.push(rotation);
    if (rotation && model.traits.tiedHead && intact === 0) {
      emit({ event: "note", text: untiedNote(model) });
    }
    const source = weightSource(checkpoint, model, rotation);
    await calibrateAll({
      source,
      settings,
      windows: text.calibration,
      streamMemory: session.streamMemory,
      run,
      record,
      hooks: told,
    });
    const { finished } = record.job;
    const config: AqConfig = {
      scheme: settings.scheme,
      recipe: settings.recipe.name,
      sites: settings.recipe.sites ? model.sites.map(siteName) : [],
      tokenClips: finished.map(({ tokenClips }) => tokenClips),
    };
    clock.enter("export");
    emit({ event: "stage", stage: "export" });
    await writeHuggingFace(folder, source, run, config, packageVersion(), hooks.signal);

    clock.enter("evaluation");
    const pplAfter = await measureOutput(options.out, config, measure);
    const blocks = finished.map(({ report }) => report);
    const result = { seconds: record.seconds, pplBefore, pplAfter, blocks };
    const report = buildReport({
      options,
      settings,
      scheme: settings.scheme,
      recipe: settings.recipe.name,
      source: checkpoint,
      model,
      extras: { untiedHead: rotation !== null && model.traits.tiedHead },
      calibration: {
        text: text.source,
        windows: text.calibration.length,
        seqlen: text.calibration[0]?.length ?? 0,
      },
      perplexity: { before: pplBefore, after: pplAfter, windows: text.evaluation.length },
      blocks,
      notes: record.notes,
      seconds: result.seconds,
      phaseSeconds: clock.stop().phaseSeconds,
      device: deviceInfo("cpu").detail,
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

/** What the rotation costs a model whose head is its embedding. */
function untiedNote({ shape: { vocabulary, hidden } }: Model): string {
  const numbers = (vocabulary * hidden).toLocaleString("en-US");
  return `the residual stream is rotated, so the head is no longer the embedding: the output stores it as a tensor of its own, ${numbers} numbers more`;
}

function startEvent({ options, settings, model, text }: Session): QuantizeEvent {
  return {
    event: "start",
    model: options.model,
    family: model.family,
    blocks: model.shape.blocks,
    windows: text.calibration.length,
    seqlen: text.calibration[0]?.length ?? 0,
    wbits: settings.scheme.wbits,
    abits: settings.scheme.abits,
    recipe: settings.recipe.name,
    threads: threads(),
    device: deviceInfo("cpu").detail,
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
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
    const { abits } = config.scheme;
    const activations = abits < 16 ? { bits: abits, clips: config.tokenClips } : null;
    return await measure("after", { checkpoint, model, activations });
  } finally {
    checkpoint.close();
  }
}
