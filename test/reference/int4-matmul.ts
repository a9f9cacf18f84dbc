// The packed order of at most 4 bits, written from its definition in native/abi/params.h.

import { type Codes, type Packed, type PackedOrder, packInto, unpackFrom } from "./packed.ts";

/** Byte of a row's 64 in a half tile at which the code of a column of it is. */
function byteOf(column: number): number {
  const [k, rest] = [column >> 4, column & 15];
  const [t, i] = [(rest & 7) >> 1, 2 * (rest & 1) + (rest >> 3)];
  return 16 * t + 4 * k + i;
}

const ORDER: PackedOrder = {
  tileColumns: 128,
  top: 15,
  placeOf: (row, column) => [
    512 * (column >> 6) + 64 * (row % 8) + byteOf(column % 64),
    row < 8 ? 1 : 16,
  ],
  slotOf: (row) => 2 * (row % 8) + (row >> 3),
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
