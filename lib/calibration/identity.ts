/**
 * What makes two runs the same run: package version, weights, calibration tokens and settings. A run
 * is only resumed when all of it is equal, so that a resumed run writes what one go would have
 * written; threads, progress, memory limits and where the folders lie make no difference.
 *
 * Weights are compared by the content of every file. Reading them all costs seconds for each ten
 * gigabytes, against hours for the run; sizes and times would let an edited file pass.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import { sourceFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import type { ComputeDevice } from "../tensor/compute-device.ts";
import { sha256, sha256LargeFile } from "../util/hash.ts";
import { isJsonObject, type JsonObject } from "../util/json.ts";
import { packageVersion } from "../util/package.ts";
import type { RunSettings } from "./settings.ts";
import type { CalibrationText } from "./text.ts";

/** Everything that the result depends on, as JSON. */
export type Identity = JsonObject;

/** Throws: AQ_FILE, AQ_STOPPED when the signal fires. */
export async function identify(
  checkpoint: Checkpoint,
  text: Pick<CalibrationText, "calibration" | "isWritten" | "seqlen" | "evaluation">,
  settings: object,
  signal?: AbortSignal,
): Promise<Identity> {
  const onPiece = (): void => {
    if (signal?.aborted) throw new AqError("AQ_STOPPED", "the run was stopped before it began");
  };
  onPiece();
  const weights: Record<string, string> = {};
  for (const { file } of checkpoint.shards) {
    weights[file] = await sha256LargeFile(sourceFile(checkpoint.dir, file), onPiece);
  }
  const identity = {
    version: packageVersion(),
    model: { config: sha256(checkpoint.configText), weights },
    // Windows that the model writes follow from what they begin with, and from all else here.
    calibration: {
      ...(text.isWritten ? { source: "model" } : {}),
      ...describeWindows(text.calibration),
      seqlen: text.seqlen,
    },
    evaluation: describeWindows(text.evaluation),
    settings,
  };
  // As it will be read back: without what JSON does not keep.
  return JSON.parse(JSON.stringify(identity)) as Identity;
}

function describeWindows(windows: readonly Int32Array[]): JsonObject {
  const bytes = windows.map((w) => new Uint8Array(w.buffer, w.byteOffset, w.byteLength));
  return { windows: windows.length, seqlen: windows[0]?.length ?? 0, tokens: sha256(...bytes) };
}

/**
 * Settings that the result depends on; the windows' length and source are compared with the windows. What
 * is computed on one kind of device goes on there: the other rounds otherwise, and blocks of both would
 * be no run that anybody can repeat. What an option that came later leaves at its default is absent, as
 * in the runs of versions without it.
 */
export function identitySettings(
  { seqlen: _, calibSource: _source, keep, ...settings }: RunSettings,
  { kind, precision }: Pick<ComputeDevice, "kind" | "precision">,
): object {
  return {
    ...settings,
    ...(keep.length > 0 ? { keep } : {}),
    device: kind,
    precision,
  };
}

/** The first place where two identities differ, in words, or null. */
export function describeDifference(was: unknown, now: unknown, at: string[] = []): string | null {
  if (isJsonObject(was) && isJsonObject(now)) {
    for (const key of new Set([...Object.keys(now), ...Object.keys(was)])) {
      const found = describeDifference(was[key], now[key], [...at, key]);
      if (found !== null) return found;
    }
    return null;
  }
  const [before, after] = [was, now].map((value) => JSON.stringify(value) ?? "absent");
  return before === after ? null : inWords(at, before as string, after as string);
}

const HASH = /^"[0-9a-f]{64}"$/;

function inWords(at: readonly string[], was: string, now: string): string {
  const [top, ...rest] = at;
  const name = rest.join(".");
  const values = HASH.test(was) && HASH.test(now) ? "differs" : `was ${was} and is now ${now}`;
  switch (top) {
    case "version":
      return `the version of aq-native ${values}`;
    case "model":
      return `the model's ${name === "config" ? "config.json" : name.replace(/^weights\./, "")} ${values.replace(/"[0-9a-f]{64}"/, "present")}`;
    case "calibration":
      return `the calibration text: ${name} ${values}`;
    case "evaluation":
      return `the text that perplexity is measured on: ${name} ${values}`;
    case "settings":
      return `the setting ${name} ${values}`;
    default:
      return `${at.join(".") || "the identity"} ${values}`;
  }
}
