/** Blocks of 32 values along a row, taken apart: what their bits say, without the meaning. */

/** Values of a block. */
export const BLOCK = 32;

export interface Blocks {
  /** [O, I]: nibbles of Q4_0 and Q4_1, signed bytes of Q8_0. */
  readonly codes: Int8Array;
  /** [O, I / 32], float16 bits: the step, and the value of code 0 (Q4_1 alone). */
  readonly d: Uint16Array;
  readonly m: Uint16Array | null;
}

/** Takes blocks apart that follow each other; `bytes` holds a whole number of them. */
export function takeApart(bytes: Uint8Array, type: "Q4_0" | "Q4_1" | "Q8_0"): Blocks {
  const head = type === "Q4_1" ? 4 : 2;
  const size = head + (type === "Q8_0" ? BLOCK : BLOCK / 2);
  const count = bytes.length / size;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const codes = new Int8Array(count * BLOCK);
  const d = new Uint16Array(count);
  const m = type === "Q4_1" ? new Uint16Array(count) : null;
  for (let block = 0; block < count; block++) {
    const at = block * size;
    d[block] = view.getUint16(at, true);
    if (m) m[block] = view.getUint16(at + 2, true);
    const first = block * BLOCK;
    if (type === "Q8_0") {
      for (let j = 0; j < BLOCK; j++) codes[first + j] = view.getInt8(at + head + j);
      continue;
    }
    // Byte j holds value j in its lower half and value j + 16 in its upper one.
    for (let j = 0; j < BLOCK / 2; j++) {
      const byte = bytes[at + head + j] as number;
      codes[first + j] = byte & 15;
      codes[first + BLOCK / 2 + j] = byte >> 4;
    }
  }
  return { codes, d, m };
}
