/** How many windows a model writes together, and what that takes in memory. */

import { AqError } from "../errors.ts";
import type { Model, ModelShape } from "../models/family.ts";
import { precisionOf } from "../tensor/precision.ts";
import { byteSize } from "../util/format.ts";
import { memoryOf } from "./polish-memory.ts";

/** Windows that are written together, at most: a GPU takes about as long for a token of each as of a few. */
const TOGETHER = { cpu: 32, gpu: 128 };
/**
 * Bytes that their caches may take. Not a share of the memory that there is: how many are written together
 * shows in the last bits of what is written.
 */
const CACHE_BYTES = 8 * 2 ** 30;
const F32 = 4;

type CacheShape = Pick<ModelShape, "blocks" | "kvHeads" | "headDim">;

/** How keys and values lie meanwhile. */
export const cacheType = (device: string): "f16" | "f32" => (device === "cpu" ? "f32" : "f16");

/** Bytes of the keys and values of one window. */
function cacheBytes({ blocks, kvHeads, headDim }: CacheShape, seqlen: number, device: string) {
  return 2 * seqlen * blocks * kvHeads * headDim * (cacheType(device) === "f16" ? F32 / 2 : F32);
}

/** Windows that one batch writes, of `windows`. */
export function together(
  shape: CacheShape,
  seqlen: number,
  device: string,
  windows: number,
): number {
  const fit = Math.floor(CACHE_BYTES / cacheBytes(shape, seqlen, device));
  const most = device === "cpu" ? TOGETHER.cpu : TOGETHER.gpu;
  return Math.max(1, Math.min(most, fit, windows));
}

/** Bytes that are held together: all of the model's weights, and the caches. */
export function writingBytes(
  model: Model,
  seqlen: number,
  device: string,
  windows: number,
): { readonly model: number; readonly caches: number } {
  const sizeOf = ({ shape }: { readonly shape: readonly number[] }): number =>
    shape.reduce((a, b) => a * b, 1);
  const width = precisionOf(device) === "f32" ? F32 : F32 / 2;
  const block = model.blockTensors(0).reduce((sum, spec) => sum + sizeOf(spec), 0);
  const outer = model.outerTensors().reduce((sum, spec) => sum + sizeOf(spec), 0);
  const slots = together(model.shape, seqlen, device, windows);
  return {
    model: model.shape.blocks * block * width + outer * F32,
    caches: slots * cacheBytes(model.shape, seqlen, device),
  };
}

/** Throws: AQ_OOM when writing would take more than `available` bytes. */
export function checkWriting(
  model: Model,
  seqlen: number,
  device: string,
  windows: number,
  available: number = memoryOf(device),
): void {
  const { model: weights, caches } = writingBytes(model, seqlen, device, windows);
  if (weights + caches <= available) return;
  throw new AqError(
    "AQ_OOM",
    `a model that writes its calibration windows has all of its weights in memory, with caches about ${byteSize(weights + caches)}, and there are ${byteSize(available)} free; use --calib-source text, or shorter windows (--seqlen)`,
  );
}
