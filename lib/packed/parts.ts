/** Typed reading of the tensors that make up a packed linear; every message names the tensor. */

import * as path from "node:path";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { AqError } from "../errors.ts";
import { decodeFloats, type FloatName } from "./half.ts";

/** A tensor and the file it lies in, for messages. */
export function located(checkpoint: Checkpoint, name: string): string {
  return `"${name}" in ${path.join(checkpoint.dir, checkpoint.info(name).file)}`;
}

/** The error for a tensor that is not what its format says. */
export function misfit(
  checkpoint: Checkpoint,
  name: string,
  expected: string,
  got?: string,
): AqError {
  const { dtype, shape } = checkpoint.info(name);
  const found = got ?? `${dtype} ${spell(shape)}`;
  return new AqError(
    "AQ_FORMAT",
    `${located(checkpoint, name)} does not fit: expected ${expected}, got ${found}; download the checkpoint again`,
  );
}

export function spell(shape: readonly number[]): string {
  return `[${shape.join(", ")}]`;
}

/** Throws: AQ_MODEL when there is no such tensor, AQ_FORMAT when it is another. */
export function checkPart(
  checkpoint: Checkpoint,
  name: string,
  dtypes: readonly string[],
  shape: readonly number[],
): void {
  const info = checkpoint.info(name);
  const fits = info.shape.length === shape.length && shape.every((d, i) => d === info.shape[i]);
  if (!fits || !dtypes.includes(info.dtype)) {
    throw misfit(checkpoint, name, `${dtypes.join(" or ")} ${spell(shape)}`);
  }
}

/** The two sizes of a matrix. Throws: AQ_MODEL when it is missing, AQ_FORMAT when it is none. */
export function matrixSize(checkpoint: Checkpoint, name: string): readonly [number, number] {
  const { shape } = checkpoint.info(name);
  const [rows, columns] = shape;
  if (shape.length !== 2 || rows === undefined || columns === undefined) {
    throw misfit(checkpoint, name, "a matrix");
  }
  return [rows, columns];
}

/** 32-bit words of a checked tensor. */
export function readWords(checkpoint: Checkpoint, name: string): Uint32Array<ArrayBuffer> {
  const bytes = checkpoint.readBytes(name);
  return new Uint32Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength / 4);
}

/** Bytes of a checked tensor. */
export function readRaw(checkpoint: Checkpoint, name: string): Uint8Array<ArrayBuffer> {
  const bytes = checkpoint.readBytes(name);
  return new Uint8Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength);
}

export const SCALE_TYPES: readonly FloatName[] = ["F16", "BF16", "F32"];

/** Finite scales of a checked tensor, and how they are stored. Throws: AQ_FORMAT. */
export function readScales(
  checkpoint: Checkpoint,
  name: string,
  what = "scales",
): { readonly values: Float32Array<ArrayBuffer>; readonly dtype: FloatName } {
  const dtype = checkpoint.info(name).dtype as FloatName;
  const values = decodeFloats(readRaw(checkpoint, name), dtype) as Float32Array<ArrayBuffer>;
  const bad = values.findIndex((x) => !Number.isFinite(x));
  if (bad >= 0) {
    throw misfit(checkpoint, name, `finite ${what}`, `${values[bad]} at index ${bad}`);
  }
  return { values, dtype };
}

/** [G, O] -> [O, G]. */
export function transposed<T extends Float32Array<ArrayBuffer> | Uint8Array<ArrayBuffer>>(
  values: T,
  groups: number,
  rows: number,
): T {
  const result = values.slice() as T;
  for (let g = 0; g < groups; g++) {
    for (let o = 0; o < rows; o++) result[o * groups + g] = values[g * rows + o] as number;
  }
  return result;
}

/** The tensor that belongs to a linear beside its `x.weight`: `x.part`. */
export function partName(weight: string, part: string): string {
  return `${weight.replace(/weight$/, "")}${part}`;
}

/**
 * Group of each column in act order, or null where there is no such tensor or it names the runs of `group`
 * columns; -1 throughout says that there is no order. Throws: AQ_FORMAT.
 */
export function readOrder(
  checkpoint: Checkpoint,
  name: string,
  group: number,
  groups: number,
): Int32Array<ArrayBuffer> | null {
  if (!checkpoint.has(name)) return null;
  const order = new Int32Array(readWords(checkpoint, name).buffer);
  if (order.every((g) => g === -1)) return null;
  const bad = order.findIndex((g) => g < 0 || g >= groups);
  if (bad >= 0) {
    throw misfit(checkpoint, name, `groups below ${groups}`, `${order[bad]} at index ${bad}`);
  }
  return order.every((g, i) => g === Math.floor(i / group)) ? null : order;
}
