/** A whole quantization: from a checkpoint folder to a quantized one. */

import * as path from "node:path";
import { siteName } from "../affine/sites.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { OutputFolder } from "../checkpoint/output-folder.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { AqError } from "../errors.ts";
import { type EvalModel, perplexity } from "../eval/perplexity.ts";
import { AQ_CONFIG_NAME, type AqConfig, readAqConfig } from "../export/aq-config.ts";
import { writeHuggingFace } from "../export/hf.ts";
import { RunState } from "../export/run-state.ts";
import type { Model } from "../models/family.ts";
import { openModel } from "../models/registry.ts";
import { deviceInfo, setThreads, threads } from "../tensor/device.ts";
import type {
  BlockReport,
  QuantizeEvent,
  QuantizeOptions,
  QuantizeResult,
  RunHooks,
} from "../types.ts";
import { packageVersion } from "../util/package.ts";
import { type BlockHooks, calibrateBlock } from "./calibrate-block.ts";
import { type RunSettings, resolveSettings, windowLength } from "./settings.ts";
import { Streams } from "./streams.ts";
import { type CalibrationText, loadCalibration } from "./text.ts";
import { TimeLeft } from "./time-left.ts";
import type { GradientWatcher } from "./train-step.ts";

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

/**
 * Quantizes a checkpoint. Events tell of progress; `watch` sees every step's gradients.
 *
 * Throws: AqError for bad options and bad input before any work, AQ_STOPPED when the signal fires.
 */
export async function runQuantize(
  options: QuantizeOptions,
  hooks: RunHooks<QuantizeEvent> & { readonly watch?: GradientWatcher } = {},
): Promise<QuantizeResult> {
  const started = performance.now();
  const settings = resolveSettings(options);
  if (options.threads !== undefined) setThreads(options.threads);
  const emit = (event: QuantizeEvent): void => hooks.onEvent?.(event);
  const { checkpoint, model } = openSource(options.model);
  try {
    const seqlen = windowLength(settings.seqlen, model.shape.maxTokens);
    const text = loadCalibration(options.calib, loadTokenizer(options.model), seqlen, settings);
    const folder = OutputFolder.claim(options.out, {
      source: options.model,
      overwrite: options.overwrite ?? false,
    });
    const run = new RunState(options.out);
    run.reset();
    emit({
      event: "start",
      model: options.model,
      family: model.family,
      blocks: model.shape.blocks,
      windows: text.calibration.length,
      seqlen,
      wbits: settings.scheme.wbits,
      abits: settings.scheme.abits,
      recipe: settings.recipe.name,
      threads: threads(),
      device: deviceInfo("cpu").detail,
    });
    for (const note of text.notes) emit({ event: "note", text: note });

    const job = describeJob(options, settings, text, seqlen);
    run.writeJob({ ...job, status: "running" });
    const measure = async (which: "before" | "after", source: EvalModel): Promise<number> => {
      const result = await perplexity(source, text.evaluation, {
        onWindow: (window, windows, ppl) => emit({ event: "eval", which, window, windows, ppl }),
        signal: hooks.signal,
      });
      return result.ppl;
    };
    const pplBefore = await measure("before", { checkpoint, model, activations: null });

    const { reports, tokenClips } = await calibrateAll(
      checkpoint,
      model,
      settings,
      text,
      run,
      hooks,
    );
    const config: AqConfig = {
      scheme: settings.scheme,
      recipe: settings.recipe.name,
      sites: settings.recipe.sites ? model.sites.map(siteName) : [],
      tokenClips,
    };
    await writeHuggingFace(folder, checkpoint, model, run, config, packageVersion(), hooks.signal);

    const pplAfter = await measureOutput(options.out, config, measure);
    const result: QuantizeResult = {
      out: options.out,
      seconds: (performance.now() - started) / 1000,
      pplBefore,
      pplAfter,
      blocks: reports,
    };
    run.writeJob({
      ...job,
      status: "done",
      result: { pplBefore, pplAfter, seconds: result.seconds, blocks: reports },
    });
    emit({ event: "done", ...result });
    return result;
  } finally {
    checkpoint.close();
  }
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

async function calibrateAll(
  checkpoint: Checkpoint,
  model: Model,
  settings: RunSettings,
  text: CalibrationText,
  run: RunState,
  hooks: RunHooks<QuantizeEvent> & { readonly watch?: GradientWatcher },
): Promise<{ reports: BlockReport[]; tokenClips: Readonly<Record<string, number>>[] }> {
  const emit = (event: QuantizeEvent): void => hooks.onEvent?.(event);
  const { blocks } = model.shape;
  const { epochs } = settings.train;
  const reports: BlockReport[] = [];
  const tokenClips: Readonly<Record<string, number>>[] = [];
  const context = model.context(text.calibration[0]?.length ?? 0, "f32");
  let streams: Streams | undefined;
  try {
    const withAug = settings.train.augLoss && settings.recipe.name !== "rtn";
    streams = new Streams(checkpoint, model, text.calibration, withAug);
    const left = new TimeLeft(blocks);
    for (let block = 0; block < blocks; block++) {
      const blockHooks: BlockHooks = {
        onPhase: (phase) => emit({ event: "phase", block, phase }),
        onStep: (epoch, step, steps, loss) => {
          const secondsLeft = left.estimate(block, step / steps);
          emit({ event: "step", block, blocks, epoch, epochs, step, steps, loss, secondsLeft });
        },
        onEpoch: (epoch, loss, dominanceMargin) => {
          const secondsLeft = left.estimate(block, (epoch + 1) / epochs);
          emit({
            event: "epoch",
            block,
            blocks,
            epoch,
            epochs,
            loss,
            dominanceMargin,
            secondsLeft,
          });
        },
        onNote: (note) => emit({ event: "note", text: note }),
        onFinished: (finished) => {
          const clips = JSON.stringify(finished.tokenClips);
          run.writeBlock(block, model, finished, { block: String(block), token_clips: clips });
        },
        watch: hooks.watch,
        signal: hooks.signal,
      };
      const { tokenClips: clips, ...report } = await calibrateBlock(
        checkpoint,
        model,
        context,
        streams,
        settings,
        block,
        blockHooks,
      );
      reports.push(report);
      tokenClips.push(clips);
      emit({ event: "block", blocks, ...report });
    }
    return { reports, tokenClips };
  } finally {
    context.dispose();
    streams?.dispose();
  }
}

/** What job.json says of a run: enough to repeat it. */
function describeJob(
  options: QuantizeOptions,
  settings: RunSettings,
  text: CalibrationText,
  seqlen: number,
): Record<string, unknown> {
  return {
    format: 1,
    written_by: `aq-native ${packageVersion()}`,
    model: path.resolve(options.model),
    calibration: {
      text: text.source,
      windows: text.calibration.length,
      seqlen,
      sampling: settings.sampling,
      seed: settings.seed,
    },
    scheme: settings.scheme,
    recipe: settings.recipe,
    train: settings.train,
  };
}
