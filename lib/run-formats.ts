/** The formats that a run is asked for: refused before it begins, written when it is done. */

import * as fs from "node:fs";
import * as path from "node:path";
import { keptKeys } from "./calibration/keep.ts";
import { modelFor, openSource } from "./calibration/open-source.ts";
import { planOf } from "./calibration/plan.ts";
import { runQuantize } from "./calibration/run.ts";
import { resolveSettings, settingsFor } from "./calibration/settings.ts";
import { AqError } from "./errors.ts";
import { checkFormat, writeRun } from "./export-run.ts";
import type { ExportResult } from "./export-types.ts";
import { checkPlace, isExport } from "./formats/folder.ts";
import type { Format } from "./formats/format.ts";
import { FORMAT_NAMES, folderOf, formatOf } from "./formats/registry.ts";
import { FinishedRun } from "./formats/run.ts";
import type { Setting } from "./formats/setting.ts";
import { formatFor } from "./formats/targets.ts";
import { openModel } from "./models/registry.ts";
import { clipsTokens } from "./quant/scheme.ts";
import type { QuantizeEvent, QuantizeOptions, QuantizeResult, RunHooks } from "./types.ts";

/** Quantizes, then writes the formats that were asked for. Throws: as `quantize`. */
export async function quantizeToFormats(
  options: QuantizeOptions,
  hooks: RunHooks<QuantizeEvent>,
): Promise<QuantizeResult> {
  const formats = formatsFor(options);
  for (const { name } of formats) checkPlace(placeOf(options.out, name), true);
  if (formats.length === 0 && !options.overwrite) return runQuantize(options, hooks);
  // The last event is the one that says that all is done.
  const result = await runQuantize(options, {
    ...hooks,
    onEvent: (event) => {
      if (event.event !== "done") hooks.onEvent?.(event);
    },
  });
  if (options.overwrite) removeStale(options.out, formats);
  const written = await writeFormats(options.out, formats, hooks);
  const whole = written.length > 0 ? { ...result, formats: written } : result;
  hooks.onEvent?.({ event: "done", ...whole });
  return whole;
}

/**
 * The formats that the options ask for, without `hf`, which the run writes anyway.
 *
 * Throws: AQ_MODEL when one cannot carry what the run will be, AQ_ARG for unknown names.
 */
export function formatsFor(options: Omit<QuantizeOptions, "out">): readonly Format[] {
  const { format: names = [], target } = options;
  if (names.length === 0 && target === undefined) return [];
  const formats = names.map((name) => formatOf(name));
  const setting = settingOf(options);
  for (const format of formats) checkFormat(format, setting);
  if (target !== undefined) formats.push(formatFor(target, setting));
  return [...new Set(formats)].filter(({ name }) => name !== "hf");
}

/** What the run of these options will be. Throws: as `quantize` before any work. */
function settingOf(options: Omit<QuantizeOptions, "out">): Setting {
  const asked = resolveSettings({ ...options, out: "" });
  const { checkpoint, model: original } = openSource(options.model);
  try {
    const model = modelFor(checkpoint, original, asked);
    const { recipe, scheme } = settingsFor(model, asked, options);
    const { added } = planOf(model, recipe);
    const { hadamardDown } = model;
    const extras = { hadamardDown: hadamardDown ?? undefined, added };
    return {
      model: openModel(checkpoint.config, (name) => checkpoint.has(name), extras),
      folder: options.model,
      config: checkpoint.config,
      scheme,
      added,
      tokenClips: clipsTokens(scheme) && recipe.tokenClip,
      kept: Array.from({ length: model.shape.blocks }, (_, block) => [
        ...keptKeys(model, block, { keep: asked.keep, scheme }),
      ]),
    };
  } finally {
    checkpoint.close();
  }
}

function placeOf(out: string, name: Format["name"]): string {
  return path.join(out, folderOf(name));
}

/** A folder of an earlier session is replaced: it may be of other blocks. */
async function writeFormats(
  out: string,
  formats: readonly Format[],
  { onEvent, signal }: RunHooks<QuantizeEvent>,
): Promise<ExportResult[]> {
  if (formats.length === 0) return [];
  const results: ExportResult[] = [];
  const run = FinishedRun.open(out);
  try {
    for (const format of formats) {
      const place = placeOf(out, format.name);
      const result = await writeRun(run, format, place, true, signal ? { signal } : {});
      onEvent?.({ event: "format", ...result });
      results.push(result);
    }
    return results;
  } catch (error) {
    if (!(error instanceof AqError)) throw error;
    const message = error.message.replace(/[.]$/, "");
    throw new AqError(
      error.code,
      `${message}; the run itself is done and stored in ${out}, the same command or aq-native export goes on from there`,
      { cause: error },
    );
  } finally {
    run.close();
  }
}

/** Removes formats of the run that was overwritten. */
function removeStale(out: string, formats: readonly Format[]): void {
  const kept = new Set(formats.map(({ name }) => name));
  for (const name of FORMAT_NAMES.filter((each) => each !== "hf" && !kept.has(each))) {
    const place = placeOf(out, name);
    if (fs.existsSync(place) && isExport(place)) fs.rmSync(place, { recursive: true, force: true });
  }
}
