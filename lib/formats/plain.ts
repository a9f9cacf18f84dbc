/** Tensors that are not quantized, as they are or in float16, in pieces. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { SafetensorsDType } from "../checkpoint/safetensors-header.ts";
import { AqError } from "../errors.ts";
import { weightDType } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { HALF_LIMIT, halfValues } from "../util/half.ts";
import type { ChangeMeter } from "./change.ts";
import { bytesOf } from "./pack.ts";

/** Elements that are read, converted and held at a time. */
const PIECE = 2 ** 20;

const BYTES: Readonly<Partial<Record<SafetensorsDType, number>>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
};

/** A tensor of a checkpoint, byte for byte. */
export function* copied(checkpoint: Checkpoint, name: string): Generator<Uint8Array> {
  const { bytes } = checkpoint.info(name);
  const step = 8 * PIECE;
  for (let at = 0; at < bytes; at += step) {
    const piece = new Uint8Array(Math.min(step, bytes - at));
    checkpoint.readInto(name, piece, at);
    yield piece;
  }
}

/** A tensor of a checkpoint as float32. */
export function* singles(checkpoint: Checkpoint, name: string): Generator<Float32Array> {
  const dtype = weightDType(checkpoint, name);
  const width = BYTES[checkpoint.info(name).dtype] as number;
  const { bytes } = checkpoint.info(name);
  const step = PIECE * width;
  for (let at = 0; at < bytes; at += step) {
    const piece = new Uint8Array(Math.min(step, bytes - at));
    checkpoint.readInto(name, piece, at);
    yield scope(() => ({
      floats: invokeOne("cast", [Tensor.from(piece, [piece.length / width], dtype)], {
        dtype: dtypeCode("f32"),
      }).floats(),
    })).floats;
  }
}

/**
 * A tensor of a checkpoint as float16; `meter` hears what that changed.
 *
 * Throws: AQ_MODEL where a value is above float16's range.
 */
export function* halves(
  checkpoint: Checkpoint,
  name: string,
  meter: ChangeMeter,
): Generator<Uint8Array> {
  if (checkpoint.info(name).dtype === "F16") {
    yield* copied(checkpoint, name);
    return;
  }
  for (const piece of singles(checkpoint, name)) yield halvesOf(piece, name, meter);
}

/** Numbers as float16. Throws: AQ_MODEL where one is above its range. */
export function halvesOf(numbers: Float32Array, name: string, meter: ChangeMeter): Uint8Array {
  const values = halfValues();
  const bits = scope(() => ({
    read: invokeOne("cast", [Tensor.from(numbers)], { dtype: dtypeCode("f16") }).read(),
  })).read as Uint16Array;
  let largest = 0;
  let weight = 0;
  let difference = 0;
  let size = 0;
  for (let i = 0; i < numbers.length; i++) {
    const x = numbers[i] as number;
    const off = x - (values[bits[i] as number] as number);
    difference += off * off;
    size += x * x;
    if (off > largest) largest = off;
    else if (-off > largest) largest = -off;
    if (x > weight) weight = x;
    else if (-x > weight) weight = -x;
  }
  // What is above the range became infinite, and what was no number still is none.
  if (!Number.isFinite(difference)) {
    throw outOfRange(name, numbers.find((x) => !(Math.abs(x) < HALF_LIMIT)) ?? Number.NaN);
  }
  meter.add({ largest, weight, difference, size });
  return bytesOf(bits);
}

function outOfRange(name: string, x: number): AqError {
  return new AqError(
    "AQ_MODEL",
    `"${name}" holds ${x}, and this format stores float16, whose largest number is 65504; write hf or aq, which keep the model's own types`,
  );
}
