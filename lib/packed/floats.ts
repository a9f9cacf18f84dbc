/**
 * Matrices of 4-bit floats as files hold them: two codes to a byte, the even column in the lower half, the
 * scales as bytes, and the numbers of whole matrices as g or as 1 / g.
 */

import type { Float4Name } from "../autograd/float4.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import type { TensorSpec } from "../models/family.ts";
import { FLOAT4_GROUPS } from "../quant/scheme.ts";
import type { FloatConfig } from "./config-floats.ts";
import type { GlobalScale, PackedFloats } from "./float4.ts";
import { decodeFloats } from "./half.ts";
import { checkPart, misfit, partName, readRaw, spell } from "./parts.ts";

/** Names of the tensors of a matrix. */
interface Names {
  readonly codes: string;
  readonly scales: string;
  /** Of the whole matrix; NVFP4 alone. */
  readonly global: string;
  /** Of what the linear reads; where activations are quantized. */
  readonly input: string;
}

/** By the `x.weight` of a linear. */
export function floatParts({ layout }: FloatConfig, weight: string): Names {
  const part = (name: string): string => partName(weight, name);
  switch (layout) {
    case "compressed-tensors":
      return {
        codes: part("weight_packed"),
        scales: part("weight_scale"),
        global: part("weight_global_scale"),
        input: part("input_global_scale"),
      };
    case "modelopt":
      return {
        codes: weight,
        scales: part("weight_scale"),
        global: part("weight_scale_2"),
        input: part("input_scale"),
      };
    case "aq":
      return {
        codes: `${weight}.codes`,
        scales: `${weight}.scale`,
        global: `${weight}.global`,
        input: `${weight}.input`,
      };
  }
}

/** Is the weight of this name stored as 4-bit floats? */
export function hasFloats(checkpoint: Checkpoint, config: FloatConfig, weight: string): boolean {
  const { codes } = floatParts(config, weight);
  // ModelOpt's are called as the weight itself, which is there where it is not quantized as well.
  const isOwnName = codes !== weight;
  return checkpoint.has(codes) && (isOwnName || checkpoint.info(codes).dtype === "U8");
}

/** Throws: AQ_MODEL, AQ_FORMAT when the tensors are not those of such a matrix. */
export function planFloats(checkpoint: Checkpoint, config: FloatConfig, spec: TensorSpec): void {
  const { numbers, layout } = config;
  const names = floatParts(config, spec.name);
  const [rows, columns] = spec.shape as [number, number];
  const group = FLOAT4_GROUPS[numbers];
  if (columns % group !== 0) {
    throw misfit(checkpoint, names.codes, `rows that groups of ${group} divide`, `${columns}`);
  }
  const scaleType = numbers === "nvfp4" && layout !== "aq" ? "F8_E4M3" : "U8";
  checkPart(checkpoint, names.codes, ["U8"], [rows, columns / 2]);
  checkPart(checkpoint, names.scales, [scaleType], [rows, columns / group]);
  if (numbers === "mxfp4") return;
  checkSingle(checkpoint, names.global);
  // Where activations are quantized it must be there.
  if (config.tokens || checkpoint.has(names.input)) checkSingle(checkpoint, names.input);
}

/** One F32, as a scalar or a list. */
function checkSingle(checkpoint: Checkpoint, name: string): void {
  const { dtype, shape } = checkpoint.info(name);
  if (dtype !== "F32" || shape.length > 1 || shape.some((d) => d !== 1)) {
    throw misfit(checkpoint, name, `F32 ${spell([1])}`);
  }
}

/** Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE. */
export function readFloats(
  checkpoint: Checkpoint,
  config: FloatConfig,
  spec: TensorSpec,
): PackedFloats {
  planFloats(checkpoint, config, spec);
  const { numbers } = config;
  const names = floatParts(config, spec.name);
  const [rows, columns] = spec.shape as [number, number];
  return {
    kind: numbers,
    rows,
    columns,
    group: FLOAT4_GROUPS[numbers],
    codes: nibbles(readRaw(checkpoint, names.codes)),
    scaleBytes: readScaleBytes(checkpoint, names.scales, numbers),
    global: numbers === "nvfp4" ? readGlobal(checkpoint, config, names.global) : null,
    input: readInput(checkpoint, config, spec.name),
  };
}

/**
 * The global scale of what a linear reads, or null where there is none. Throws: AQ_FORMAT, AQ_FILE.
 */
export function readInput(
  checkpoint: Checkpoint,
  config: FloatConfig,
  weight: string,
): GlobalScale | null {
  const { input } = floatParts(config, weight);
  if (config.numbers !== "nvfp4" || !checkpoint.has(input)) return null;
  checkSingle(checkpoint, input);
  return readGlobal(checkpoint, config, input);
}

/** The lower half of each byte, then the upper one. */
function nibbles(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const codes = new Uint8Array(2 * bytes.length);
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] as number;
    codes[2 * i] = byte & 15;
    codes[2 * i + 1] = byte >>> 4;
  }
  return codes;
}

/** Throws: AQ_FORMAT for a byte that is no scale: not a number, or with a sign. */
function readScaleBytes(
  checkpoint: Checkpoint,
  name: string,
  format: Float4Name,
): Uint8Array<ArrayBuffer> {
  const bytes = readRaw(checkpoint, name);
  const first = format === "nvfp4" ? 0x7f : 0xff;
  const bad = bytes.findIndex((byte) => byte >= first);
  if (bad >= 0) {
    const got = `the byte 0x${(bytes[bad] as number).toString(16)} at index ${bad}`;
    throw misfit(checkpoint, name, `scales of ${format.toUpperCase()}`, got);
  }
  return bytes;
}

/** Throws: AQ_FORMAT, AQ_FILE. */
function readGlobal(checkpoint: Checkpoint, { layout }: FloatConfig, name: string): GlobalScale {
  const isInverse = layout === "modelopt";
  const [stored = 0] = decodeFloats(readRaw(checkpoint, name), "F32");
  const other = Math.fround(1 / stored);
  if (!(stored > 0 && Number.isFinite(stored) && other > 0 && Number.isFinite(other))) {
    throw misfit(checkpoint, name, "a finite number above 0", String(stored));
  }
  const [scale, factor] = isInverse ? [other, stored] : [stored, other];
  return { stored, isInverse, scale, factor };
}
