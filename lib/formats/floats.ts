/**
 * Tensors of 4-bit floats, which compressed-tensors, ModelOpt and our own format store alike under names of
 * their own: two codes of e2m1 to a byte, the even column in the lower half, and the scales' bytes.
 */

import { bytesOf, packRowBytes } from "./pack.ts";
import type { ShortType } from "./plain.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import type { PlannedTensor } from "./shards.ts";

const BITS = 4;

/** U8 [O, I / 2] */
export function codesTensor(run: FinishedRun, linear: StoredLinear, name: string): PlannedTensor {
  const { rows, columns } = linear;
  return {
    name,
    dtype: "U8",
    shape: [rows, columns / 2],
    pieces: () => [packRowBytes(run.codes(linear), rows, columns, BITS)],
  };
}

/** [O, G]: the bytes of e4m3fn, or exponents of two plus 127. */
export function scalesTensor(
  run: FinishedRun,
  linear: StoredLinear,
  name: string,
  dtype: "F8_E4M3" | "U8",
): PlannedTensor {
  const pieces = (): Uint8Array[] => [run.scaleBytes(linear)];
  return { name, dtype, shape: [linear.rows, linear.groups], pieces };
}

/** One number. */
export function singleTensor(
  name: string,
  shape: readonly [] | readonly [1],
  value: () => number,
): PlannedTensor {
  return { name, dtype: "F32", shape, pieces: () => [bytesOf(Float32Array.of(value()))] };
}

/** The model's own type where it has 16 bits, so that nothing is rounded; float16 for wider ones. */
export function ownShortType(run: FinishedRun): ShortType {
  const [first] = run.model.outerTensors();
  return first && run.checkpoint.info(first.name).dtype === "BF16" ? "BF16" : "F16";
}
