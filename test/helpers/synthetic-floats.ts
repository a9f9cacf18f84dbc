/** Random matrices of 4-bit floats, and what they stand for, from the description of the formats alone. */

export type FloatName = "nvfp4" | "mxfp4";

export interface SyntheticFloats {
  readonly numbers: FloatName;
  readonly group: number;
  readonly codes: Uint8Array;
  readonly scaleBytes: Uint8Array;
  /** NVFP4 alone. */
  readonly global: number | null;
  readonly input: number | null;
}

/** Codes that are made: 8 would be a second zero. */
const ALL = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15];

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** What a code stands for. */
export function codeValue(code: number): number {
  return (code & 8 ? -1 : 1) * (E2M1[code & 7] as number);
}

/** What a scale's byte stands for: e4m3fn, or a power of two. */
export function scaleValue(byte: number, numbers: FloatName): number {
  if (numbers === "mxfp4") return 2 ** (byte - 127);
  const [exponent, fraction] = [(byte >> 3) & 15, byte & 7];
  return exponent > 0 ? (1 + fraction / 8) * 2 ** (exponent - 7) : (fraction / 8) * 2 ** -6;
}

/** Every value in float32: q (s / g). */
export function floatMatrix(
  { numbers, group, codes, scaleBytes, global }: SyntheticFloats,
  columns: number,
): Float32Array {
  const groups = columns / group;
  return Float32Array.from(codes, (code, at) => {
    const g = Math.floor(at / columns) * groups + Math.floor((at % columns) / group);
    const step = Math.fround(scaleValue(scaleBytes[g] as number, numbers) / (global ?? 1));
    return codeValue(code) * step;
  });
}

/** With a group of zeros, subnormal scales, and the largest one; as in runs, zero has one code. */
export function randomFloats(
  rows: number,
  columns: number,
  numbers: FloatName,
  input: number | null,
  random: () => number,
): SyntheticFloats {
  const isNvfp4 = numbers === "nvfp4";
  const group = isNvfp4 ? 16 : 32;
  const below = (n: number): number => Math.floor(n * random());
  const edges = isNvfp4 ? [1, 5, 0x7e] : [60, 1, 140];
  const [least, range] = isNvfp4 ? [8, 0x70] : [110, 10];
  return {
    numbers,
    group,
    codes: Uint8Array.from({ length: rows * columns }, (_, at) =>
      at < group ? 0 : (ALL[below(15)] as number),
    ),
    scaleBytes: Uint8Array.from(
      { length: (rows * columns) / group },
      (_, at) => edges[at] ?? least + below(range),
    ),
    global: isNvfp4 ? Math.fround(50 + 3000 * random()) : null,
    input,
  };
}
