/** Bits of packed tensors, read one by one as the layouts describe them, without the package's code. */

/** Value k of a bit stream: bits [k b, (k + 1) b) of words that lie `step` apart. */
export function streamValue(
  words: ArrayLike<number>,
  start: number,
  step: number,
  k: number,
  bits: number,
): number {
  let value = 0;
  for (let j = 0; j < bits; j++) {
    const bit = k * bits + j;
    const word = words[start + Math.floor(bit / 32) * step] as number;
    value += ((word >>> (bit % 32)) & 1) * 2 ** j;
  }
  return value;
}

/** The same of bytes. */
export function byteStreamValue(bytes: Uint8Array, start: number, k: number, bits: number): number {
  let value = 0;
  for (let j = 0; j < bits; j++) {
    const bit = k * bits + j;
    value += (((bytes[start + Math.floor(bit / 8)] as number) >> (bit % 8)) & 1) * 2 ** j;
  }
  return value;
}

/** Column o of an AWQ word row: eight columns to a word, in AWQ's order. */
export function awqValue(words: ArrayLike<number>, row: number, perRow: number, o: number): number {
  const nibble = [0, 4, 1, 5, 2, 6, 3, 7][o % 8] as number;
  const word = words[row * perRow + Math.floor(o / 8)] as number;
  return (word >>> (4 * nibble)) & 15;
}

/** 32-bit words of a tensor's bytes. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(Uint8Array.from(bytes).buffer);
}
