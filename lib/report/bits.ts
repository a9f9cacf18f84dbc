/** Counts what a quantized model costs, in bits. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { Model } from "../models/family.ts";
import { groupsPerRow, hasGlobalScales, type QuantScheme } from "../quant/scheme.ts";
import type { BitsReport, LinearBits, OtherBits } from "./types.ts";

/** Of a group's scale: float16, or the byte that a format of 4-bit floats has. */
const SCALE_BITS = { integers: 16, floats: 8 } as const;
/** Of the float32 beside each matrix of NVFP4. */
const GLOBAL_BITS = 32;

/** What differs between the source and the output beyond the codes. */
export interface BitsExtras {
  /** Matrices that inference applies beside the linears. */
  readonly runtime?: readonly OtherBits[];
  /** Biases that the source does not have. */
  readonly added?: readonly OtherBits[];
  /** The head was tied in the source and is a tensor of its own in the output. */
  readonly untiedHead?: boolean;
  /** Keys of each block's linears that are not quantized. */
  readonly kept?: readonly ReadonlySet<string>[];
}

/**
 * Bits per weight of a scheme on a model: codes, scales, zeros as wide as codes. What stays in full
 * precision is counted apart, in the dtypes of the checkpoint; linears among it are weights too.
 */
export function countBits(
  source: Checkpoint,
  model: Model,
  scheme: QuantScheme,
  extras: BitsExtras = {},
): BitsReport {
  const kept = countKept(source, model, extras.kept ?? []);
  const linears = model.linears.flatMap(({ key, out, in: columns }): LinearBits[] => {
    const blocks = model.shape.blocks - keptBlocks(key, extras.kept ?? []);
    if (blocks === 0) return [];
    const weights = blocks * out * columns;
    const groups = blocks * out * groupsPerRow(columns, scheme.groupSize);
    const globals = hasGlobalScales(scheme) ? blocks * GLOBAL_BITS : 0;
    const row = {
      linear: key,
      weights,
      codeBits: weights * scheme.wbits,
      scaleBits: groups * SCALE_BITS[scheme.numbers ? "floats" : "integers"] + globals,
      zeroBits: scheme.symmetric ? 0 : groups * scheme.wbits,
    };
    return [withRatio(row)];
  });
  const total = withRatio({
    linear: "all linears",
    weights: sum(linears, (row) => row.weights),
    codeBits: sum(linears, (row) => row.codeBits),
    scaleBits: sum(linears, (row) => row.scaleBits),
    zeroBits: sum(linears, (row) => row.zeroBits),
  });
  const runtime = extras.runtime ?? [];
  const rest = [...countRest(source, model, extras.untiedHead ?? false), ...(extras.added ?? [])];
  const ofRows = (rows: readonly OtherBits[]): number => sum(rows, ({ bits }) => bits);
  const weightBits =
    total.codeBits + total.scaleBits + total.zeroBits + ofRows(kept) + ofRows(runtime);
  const weights = total.weights + sum(kept, (row) => row.parameters);
  const parameters = weights + sum(rest, (row) => row.parameters);
  return {
    linears,
    total,
    kept,
    runtime,
    bitsPerWeight: weightBits / weights,
    rest,
    bitsPerParameter: (weightBits + ofRows(rest)) / parameters,
  };
}

function keptBlocks(key: string, kept: readonly ReadonlySet<string>[]): number {
  return kept.filter((keys) => keys.has(key)).length;
}

/** Linears that are not quantized, over all blocks. */
function countKept(
  source: Checkpoint,
  model: Model,
  kept: readonly ReadonlySet<string>[],
): OtherBits[] {
  return model.linears.flatMap(({ key, out, in: columns }): OtherBits[] => {
    const blocks = keptBlocks(key, kept);
    if (blocks === 0) return [];
    const name = model.blockTensors(0).find((spec) => spec.key === key)?.name ?? key;
    const size = out * columns;
    const bits = (8 * source.info(name).bytes) / size;
    return [{ name: key, parameters: blocks * size, bits: blocks * size * bits }];
  });
}

function countRest(source: Checkpoint, model: Model, untiedHead: boolean): OtherBits[] {
  const linears = new Set(model.linears.map(({ key }) => key));
  const rows = new Map<string, { parameters: number; bits: number }>();
  const add = (row: string, name: string): void => {
    const { shape, bytes } = source.info(name);
    const count = rows.get(row) ?? { parameters: 0, bits: 0 };
    count.parameters += shape.reduce((product, d) => product * d, 1);
    count.bits += 8 * bytes;
    rows.set(row, count);
  };
  for (const { key, name, shape } of model.outerTensors()) {
    if (shape.length < 2) add("norms, biases", name);
    else add(key === "head" ? "head" : "embeddings", name);
    if (key === "embedding" && untiedHead) add("head, tied in the source", name);
  }
  for (let i = 0; i < model.shape.blocks; i++) {
    for (const { key, name } of model.blockTensors(i)) {
      if (!linears.has(key)) add("norms, biases", name);
    }
  }
  return [...rows].map(([name, count]) => ({ name, ...count }));
}

function withRatio(row: Omit<LinearBits, "bitsPerWeight">): LinearBits {
  return { ...row, bitsPerWeight: (row.codeBits + row.scaleBits + row.zeroBits) / row.weights };
}

function sum<T>(rows: readonly T[], of: (row: T) => number): number {
  return rows.reduce((total, row) => total + of(row), 0);
}
