/**
 * compressed-tensors. pack-quantized: `weight_packed` I32 [O, words], a bit stream of codes along each
 * row; `weight_scale` [O, G]; `weight_zero_point` I32 [words, G], a bit stream of zeros down each column,
 * where the scheme is asymmetric; `weight_shape` [2]. int-quantized: `weight` I8 [O, I] and zeros I8.
 *
 * Values are signed, from -2^(b-1), and so are zeros: both are moved up by 2^(b-1) here, which is how the
 * packed ones are stored.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import { AqError } from "../errors.ts";
import type { TensorSpec } from "../models/family.ts";
import { unpackPadded, unpackStreams, wordCount } from "./bit-stream.ts";
import type { CompressedConfig, WeightScheme } from "./config.ts";
import { groupCount, type PackedIntegers } from "./linear.ts";
import {
  checkPart,
  located,
  misfit,
  partName,
  readOrder,
  readRaw,
  readScales,
  readWords,
  SCALE_TYPES,
} from "./parts.ts";

interface Plan extends WeightScheme {
  readonly rows: number;
  readonly columns: number;
  /** At most I, unlike the scheme's. */
  readonly group: number;
  readonly groups: number;
  /** Words of floor(32 / b) whole values. */
  readonly isPadded: boolean;
}

type Part = "codes" | "bytes" | "scales" | "zeros" | "shape" | "order";

/** Names of the tensors of a linear, by its `x.weight`. */
export function compressedParts(weight: string): Record<Part, string> {
  const part = (name: string): string => partName(weight, name);
  return {
    codes: part("weight_packed"),
    bytes: weight,
    scales: part("weight_scale"),
    zeros: part("weight_zero_point"),
    shape: part("weight_shape"),
    order: part("weight_g_idx"),
  };
}

/** Throws: AQ_MODEL, AQ_FORMAT when the tensors are not those of such a linear. */
export function planCompressed(
  checkpoint: Checkpoint,
  config: CompressedConfig,
  spec: TensorSpec,
): Plan {
  const errors: unknown[] = [];
  const plans = new Map<string, Plan>();
  for (const scheme of config.weights) {
    try {
      const plan = planScheme(checkpoint, config, scheme, spec);
      plans.set(JSON.stringify(plan), plan);
    } catch (error) {
      errors.push(error);
    }
  }
  const [plan] = plans.values();
  if (!plan) throw errors[0];
  if (plans.size > 1) {
    throw new AqError(
      "AQ_MODEL",
      `${located(checkpoint, compressedParts(spec.name).scales)} fits several config groups that differ in bits or groups, which this version cannot tell apart`,
    );
  }
  return plan;
}

function planScheme(
  checkpoint: Checkpoint,
  config: CompressedConfig,
  scheme: WeightScheme,
  spec: TensorSpec,
): Plan {
  const names = compressedParts(spec.name);
  const [rows, columns] = spec.shape as [number, number];
  const { bits } = scheme;
  const group = Math.min(columns, scheme.group || columns);
  const groups = groupCount(columns, group);
  let isPadded = false;
  if (config.format === "int-quantized") {
    checkPart(checkpoint, names.bytes, ["I8"], [rows, columns]);
  } else {
    isPadded = hasPadding(checkpoint, config, names.codes, columns, bits);
    const words = isPadded ? Math.ceil(columns / Math.floor(32 / bits)) : wordCount(columns, bits);
    checkPart(checkpoint, names.codes, ["I32"], [rows, words]);
    checkShape(checkpoint, names.shape, rows, columns);
  }
  const { shape } = checkpoint.info(names.scales);
  // A scale for the whole matrix has one element, of whatever shape.
  const isSingle = scheme.isTensor && shape.every((d) => d === 1);
  if (!isSingle) checkPart(checkpoint, names.scales, SCALE_TYPES, [rows, groups]);
  else checkPart(checkpoint, names.scales, SCALE_TYPES, shape);
  if (checkpoint.has(names.zeros))
    checkZeros(checkpoint, names.zeros, { bits, rows, groups, isPadded });
  else if (!scheme.symmetric) checkpoint.info(names.zeros);
  if (checkpoint.has(names.order)) checkPart(checkpoint, names.order, ["I32"], [columns]);
  return { ...scheme, rows, columns, group, groups, isPadded, isTensor: isSingle };
}

/** Was it packed as before 0.18? Where both ways take as many words, the config's version decides. */
function hasPadding(
  checkpoint: Checkpoint,
  config: CompressedConfig,
  name: string,
  columns: number,
  bits: number,
): boolean {
  if (32 % bits === 0) return false;
  const dense = wordCount(columns, bits);
  const padded = Math.ceil(columns / Math.floor(32 / bits));
  if (dense !== padded) return checkpoint.info(name).shape[1] === padded;
  const [, minor] = /^0\.(\d+)(?:\D|$)/.exec(config.version ?? "") ?? [];
  return minor !== undefined && Number(minor) < 18;
}

function checkShape(checkpoint: Checkpoint, name: string, rows: number, columns: number): void {
  const { dtype } = checkpoint.info(name);
  checkPart(checkpoint, name, ["I64", "I32"], [2]);
  const bytes = checkpoint.readBytes(name);
  const stored =
    dtype === "I32"
      ? [bytes.readInt32LE(0), bytes.readInt32LE(4)]
      : [bytes.readBigInt64LE(0), bytes.readBigInt64LE(8)];
  if (Number(stored[0]) !== rows || Number(stored[1]) !== columns) {
    throw misfit(checkpoint, name, `the values ${rows}, ${columns}`, stored.join(", "));
  }
}

function checkZeros(
  checkpoint: Checkpoint,
  name: string,
  { bits, rows, groups, isPadded }: Pick<Plan, "bits" | "rows" | "groups" | "isPadded">,
): void {
  const isByte = checkpoint.info(name).dtype === "I8";
  const words = isPadded ? Math.ceil(rows / Math.floor(32 / bits)) : wordCount(rows, bits);
  checkPart(checkpoint, name, [isByte ? "I8" : "I32"], [isByte ? rows : words, groups]);
}

/** Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE. */
export function readCompressed(
  checkpoint: Checkpoint,
  config: CompressedConfig,
  spec: TensorSpec,
): PackedIntegers {
  const plan = planCompressed(checkpoint, config, spec);
  const { bits, rows, columns, group, groups } = plan;
  const names = compressedParts(spec.name);
  const scales = readScales(checkpoint, names.scales);
  const { values } = scales;
  return {
    kind: "integers",
    bits,
    rows,
    columns,
    group,
    codes: readCodes(checkpoint, config, plan, names),
    scale: plan.isTensor ? new Float32Array(rows * groups).fill(values[0] as number) : values,
    zero: readZeros(checkpoint, plan, names.zeros),
    scaleType: scales.dtype,
    groupOf: readOrder(checkpoint, names.order, group, groups),
  };
}

function readCodes(
  checkpoint: Checkpoint,
  config: CompressedConfig,
  { bits, rows, columns, isPadded }: Plan,
  names: Record<Part, string>,
): Uint8Array<ArrayBuffer> {
  if (config.format === "int-quantized") return readSigned(checkpoint, names.bytes, bits);
  const words = readWords(checkpoint, names.codes);
  const layout = { streams: rows, stream: wordCount(columns, bits), word: 1 };
  const codes = isPadded
    ? unpackPadded(words, bits, columns, rows)
    : unpackStreams(words, bits, columns, layout);
  if (!codes) throw misfit(checkpoint, names.codes, "zeros behind the last value", "ones");
  return codes;
}

/** Signed bytes as codes. Throws: AQ_FORMAT for one beyond the bits. */
function readSigned(checkpoint: Checkpoint, name: string, bits: number): Uint8Array<ArrayBuffer> {
  const half = 2 ** (bits - 1);
  const codes = readRaw(checkpoint, name);
  for (let i = 0; i < codes.length; i++) {
    const value = ((codes[i] as number) << 24) >> 24;
    if (value < -half || value >= half) {
      const expected = `values from ${-half} to ${half - 1}`;
      throw misfit(checkpoint, name, expected, `${value} at index ${i}`);
    }
    codes[i] = value + half;
  }
  return codes;
}

/** Zeros [O, G]; without any, the middle of the codes. */
function readZeros(
  checkpoint: Checkpoint,
  { bits, rows, groups, isPadded }: Plan,
  name: string,
): Float32Array<ArrayBuffer> {
  if (!checkpoint.has(name)) return new Float32Array(rows * groups).fill(2 ** (bits - 1));
  const { dtype } = checkpoint.info(name);
  if (dtype === "I8") return Float32Array.from(readSigned(checkpoint, name, bits));
  const words = readWords(checkpoint, name);
  const perGroup = words.length / groups;
  let zeros: Uint8Array | null;
  if (isPadded) {
    // That packing wants the words of a stream behind each other.
    const turned = Uint32Array.from(
      words,
      (_, at) => words[(at % perGroup) * groups + Math.floor(at / perGroup)] as number,
    );
    zeros = unpackPadded(turned, bits, rows, groups);
  } else {
    zeros = unpackStreams(words, bits, rows, { streams: groups, stream: 1, word: groups });
  }
  if (!zeros) throw misfit(checkpoint, name, "zeros behind the last value", "ones");
  const values = new Float32Array(rows * groups);
  for (let g = 0; g < groups; g++) {
    for (let o = 0; o < rows; o++) values[o * groups + g] = zeros[g * rows + o] as number;
  }
  return values;
}
