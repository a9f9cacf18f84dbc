// Packed weights of at most 8 bits in float64: the packed order, written from its definition in
// native/abi/params.h.

import type { Codes, Packed } from "./int4-matmul.ts";
import { at } from "./numbers.ts";
import { groupCount } from "./quantize.ts";

const TILE_ROWS = 16;
const TILE_COLUMNS = 64;
const TILE_BYTES = 1024;
const TOP = 255;

/** Codes and grid in the packed order; what is beyond the matrix is zero. */
export function pack({ O, I, group, codes, scale, zero }: Codes): Packed {
  const [tileRows, tiles] = [Math.ceil(O / TILE_ROWS), Math.ceil(I / TILE_COLUMNS)];
  const groups = groupCount({ M: O, K: I, group });
  const codesShape = [tileRows, tiles, TILE_BYTES];
  const gridShape = [tileRows, groups, TILE_ROWS];
  const packed = Float64Array.from({ length: tileRows * tiles * TILE_BYTES }, (_, index) => {
    const [tile, byte] = [Math.floor(index / TILE_BYTES), index % TILE_BYTES];
    const row = Math.floor(tile / tiles) * TILE_ROWS + Math.floor(byte / TILE_COLUMNS);
    const column = (tile % tiles) * TILE_COLUMNS + (byte % TILE_COLUMNS);
    return row < O && column < I ? at(codes, row * I + column) : 0;
  });
  const grid = (of: Float64Array) =>
    Float64Array.from({ length: tileRows * groups * TILE_ROWS }, (_, index) => {
      const row = Math.floor(index / (groups * TILE_ROWS)) * TILE_ROWS + (index % TILE_ROWS);
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
  return Float64Array.from({ length: O * I }, (_, index) => {
    const [row, column] = [Math.floor(index / I), index % I];
    const [tileRow, r] = [Math.floor(row / TILE_ROWS), row % TILE_ROWS];
    const tile = tileRow * tiles + Math.floor(column / TILE_COLUMNS);
    const byte = tile * TILE_BYTES + r * TILE_COLUMNS + (column % TILE_COLUMNS);
    const g = group > 0 ? Math.floor(column / group) : 0;
    const slot = (tileRow * groups + g) * TILE_ROWS + r;
    return (at(packed.codes, byte) - at(packed.zero, slot)) * at(packed.scale, slot);
  });
}
