/** What it takes that the model writes its own calibration windows (calibration/written-windows.ts). */

import { together, writingBytes } from "../calibration/writing-memory.ts";
import type { UnitSeconds, Workload } from "./work.ts";

/** A token of a step's few, against one of a window's many. Measured on llama-gqa-4m, two threads. */
const FEW_TOKENS = 3;
/** Kernels of a block in a step. */
const CALLS = 14;
/** Seconds that drawing takes for each entry of the vocabulary. Measured: 32,000 of them in 0.6 ms. */
const DRAW = 2e-8;

/** Seconds of all steps; 0 where the text is given. */
export function writingSeconds(work: Workload, unit: UnitSeconds): number {
  const { device, model, settings, tokens, windows } = work;
  if (settings.calibSource !== "model") return 0;
  const { blocks, vocabulary } = model.shape;
  const slots = together(model.shape, tokens, device, windows);
  const token = (FEW_TOKENS * (blocks * unit.pass + unit.head)) / tokens + vocabulary * DRAW;
  const step = slots * token + blocks * CALLS * unit.call;
  return Math.ceil(windows / slots) * tokens * step;
}

/** Memory at that time. */
export function writingParts({ device, model, tokens, windows }: Workload): Record<string, number> {
  const { model: weights, caches } = writingBytes(model, tokens, device, windows);
  return { "whole model": weights, caches };
}
