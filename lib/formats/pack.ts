/**
 * Codes as bits. In a *bit stream* value k lies in bits [k b, (k + 1) b) of a little-endian string that
 * is cut into words of 32 bits; the last word is filled up with zeros. GPTQ packs so down the columns,
 * compressed-tensors along the rows, and AWQ along the rows with its own order of eight columns.
 */

/** Words of a bit stream. */
export function streamWords(count: number, bits: number): number {
  return Math.ceil((count * bits) / 32);
}

/** Each row of `codes` [rows, columns] as a bit stream: [rows, words]. */
export function packRows(
  codes: Uint8Array,
  rows: number,
  columns: number,
  bits: number,
): Uint32Array {
  const words = streamWords(columns, bits);
  const packed = new Uint32Array(rows * words);
  for (let row = 0; row < rows; row++) {
    let at = row * words;
    let word = 0;
    let filled = 0;
    const end = (row + 1) * columns;
    for (let i = row * columns; i < end; i++) {
      const code = codes[i] as number;
      word |= code << filled;
      filled += bits;
      if (filled >= 32) {
        packed[at++] = word;
        filled -= 32;
        // What did not fit: the upper `filled` bits of the code.
        word = filled > 0 ? code >>> (bits - filled) : 0;
      }
    }
    if (filled > 0) packed[at] = word;
  }
  return packed;
}

/** The same cut into bytes, each row filled up to a whole byte: [rows, ceil(columns bits / 8)]. */
export function packRowBytes(
  codes: Uint8Array,
  rows: number,
  columns: number,
  bits: number,
): Uint8Array {
  const words = packRows(codes, rows, columns, bits);
  const perRow = streamWords(columns, bits) * 4;
  const wanted = Math.ceil((columns * bits) / 8);
  const all = bytesOf(words);
  if (wanted === perRow) return all;
  const cut = new Uint8Array(rows * wanted);
  for (let row = 0; row < rows; row++) {
    cut.set(all.subarray(row * perRow, row * perRow + wanted), row * wanted);
  }
  return cut;
}

/** Edge of the squares in which matrices are turned: both sides stay in the cache. */
const TILE = 64;

type Numbers = Uint8Array | Uint16Array | Uint32Array | Float32Array;

/** `data` [rows, columns] as [columns, rows]. */
export function transposed<A extends Numbers>(data: A, rows: number, columns: number): A {
  const turned = new (data.constructor as new (length: number) => A)(data.length);
  for (let top = 0; top < rows; top += TILE) {
    const bottom = Math.min(rows, top + TILE);
    for (let left = 0; left < columns; left += TILE) {
      const right = Math.min(columns, left + TILE);
      for (let row = top; row < bottom; row++) {
        for (let column = left; column < right; column++) {
          turned[column * rows + row] = data[row * columns + column] as number;
        }
      }
    }
  }
  return turned;
}

/** Which of eight neighbouring columns lies in nibble k of a word. Source: AutoAWQ's gemm layout. */
const AWQ_ORDER: readonly number[] = [0, 2, 4, 6, 1, 3, 5, 7];

/** Rows of `codes` [O, I] become columns, eight to a word in AWQ's order: [I, O / 8]. O is 8 k. */
export function packAwq(codes: Uint8Array, rows: number, columns: number): Uint32Array {
  const words = rows / 8;
  const packed = new Uint32Array(columns * words);
  for (let left = 0; left < columns; left += TILE) {
    const right = Math.min(columns, left + TILE);
    for (let word = 0; word < words; word++) {
      for (const [nibble, source] of AWQ_ORDER.entries()) {
        const from = (8 * word + source) * columns;
        for (let i = left; i < right; i++) {
          const at = i * words + word;
          packed[at] = (packed[at] as number) | ((codes[from + i] as number) << (4 * nibble));
        }
      }
    }
  }
  return packed;
}

/** The bytes of an array as they lie in memory, without a copy. */
export function bytesOf(data: ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}
