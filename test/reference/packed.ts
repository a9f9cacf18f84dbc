// Packed weights in float64: codes, scales and zeros into tiles of 16 rows and back, in whatever order
// the bytes of a tile have.

import { at } from "./numbers.ts";
import { groupCount } from "./quantize.ts";

const TILE_ROWS = 16;
const TILE_BYTES = 1024;

/** A matrix of codes [O, I] with a grid per row and group. */
export interface Codes {
  readonly O: number;
  readonly I: number;
  readonly group: number;
  readonly codes: Float64Array;
  readonly scale: Float64Array;
  readonly zero: Float64Array;
}

/** The three outputs of a packing op and their shapes. */
export interface Packed {
  readonly codes: Float64Array;
  readonly codesShape: readonly number[];
  readonly scale: Float64Array;
  readonly zero: Float64Array;
  readonly gridShape: readonly number[];
}

/** Where a tile has what, and the largest code and zero that it holds. */
export interface PackedOrder {
  readonly tileColumns: number;
  readonly top: number;
  /** The byte of a code, and what a 1 of it adds to that. */
  readonly placeOf: (row: number, column: number) => readonly [byte: number, unit: number];
  /** Where among the 16 of a group a row's scale and zero are. */
  readonly slotOf: (row: number) => number;
}

/** Codes and grid in the packed order; what is beyond the matrix is zero. */
export function packInto(
  { tileColumns, top, placeOf, slotOf }: PackedOrder,
  { O, I, group, codes, scale, zero }: Codes,
): Packed {
  const [tileRows, tiles] = [Math.ceil(O / TILE_ROWS), Math.ceil(I / tileColumns)];
  const groups = groupCount({ M: O, K: I, group });
  const codesShape = [tileRows, tiles, TILE_BYTES];
  const gridShape = [tileRows, groups, TILE_ROWS];
  const packed = new Float64Array(tileRows * tiles * TILE_BYTES);
  codes.forEach((code, index) => {
    const [row, column] = [Math.floor(index / I), index % I];
    const tile = Math.floor(row / TILE_ROWS) * tiles + Math.floor(column / tileColumns);
    const [byte, unit] = placeOf(row % TILE_ROWS, column % tileColumns);
    const place = tile * TILE_BYTES + byte;
    packed[place] = at(packed, place) + unit * Math.min(top, code);
  });
  const grid = (of: Float64Array) => {
    const slots = new Float64Array(tileRows * groups * TILE_ROWS);
    of.forEach((value, index) => {
      const [row, g] = [Math.floor(index / groups), index % groups];
      const first = (Math.floor(row / TILE_ROWS) * groups + g) * TILE_ROWS;
      slots[first + slotOf(row % TILE_ROWS)] = value;
    });
    return slots;
  };
  const clamped = zero.map((z) => Math.min(top, Math.max(0, z)));
  return { codes: packed, codesShape, scale: grid(scale), zero: grid(clamped), gridShape };
}

/** The inverse of packInto: the weights (code - zero) scale, [O, I]. */
export function unpackFrom(
  { tileColumns, top, placeOf, slotOf }: PackedOrder,
  packed: Pick<Packed, "codes" | "scale" | "zero">,
  { O, I, group }: { readonly O: number; readonly I: number; readonly group: number },
): Float64Array {
  const tiles = Math.ceil(I / tileColumns);
  const groups = groupCount({ M: O, K: I, group });
  return Float64Array.from({ length: O * I }, (_, index) => {
    const [row, column] = [Math.floor(index / I), index % I];
    const tileRow = Math.floor(row / TILE_ROWS);
    const tile = tileRow * tiles + Math.floor(column / tileColumns);
    const [byte, unit] = placeOf(row % TILE_ROWS, column % tileColumns);
    const code = Math.floor(at(packed.codes, tile * TILE_BYTES + byte) / unit) % (top + 1);
    const g = group > 0 ? Math.floor(column / group) : 0;
    const slot = (tileRow * groups + g) * TILE_ROWS + slotOf(row % TILE_ROWS);
    return (code - at(packed.zero, slot)) * at(packed.scale, slot);
  });
}
