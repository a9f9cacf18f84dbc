/**
 * AWQ, gemm layout: per linear `qweight` I32 [I, O / 8] and `qzeros` I32 [G, O / 8] of 4-bit values with
 * `scales` [G, O]. Nibble k of a word, from the lowest, is column ORDER[k] of its eight.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { TensorSpec } from "../models/family.ts";
import type { AwqConfig } from "./config.ts";
import { groupCount, type PackedIntegers } from "./linear.ts";
import {
  checkPart,
  matrixSize,
  misfit,
  partName,
  readScales,
  readWords,
  SCALE_TYPES,
  transposed,
} from "./parts.ts";

const BITS = 4;
const ORDER = [0, 2, 4, 6, 1, 3, 5, 7] as const;

/** Names of the tensors of a linear, by its `x.weight`. */
export function awqParts(weight: string): Record<"codes" | "zeros" | "scales", string> {
  const part = (name: string): string => partName(weight, name);
  return { codes: part("qweight"), zeros: part("qzeros"), scales: part("scales") };
}

/** Throws: AQ_MODEL, AQ_FORMAT when the tensors are not those of such a linear. */
export function planAwq(
  checkpoint: Checkpoint,
  config: AwqConfig,
  spec: TensorSpec,
): { readonly group: number; readonly groups: number } {
  const names = awqParts(spec.name);
  const [rows, columns] = spec.shape as [number, number];
  matrixSize(checkpoint, names.codes);
  if (rows % 8 !== 0) throw misfit(checkpoint, names.codes, `a multiple of 8 rows, not ${rows}`);
  const group = Math.min(columns, config.group || columns);
  const groups = groupCount(columns, group);
  checkPart(checkpoint, names.codes, ["I32"], [columns, rows / 8]);
  checkPart(checkpoint, names.zeros, ["I32"], [groups, rows / 8]);
  checkPart(checkpoint, names.scales, SCALE_TYPES, [groups, rows]);
  return { group, groups };
}

/** Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE. */
export function readAwq(
  checkpoint: Checkpoint,
  config: AwqConfig,
  spec: TensorSpec,
): PackedIntegers {
  const { group, groups } = planAwq(checkpoint, config, spec);
  const names = awqParts(spec.name);
  const [rows, columns] = spec.shape as [number, number];
  const scales = readScales(checkpoint, names.scales);
  return {
    kind: "integers",
    bits: BITS,
    rows,
    columns,
    group,
    codes: unpackColumns(readWords(checkpoint, names.codes), columns, rows),
    scale: transposed(scales.values, groups, rows),
    zero: Float32Array.from(unpackColumns(readWords(checkpoint, names.zeros), groups, rows)),
    scaleType: scales.dtype,
    groupOf: null,
  };
}

/** Words [N, O / 8] -> values [O, N]. */
function unpackColumns(words: Uint32Array, n: number, rows: number): Uint8Array<ArrayBuffer> {
  const values = new Uint8Array(rows * n);
  const perRow = rows / 8;
  // Words of a column of them first: what they hold becomes eight rows, each in order.
  for (let c = 0; c < perRow; c++) {
    for (let i = 0; i < n; i++) {
      const word = words[i * perRow + c] as number;
      for (let k = 0; k < 8; k++) {
        values[(8 * c + (ORDER[k] as number)) * n + i] = (word >>> (BITS * k)) & 15;
      }
    }
  }
  return values;
}
