/**
 * Rows of a quantized matrix as blocks of 32 weights, the way ggml lays them out.
 *
 *     Q4_0  f16 d, 16 bytes of nibbles            w = (n - 8) d
 *     Q4_1  f16 d, f16 m, 16 bytes of nibbles     w = n d + m
 *     Q8_0  f16 d, 32 signed bytes                w = n d
 *
 * Byte j of the nibbles holds weight j in its lower half and weight j + 16 in its upper one. Groups are
 * multiples of 32 or whole rows, so that every block lies in one. Source: ggml-quants.c.
 */

import type { Float4Name } from "../autograd/float4.ts";
import { FLOAT4_MAGNITUDES } from "../quant/float4.ts";
import { scaleValues } from "../quant/quantizers.ts";
import { halfValues, toHalf } from "../util/half.ts";
import type { ChangeMeter } from "./change.ts";
import { GGML_TYPES } from "./gguf-file.ts";
import type { StoredLinear } from "./run.ts";

/** Parts of a linear in memory. */
export interface LinearParts {
  readonly linear: StoredLinear;
  readonly codes: Uint8Array;
  /** Bits of float16. */
  readonly scales: Uint16Array;
  readonly zeros: Uint8Array | Float32Array;
}

/** Parts of a linear of 4-bit floats in memory. */
export interface FloatParts {
  readonly linear: StoredLinear;
  readonly numbers: Float4Name;
  readonly codes: Uint8Array;
  readonly scaleBytes: Uint8Array;
  /** g; 1 where the format has none. */
  readonly global: number;
}

/** Row of the checkpoint that becomes row r of the file. */
export type RowOrder = (row: number) => number;

export const SAME_ROWS: RowOrder = (row) => row;

/**
 * llama.cpp turns neighbouring values of a head by one angle, where transformers turns value j and
 * j + D/2: row h D + 2 j + t of the file is row h D + t D/2 + j.
 */
export function ropeRows(headDim: number): RowOrder {
  return (row) => {
    const within = row % headDim;
    return row - within + (within % 2) * (headDim / 2) + Math.floor(within / 2);
  };
}

/** Rows that are converted and held at a time. */
const ROWS = 256;

type BlockType = "Q4_0" | "Q4_1" | "Q8_0";

/** The rows in a block type, in pieces; `meter` hears what the type's minimum rounds. */
export function* blockRows(
  parts: LinearParts,
  type: BlockType,
  order: RowOrder,
  meter: ChangeMeter,
): Generator<Uint8Array> {
  const { rows, columns, group, groups } = parts.linear;
  const rowBytes = (columns / 32) * GGML_TYPES[type].bytes;
  const fill = { Q4_0: fillQ40, Q4_1: fillQ41, Q8_0: fillQ80 }[type];
  const values = halfValues();
  const sums = { largest: 0, weight: 0, difference: 0, size: 0 };
  for (let top = 0; top < rows; top += ROWS) {
    const count = Math.min(ROWS, rows - top);
    const piece = new Uint8Array(count * rowBytes);
    let at = 0;
    for (let row = top; row < top + count; row++) {
      const from = order(row);
      for (let column = 0; column < columns; column += 32) {
        const g = from * groups + Math.floor(column / group);
        const bits = parts.scales[g] as number;
        const zero = parts.zeros[g] as number;
        at = fill(piece, at, parts.codes, from * columns + column, bits, zero);
        if (type === "Q4_1")
          measure(sums, parts.codes, from * columns + column, zero, values[bits] as number);
      }
    }
    yield piece;
  }
  meter.add(sums);
}

function fillQ40(
  out: Uint8Array,
  at: number,
  codes: Uint8Array,
  from: number,
  scale: number,
  zero: number,
): number {
  out[at] = scale & 255;
  out[at + 1] = scale >> 8;
  const shift = 8 - zero;
  for (let j = 0; j < 16; j++) {
    const low = (codes[from + j] as number) + shift;
    out[at + 2 + j] = low | (((codes[from + j + 16] as number) + shift) << 4);
  }
  return at + 18;
}

function fillQ41(
  out: Uint8Array,
  at: number,
  codes: Uint8Array,
  from: number,
  scale: number,
  zero: number,
): number {
  const minimum = minimumOf(scale, zero);
  out[at] = scale & 255;
  out[at + 1] = scale >> 8;
  out[at + 2] = minimum & 255;
  out[at + 3] = minimum >> 8;
  for (let j = 0; j < 16; j++) {
    out[at + 4 + j] = (codes[from + j] as number) | ((codes[from + j + 16] as number) << 4);
  }
  return at + 20;
}

/** The value of code 0 as float16. */
function minimumOf(scale: number, zero: number): number {
  return toHalf(-zero * (halfValues()[scale] as number));
}

function fillQ80(
  out: Uint8Array,
  at: number,
  codes: Uint8Array,
  from: number,
  scale: number,
  zero: number,
): number {
  out[at] = scale & 255;
  out[at + 1] = scale >> 8;
  for (let j = 0; j < 32; j++) out[at + 2 + j] = (codes[from + j] as number) - zero;
  return at + 34;
}

interface Sums {
  largest: number;
  weight: number;
  difference: number;
  size: number;
}

/** All weights of a block are off by the rounding of its minimum. */
function measure(sums: Sums, codes: Uint8Array, from: number, zero: number, scale: number): void {
  const exact = -zero * scale;
  const off = Math.abs(exact - (halfValues()[toHalf(exact)] as number));
  if (off > sums.largest) sums.largest = off;
  sums.difference += 32 * off * off;
  for (let j = 0; j < 32; j++) {
    const w = ((codes[from + j] as number) - zero) * scale;
    sums.size += w * w;
    if (Math.abs(w) > sums.weight) sums.weight = Math.abs(w);
  }
}

/** The rows dequantized, as float32, in pieces of whole rows. */
export function dequantizedRows(parts: LinearParts, order: RowOrder): Generator<Float32Array> {
  const { columns, group, groups } = parts.linear;
  const values = halfValues();
  return rowPieces(parts, order, (row, from) => {
    for (let g = 0; g < groups; g++) {
      const scale = values[parts.scales[from * groups + g] as number] as number;
      const zero = parts.zeros[from * groups + g] as number;
      const end = Math.min(columns, (g + 1) * group);
      for (let i = g * group; i < end; i++) {
        row[i] = ((parts.codes[from * columns + i] as number) - zero) * scale;
      }
    }
  });
}

/** The same of 4-bit floats. */
export function floatRows(parts: FloatParts, order: RowOrder): Generator<Float32Array> {
  const { numbers, codes, global } = parts;
  const { columns, group, groups } = parts.linear;
  const scales = scaleValues(parts.scaleBytes, numbers).map((scale) => scale / global);
  const values = [...FLOAT4_MAGNITUDES, ...FLOAT4_MAGNITUDES.map((x) => -x)];
  return rowPieces(parts, order, (row, from) => {
    for (let i = 0; i < columns; i++) {
      const scale = scales[from * groups + Math.floor(i / group)] as number;
      row[i] = (values[codes[from * columns + i] as number] as number) * scale;
    }
  });
}

/** Pieces of whole rows, each of which `fill` makes of the linear's row `from`. */
function* rowPieces(
  { linear: { rows, columns } }: Pick<LinearParts, "linear">,
  order: RowOrder,
  fill: (row: Float32Array, from: number) => void,
): Generator<Float32Array> {
  for (let top = 0; top < rows; top += ROWS) {
    const count = Math.min(ROWS, rows - top);
    const piece = new Float32Array(count * columns);
    for (let i = 0; i < count; i++) {
      fill(piece.subarray(i * columns, (i + 1) * columns), order(top + i));
    }
    yield piece;
  }
}

/** Rows of plain numbers in the order. */
export function orderedRows(
  numbers: Float32Array,
  columns: number,
  order: RowOrder,
): Float32Array<ArrayBuffer> {
  const ordered = new Float32Array(numbers.length);
  for (let row = 0; row * columns < numbers.length; row++) {
    const from = order(row) * columns;
    ordered.set(numbers.subarray(from, from + columns), row * columns);
  }
  return ordered;
}
