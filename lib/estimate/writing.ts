/** What it takes that the model writes its own calibration text (calibration/written-windows.ts). */

import { cacheBytes, together } from "../calibration/written-windows.ts";
import { precisionOf } from "../tensor/precision.ts";
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
  const slots = Math.min(windows, together(model.shape, tokens, device));
  const token = (FEW_TOKENS * (blocks * unit.pass + unit.head)) / tokens + vocabulary * DRAW;
  const step = slots * token + blocks * CALLS * unit.call;
  return Math.ceil(windows / slots) * tokens * step;
}

const F32 = 4;

/** Memory: all of the model's weights at the same time, and the caches. */
export function writingParts({ device, model, tokens, windows }: Workload): Record<string, number> {
  const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
  const width = precisionOf(device) === "f32" ? F32 : F32 / 2;
  const block = model.blockTensors(0).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const outer = model.outerTensors().reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const slots = Math.min(windows, together(model.shape, tokens, device));
  return {
    "whole model": model.shape.blocks * block * width + outer * F32,
    caches: slots * cacheBytes(model.shape, tokens, device),
  };
}
