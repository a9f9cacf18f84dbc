/**
 * GPTQ: per linear `qweight` I32 [I b / 32, O], a bit stream of codes down each column; `qzeros` I32
 * [G, O b / 32], a bit stream of zeros along each row, less one in version 1; `scales` [G, O]; `g_idx`
 * I32 [I], the group of each column.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { TensorSpec } from "../models/family.ts";
import { unpackStreams, wordCount } from "./bit-stream.ts";
import type { GptqConfig } from "./config.ts";
import { groupCount, type PackedIntegers } from "./linear.ts";
import {
  checkPart,
  matrixSize,
  misfit,
  partName,
  readOrder,
  readScales,
  readWords,
  SCALE_TYPES,
  transposed,
} from "./parts.ts";

interface Plan {
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  readonly group: number;
  readonly groups: number;
}

/** Names of the tensors of a linear, by its `x.weight`. */
export function gptqParts(weight: string): Record<"codes" | "zeros" | "scales" | "order", string> {
  const part = (name: string): string => partName(weight, name);
  return {
    codes: part("qweight"),
    zeros: part("qzeros"),
    scales: part("scales"),
    order: part("g_idx"),
  };
}

/** Throws: AQ_MODEL, AQ_FORMAT when the tensors are not those of such a linear. */
export function planGptq(checkpoint: Checkpoint, config: GptqConfig, spec: TensorSpec): Plan {
  const names = gptqParts(spec.name);
  const [rows, columns] = spec.shape as [number, number];
  const [words] = matrixSize(checkpoint, names.codes);
  const bits = (words * 32) / columns;
  const allowed = config.mixed ? [2, 3, 4, 8] : [config.bits];
  const expected = `I32 [${columns} x bits / 32, ${rows}] for ${allowed.join(" or ")} bits`;
  if (!allowed.includes(bits)) throw misfit(checkpoint, names.codes, expected);
  checkPart(checkpoint, names.codes, ["I32"], [words, rows]);
  const [groups] = matrixSize(checkpoint, names.scales);
  const group = groupSize(config, columns, groups);
  if (group === null) {
    const count = groupCount(columns, config.group || columns);
    throw misfit(checkpoint, names.scales, `F16 [${count}, ${rows}]`);
  }
  checkPart(checkpoint, names.scales, SCALE_TYPES, [groups, rows]);
  checkPart(checkpoint, names.zeros, ["I32"], [groups, wordCount(rows, bits)]);
  if (checkpoint.has(names.order)) checkPart(checkpoint, names.order, ["I32"], [columns]);
  return { rows, columns, bits, group, groups };
}

/** Columns of a group, or null where their number does not fit. */
function groupSize(config: GptqConfig, columns: number, groups: number): number | null {
  const said = Math.min(columns, config.group || columns);
  if (groupCount(columns, said) === groups) return said;
  return config.mixed && groups > 0 && columns % groups === 0 ? columns / groups : null;
}

/** Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE. */
export function readGptq(
  checkpoint: Checkpoint,
  config: GptqConfig,
  spec: TensorSpec,
): PackedIntegers {
  const { rows, columns, bits, group, groups } = planGptq(checkpoint, config, spec);
  const names = gptqParts(spec.name);
  const words = readWords(checkpoint, names.codes);
  const layout = { streams: rows, stream: 1, word: rows };
  const codes = unpackStreams(words, bits, columns, layout);
  const zeroWords = wordCount(rows, bits);
  const zeros = unpackStreams(readWords(checkpoint, names.zeros), bits, rows, {
    streams: groups,
    stream: zeroWords,
    word: 1,
  });
  if (!codes || !zeros) {
    throw misfit(
      checkpoint,
      zeros ? names.codes : names.zeros,
      "zeros behind the last value",
      "ones",
    );
  }
  const scales = readScales(checkpoint, names.scales);
  // Not masked: readers of version 1 add one to what is stored and so reach 2^b.
  const less = config.version === 1 ? 1 : 0;
  const zero = Float32Array.from(transposed(zeros, groups, rows), (z) => z + less);
  return {
    kind: "integers",
    bits,
    rows,
    columns,
    group,
    codes,
    scale: transposed(scales.values, groups, rows),
    zero,
    scaleType: scales.dtype,
    groupOf: readOrder(checkpoint, names.order, group, groups),
  };
}
