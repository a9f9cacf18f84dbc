/**
 * Codes of b bits out of 32-bit words. In a bit stream value k is bits [k b, k b + b) of the words' bits,
 * the lowest bit of the first word first; a value may begin in one word and end in the next.
 */

/** Several streams side by side: word w of stream s is words[s * stream + w * word]. */
export interface StreamLayout {
  readonly streams: number;
  /** Distance of the first words of neighbouring streams. */
  readonly stream: number;
  /** Distance of a stream's words. */
  readonly word: number;
}

/** Words that `count` values take. */
export function wordCount(count: number, bits: number): number {
  return Math.ceil((count * bits) / 32);
}

/**
 * `count` values of every stream, stream after stream, or null when a bit behind the last value is not
 * zero: such words were not written by anybody who packs.
 */
export function unpackStreams(
  words: Uint32Array,
  bits: number,
  count: number,
  layout: StreamLayout,
): Uint8Array<ArrayBuffer> | null {
  const codes = new Uint8Array(layout.streams * count);
  const mask = 2 ** bits - 1;
  const used = (count * bits) % 32;
  const last = wordCount(count, bits) - 1;
  // Values of a run of words are taken for all streams before the next run, so that both the words of
  // neighbouring streams and the values of one lie close together.
  const run = 32;
  for (let first = 0; first < count; first += run) {
    const end = Math.min(count, first + run);
    for (let s = 0; s < layout.streams; s++) {
      const start = s * layout.stream;
      for (let k = first; k < end; k++) {
        const bit = k * bits;
        const at = start + (bit >>> 5) * layout.word;
        const shift = bit & 31;
        let value = (words[at] as number) >>> shift;
        if (shift + bits > 32) value |= (words[at + layout.word] as number) << (32 - shift);
        codes[s * count + k] = value & mask;
      }
    }
  }
  if (used > 0) {
    for (let s = 0; s < layout.streams; s++) {
      if ((words[s * layout.stream + last * layout.word] as number) >>> used !== 0) return null;
    }
  }
  return codes;
}

/**
 * The same for words that hold floor(32 / b) whole values each, as compressed-tensors packed 3, 5, 6 and
 * 7 bits before version 0.18. The words of a stream follow each other.
 */
export function unpackPadded(
  words: Uint32Array,
  bits: number,
  count: number,
  streams: number,
): Uint8Array<ArrayBuffer> | null {
  const perWord = Math.floor(32 / bits);
  const wordsPerStream = Math.ceil(count / perWord);
  const mask = 2 ** bits - 1;
  const codes = new Uint8Array(streams * count);
  for (let s = 0; s < streams; s++) {
    for (let w = 0; w < wordsPerStream; w++) {
      let word = words[s * wordsPerStream + w] as number;
      const values = Math.min(perWord, count - w * perWord);
      for (let k = 0; k < values; k++) {
        codes[s * count + w * perWord + k] = word & mask;
        word >>>= bits;
      }
      if (word !== 0) return null;
    }
  }
  return codes;
}

/**
 * The same for streams that begin at whole bytes, each filled up with zero bits to its last one: the
 * streams follow each other.
 */
export function unpackBytes(
  bytes: Uint8Array,
  bits: number,
  count: number,
  streams: number,
): Uint8Array<ArrayBuffer> | null {
  const perStream = Math.ceil((count * bits) / 8);
  const used = (count * bits) % 8;
  const mask = 2 ** bits - 1;
  const codes = new Uint8Array(streams * count);
  for (let s = 0; s < streams; s++) {
    const start = s * perStream;
    for (let k = 0; k < count; k++) {
      const bit = k * bits;
      const at = start + (bit >>> 3);
      const shift = bit & 7;
      let value = (bytes[at] as number) >>> shift;
      if (shift + bits > 8) value |= (bytes[at + 1] as number) << (8 - shift);
      codes[s * count + k] = value & mask;
    }
    if (used > 0 && (bytes[start + perStream - 1] as number) >>> used !== 0) return null;
  }
  return codes;
}
