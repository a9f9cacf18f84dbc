/** Tensors that are not quantized, as they are or in 16 bits, in pieces. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { SafetensorsDType } from "../checkpoint/safetensors-header.ts";
import { AqError } from "../errors.ts";
import { weightDType } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { halfValues } from "../util/half.ts";
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

/** What tensors are written in that are not quantized. */
export type ShortType = "F16" | "BF16";

/** What the types are called: by the engine, and in config.json with their largest number. */
const SHORT: Readonly<Record<ShortType, { engine: "f16" | "bf16"; name: string; most: string }>> = {
  F16: { engine: "f16", name: "float16", most: "65504" },
  BF16: { engine: "bf16", name: "bfloat16", most: "3.39e38" },
};

export function shortName(type: ShortType): string {
  return SHORT[type].name;
}

/**
 * A tensor of a checkpoint in 16 bits; `meter` hears what that changed.
 *
 * Throws: AQ_MODEL where a value is above the type's range.
 */
export function* shorts(
  checkpoint: Checkpoint,
  name: string,
  meter: ChangeMeter,
  type: ShortType = "F16",
): Generator<Uint8Array> {
  if (checkpoint.info(name).dtype === type) {
    yield* copied(checkpoint, name);
    return;
  }
  for (const piece of singles(checkpoint, name)) yield shortsOf(piece, name, meter, type);
}

/** Numbers in 16 bits. Throws: AQ_MODEL where one is above the type's range. */
export function shortsOf(
  numbers: Float32Array,
  name: string,
  meter: ChangeMeter,
  type: ShortType = "F16",
): Uint8Array {
  const values = type === "F16" ? halfValues() : bfloatValues();
  const bits = scope(() => ({
    read: invokeOne("cast", [Tensor.from(numbers)], {
      dtype: dtypeCode(SHORT[type].engine),
    }).read(),
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
    const isBad = (x: number, i: number): boolean =>
      !Number.isFinite(x - (values[bits[i] as number] as number));
    throw outOfRange(name, numbers.find(isBad) ?? Number.NaN, type);
  }
  meter.add({ largest, weight, difference, size });
  return bytesOf(bits);
}

/** Values of all bits of bfloat16, made at the first use. */
let bfloats: Float32Array | undefined;

function bfloatValues(): Float32Array {
  bfloats ??= new Float32Array(
    Uint32Array.from({ length: 2 ** 16 }, (_, bits) => bits << 16).buffer,
  );
  return bfloats;
}

function outOfRange(name: string, x: number, type: ShortType): AqError {
  const { name: stored, most } = SHORT[type];
  return new AqError(
    "AQ_MODEL",
    `"${name}" holds ${x}, and this format stores ${stored}, whose largest number is ${most}; write hf or aq, which keep the model's own types`,
  );
}
