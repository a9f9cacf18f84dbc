// The packed order of at most 8 bits, written from its definition in native/abi/params.h.

import { type Codes, type Packed, type PackedOrder, packInto, unpackFrom } from "./packed.ts";

const TILE_COLUMNS = 64;

const ORDER: PackedOrder = {
  tileColumns: TILE_COLUMNS,
  top: 255,
  placeOf: (row, column) => [row * TILE_COLUMNS + column, 1],
  slotOf: (row) => row,
};

/** Codes and grid in the packed order; what is beyond the matrix is zero. */
export function pack(codes: Codes): Packed {
  return packInto(ORDER, codes);
}

/** The inverse of pack: the weights (code - zero) scale, [O, I]. */
export function unpack(
  packed: Pick<Packed, "codes" | "scale" | "zero">,
  sizes: { readonly O: number; readonly I: number; readonly group: number },
): Float64Array {
  return unpackFrom(ORDER, packed, sizes);
}
