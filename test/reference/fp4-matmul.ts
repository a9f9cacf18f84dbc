// Packed 4-bit floats in float64: codes in the order of int4_pack, and the bytes of their scales in the
// order of its scales, written from their definitions in native/abi/params.h.
import { e2m1, groupSize } from "./fp4.ts";
import { pack as packCodes, unpack as unpackCodes } from "./int4-matmul.ts";
import { at } from "./numbers.ts";

const TILE_ROWS = 16;

/** A matrix of codes [O, I] with a scale per row and group. */
export interface Fp4Codes {
  readonly O: number;
  readonly I: number;
  readonly format: number;
  readonly codes: Float64Array;
  readonly scale: Float64Array;
}

/** The two outputs of fp4_pack and their shapes. */
export interface PackedFp4 {
  readonly codes: Float64Array;
  readonly codesShape: readonly number[];
  readonly scale: Float64Array;
  readonly scaleShape: readonly number[];
}

/** The number of a scale's byte: e4m3fn (format 0) or e8m0. */
export function scaleOfByte(byte: number, format: number): number {
  if (format === 1) return byte === 255 ? Number.NaN : 2 ** (byte - 127);
  if (byte === 0x7f) return Number.NaN;
  const [exponent, fraction] = [byte >> 3, byte & 7];
  return exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10);
}

/** The byte of a scale that one holds exactly. */
function byteOfScale(scale: number, format: number): number {
  for (let byte = 0; byte < (format === 1 ? 256 : 128); byte++) {
    if (Object.is(scaleOfByte(byte, format), scale)) return byte;
  }
  throw new Error(`no scale of format ${format} is ${scale}`);
}

/** Codes and scales in the packed order; what is beyond the matrix is zero. */
export function packFp4({ O, I, format, codes, scale }: Fp4Codes): PackedFp4 {
  const group = groupSize(format);
  const bytes = new Map(
    [...new Set(scale)].map((value) => [value, byteOfScale(value, format)] as const),
  );
  const packed = pack4(codes, { O, I, group });
  const groups = I / group;
  const scaleShape = [Math.ceil(O / TILE_ROWS), groups, TILE_ROWS];
  const packedScale = Float64Array.from({ length: packed.scale.length }, (_, index) => {
    const [tileRow, slot] = [Math.floor(index / (groups * TILE_ROWS)), index % TILE_ROWS];
    const row = tileRow * TILE_ROWS + (slot >> 1) + 8 * (slot & 1);
    const g = Math.floor(index / TILE_ROWS) % groups;
    return row < O ? (bytes.get(at(scale, row * groups + g)) ?? Number.NaN) : 0;
  });
  return { codes: packed.codes, codesShape: packed.codesShape, scale: packedScale, scaleShape };
}

/** Codes alone in int4_pack's order. */
function pack4(
  codes: Float64Array,
  { O, I, group }: { readonly O: number; readonly I: number; readonly group: number },
): { readonly codes: Float64Array; readonly codesShape: readonly number[]; scale: Float64Array } {
  const grid = new Float64Array((O * I) / group);
  return packCodes({ O, I, group, codes, scale: grid, zero: grid });
}

/** The inverse: the weights q s, [O, I]. */
export function unpackFp4(
  packed: { readonly codes: Float64Array; readonly scale: Float64Array },
  { O, I, format }: { readonly O: number; readonly I: number; readonly format: number },
): Float64Array {
  const group = groupSize(format);
  const groups = I / group;
  const ones = new Float64Array(packed.scale.length).fill(1);
  const zeros = new Float64Array(packed.scale.length);
  const codes = unpackCodes({ codes: packed.codes, scale: ones, zero: zeros }, { O, I, group });
  return codes.map((code, index) => {
    const [row, column] = [Math.floor(index / I), index % I];
    const r = row % TILE_ROWS;
    const g = Math.floor(column / group);
    const slot = (Math.floor(row / TILE_ROWS) * groups + g) * TILE_ROWS + (r % 8) * 2 + (r >> 3);
    return e2m1(code) * scaleOfByte(at(packed.scale, slot), format);
  });
}
