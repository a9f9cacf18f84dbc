/** Counts what a quantized model costs, in bits. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { Model } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import { groupsPerRow } from "../quant/weights.ts";
import type { BitsReport, LinearBits, OtherBits } from "./types.ts";

const SCALE_BITS = 16;

/** What differs between the source and the output beyond the codes. */
export interface BitsExtras {
  /** Matrices that inference applies beside the linears. */
  readonly runtime?: readonly OtherBits[];
  /** Biases that the source does not have. */
  readonly added?: readonly OtherBits[];
  /** The head was tied in the source and is a tensor of its own in the output. */
  readonly untiedHead?: boolean;
}

/**
 * Bits per weight of a scheme on a model: codes, float16 scales, zeros as wide as codes. What stays
 * in full precision is counted apart, in the dtypes of the checkpoint.
 */
export function countBits(
  source: Checkpoint,
  model: Model,
  scheme: QuantScheme,
  extras: BitsExtras = {},
): BitsReport {
  const { blocks } = model.shape;
  const linears = model.linears.map(({ key, out, in: columns }): LinearBits => {
    const weights = blocks * out * columns;
    const groups = blocks * out * groupsPerRow(columns, scheme.groupSize);
    return withRatio({
      linear: key,
      weights,
      codeBits: weights * scheme.wbits,
      scaleBits: groups * SCALE_BITS,
      zeroBits: scheme.symmetric ? 0 : groups * scheme.wbits,
    });
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
  const linearBits = total.codeBits + total.scaleBits + total.zeroBits;
  const runtimeBits = sum(runtime, ({ bits }) => bits);
  const parameters = total.weights + sum(rest, (row) => row.parameters);
  return {
    linears,
    total,
    runtime,
    bitsPerWeight: (linearBits + runtimeBits) / total.weights,
    rest,
    bitsPerParameter: (linearBits + runtimeBits + sum(rest, ({ bits }) => bits)) / parameters,
  };
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
