// Packed weights of at most 4 bits in float64: the packed order, written from its definition in
// native/abi/params.h, and the product by the plain formula.

import { at } from "./numbers.ts";
import { groupCount } from "./quantize.ts";

const TILE_ROWS = 16;
const TILE_COLUMNS = 128;
const TILE_BYTES = 1024;
const ROW_BYTES = 64;
const TOP = 15;

/** A matrix of codes [O, I] with a grid per row and group. */
export interface Codes {
  readonly O: number;
  readonly I: number;
  readonly group: number;
  readonly codes: Float64Array;
  readonly scale: Float64Array;
  readonly zero: Float64Array;
}

/** The three outputs of int4_pack and their shapes. */
export interface Packed {
  readonly codes: Float64Array;
  readonly codesShape: readonly number[];
  readonly scale: Float64Array;
  readonly zero: Float64Array;
  readonly gridShape: readonly number[];
}

/** Column of a half tile (64 columns) whose code is byte `b` of its row's 64. */
function columnOf(b: number): number {
  const [t, k, i] = [b >> 4, (b >> 2) & 3, b & 3];
  return 16 * k + 2 * t + at(Float64Array.of(0, 8, 1, 9), i);
}

/** Codes and grid in the packed order; what is beyond the matrix is zero. */
export function pack({ O, I, group, codes, scale, zero }: Codes): Packed {
  const [tileRows, tiles] = [Math.ceil(O / TILE_ROWS), Math.ceil(I / TILE_COLUMNS)];
  const groups = groupCount({ M: O, K: I, group });
  const codesShape = [tileRows, tiles, TILE_BYTES];
  const gridShape = [tileRows, groups, TILE_ROWS];
  const codeAt = (row: number, column: number) =>
    row < O && column < I ? Math.min(TOP, at(codes, row * I + column)) : 0;
  const packed = Float64Array.from({ length: tileRows * tiles * TILE_BYTES }, (_, index) => {
    const [tile, byte] = [Math.floor(index / TILE_BYTES), index % TILE_BYTES];
    const [half, inHalf] = [byte >> 9, byte & 511];
    const row = Math.floor(tile / tiles) * TILE_ROWS + (inHalf >> 6);
    const column = (tile % tiles) * TILE_COLUMNS + half * 64 + columnOf(inHalf % ROW_BYTES);
    return codeAt(row, column) + 16 * codeAt(row + 8, column);
  });
  const grid = (of: Float64Array) =>
    Float64Array.from({ length: tileRows * groups * TILE_ROWS }, (_, index) => {
      const [tileRow, slot] = [Math.floor(index / (groups * TILE_ROWS)), index % TILE_ROWS];
      const row = tileRow * TILE_ROWS + (slot >> 1) + 8 * (slot & 1);
      return row < O ? at(of, row * groups + (Math.floor(index / TILE_ROWS) % groups)) : 0;
    });
  const clamped = zero.map((z) => Math.min(TOP, Math.max(0, z)));
  return { codes: packed, codesShape, scale: grid(scale), zero: grid(clamped), gridShape };
}

/** The inverse of pack: the weights (code - zero) scale, [O, I]. */
export function unpack(
  packed: {
    readonly codes: Float64Array;
    readonly scale: Float64Array;
    readonly zero: Float64Array;
  },
  sizes: { readonly O: number; readonly I: number; readonly group: number },
): Float64Array {
  const { O, I, group } = sizes;
  const tiles = Math.ceil(I / TILE_COLUMNS);
  const groups = groupCount({ M: O, K: I, group });
  const places = new Map(Array.from({ length: ROW_BYTES }, (_, b) => [columnOf(b), b] as const));
  return Float64Array.from({ length: O * I }, (_, index) => {
    const [row, column] = [Math.floor(index / I), index % I];
    const [tileRow, r] = [Math.floor(row / TILE_ROWS), row % TILE_ROWS];
    const tile = tileRow * tiles + Math.floor(column / TILE_COLUMNS);
    const half = (column % TILE_COLUMNS) >> 6;
    const byte = at(
      packed.codes,
      tile * TILE_BYTES + half * 512 + (r % 8) * ROW_BYTES + (places.get(column % 64) ?? 0),
    );
    const code = r < 8 ? byte % 16 : Math.floor(byte / 16);
    const g = group > 0 ? Math.floor(column / group) : 0;
    const slot = (tileRow * groups + g) * TILE_ROWS + (r % 8) * 2 + (r >> 3);
    return (code - at(packed.zero, slot)) * at(packed.scale, slot);
  });
}
