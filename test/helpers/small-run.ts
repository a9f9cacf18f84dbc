/** Whole quantizations in small: the trained fixture, a short text, and everything that was said. */
import * as fs from "node:fs";
import * as path from "node:path";
import { expect } from "vitest";
import { runQuantize } from "../../lib/calibration/run.ts";
import type { GradientWatcher } from "../../lib/calibration/train-step.ts";
import type { QuantizeEvent, QuantizeOptions, QuantizeResult } from "../../lib/types.ts";
import { BOOKS, TRAINED } from "./fixture.ts";

/** Three windows of 64 tokens, two epochs: about a second. */
export const SMALL = {
  model: TRAINED,
  calib: BOOKS,
  nsamples: 3,
  seqlen: 64,
  epochs: 2,
  recipe: "affine",
  device: "cpu",
} as const;
/** Optimizer steps of each block. */
export const SMALL_STEPS: number = SMALL.nsamples * SMALL.epochs;

export interface Run {
  readonly result: QuantizeResult;
  readonly events: readonly QuantizeEvent[];
  readonly notes: readonly string[];
}

/** Quantizes with the small settings; an event may be answered while the run is under way. */
export async function smallRun(
  options: Partial<QuantizeOptions> & { readonly out: string },
  hooks: {
    readonly onEvent?: (event: QuantizeEvent) => void;
    readonly watch?: GradientWatcher;
    readonly signal?: AbortSignal;
  } = {},
): Promise<Run> {
  const events: QuantizeEvent[] = [];
  const result = await runQuantize(
    { ...SMALL, ...options },
    {
      ...hooks,
      onEvent: (event) => {
        events.push(event);
        hooks.onEvent?.(event);
      },
    },
  );
  const notes = events.flatMap((event) => (event.event === "note" ? [event.text] : []));
  return { result, events, notes };
}

/** Every file below a folder, by its path from there. */
export function filesBelow(dir: string): string[] {
  return fs
    .readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(dir, path.join(entry.parentPath, entry.name)))
    .sort();
}

export function readJson(...parts: string[]): Record<string, unknown> {
  return JSON.parse(fs.readFileSync(path.join(...parts), "utf8")) as Record<string, unknown>;
}

/** Asserts that two outputs agree in every byte that a run computes. */
export function expectSameResult(out: string, expected: string): void {
  const computed = (dir: string): string[] =>
    filesBelow(dir).filter((file) => !/^aq\/(job\.json|report\.(json|html))$/.test(file));
  expect(computed(out)).toEqual(computed(expected));
  for (const file of computed(expected)) {
    const [a, b] = [out, expected].map((dir) => fs.readFileSync(path.join(dir, file)));
    expect(a?.equals(b as Buffer), file).toBe(true);
  }
}
