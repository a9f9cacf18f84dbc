/** Makes the report of a run from what the run knows when it ends. */

import * as os from "node:os";
import type { Checkpoint } from "../checkpoint/folder.ts";
import type { Model } from "../models/family.ts";
import { type QuantScheme, schemeName } from "../quant/scheme.ts";
import type { BlockReport, QuantizeOptions } from "../types.ts";
import { isJsonObject } from "../util/json.ts";
import { packageVersion } from "../util/package.ts";
import { type BitsExtras, countBits } from "./bits.ts";
import { repeatCommand } from "./command.ts";
import type { RunCurve, RunReport, Setting } from "./types.ts";

/** What a report is made from. */
export interface ReportInput {
  readonly options: QuantizeOptions;
  /** The resolved settings; objects inside are flattened. */
  readonly settings: object;
  readonly scheme: QuantScheme;
  readonly recipe: string;
  readonly source: Checkpoint;
  readonly model: Model;
  readonly extras?: BitsExtras;
  readonly calibration: RunReport["calibration"];
  readonly perplexity: RunReport["perplexity"];
  readonly blocks: readonly BlockReport[];
  readonly curves?: readonly RunCurve[];
  readonly notes: readonly string[];
  readonly seconds: number;
  /** Phases of the run outside the blocks. */
  readonly phaseSeconds: Readonly<Record<string, number>>;
  readonly device: string;
  readonly threads: number;
}

export function buildReport(input: ReportInput): RunReport {
  const { options, source, model, scheme } = input;
  const { hidden, blocks, heads, kvHeads, headDim, mlp, vocabulary } = model.shape;
  const tensors = [...source.tensors.values()];
  return {
    format: 1,
    writtenBy: `aq-native ${packageVersion()}`,
    finished: new Date().toISOString(),
    command: repeatCommand(options),
    settings: flatten(input.settings),
    machine: {
      device: input.device,
      threads: input.threads,
      system: `${os.type()} ${os.release()}, ${os.arch()}`,
      node: process.version,
    },
    model: {
      path: options.model,
      out: options.out,
      family: model.family,
      blocks,
      hidden,
      heads,
      kvHeads,
      headDim,
      mlp,
      vocabulary,
      parameters: tensors.reduce((n, { shape }) => n + shape.reduce((a, b) => a * b, 1), 0),
      dtype: [...new Set(tensors.map(({ dtype }) => dtype))].join(", "),
    },
    scheme: schemeName(scheme),
    recipe: input.recipe,
    calibration: input.calibration,
    perplexity: input.perplexity,
    blocks: input.blocks,
    curves: input.curves ?? [],
    seconds: input.seconds,
    phaseSeconds: addPhases(input.blocks, input.phaseSeconds, input.seconds),
    bits: countBits(source, model, scheme, input.extras),
    notes: input.notes,
  };
}

/** Phases of the blocks added up, those of the run, and what is left of all seconds. */
function addPhases(
  blocks: readonly BlockReport[],
  ofRun: Readonly<Record<string, number>>,
  seconds: number,
): Record<string, number> {
  const all: Record<string, number> = {};
  for (const { phaseSeconds } of [...blocks, { phaseSeconds: ofRun }]) {
    for (const [phase, value] of Object.entries(phaseSeconds)) {
      all[phase] = (all[phase] ?? 0) + value;
    }
  }
  const named = Object.values(all).reduce((sum, value) => sum + value, 0);
  if (seconds > named) all["other"] = seconds - named;
  return all;
}

/** Leaves by their own name, or by their path where two have the same; an object's name by the object's. */
export function flatten(settings: object): Record<string, Setting> {
  const leaves: { path: string[]; value: Setting }[] = [];
  const walk = (value: unknown, path: string[]): void => {
    if (isJsonObject(value)) {
      for (const [key, inner] of Object.entries(value))
        walk(inner, key === "name" && path.length > 0 ? path : [...path, key]);
    } else if (value === undefined) {
      return;
    } else if (value === null || ["string", "number", "boolean"].includes(typeof value)) {
      leaves.push({ path, value: value as Setting });
    } else if (Array.isArray(value)) {
      leaves.push({ path, value: value.length > 0 ? value.join(" ") : null });
    } else {
      leaves.push({ path, value: JSON.stringify(value) ?? null });
    }
  };
  walk(settings, []);
  const count = new Map<string, number>();
  for (const { path } of leaves) {
    const name = path.at(-1) ?? "";
    count.set(name, (count.get(name) ?? 0) + 1);
  }
  return Object.fromEntries(
    leaves.map(({ path, value }) => {
      const name = path.at(-1) ?? "";
      return [count.get(name) === 1 ? name : path.join("."), value];
    }),
  );
}
