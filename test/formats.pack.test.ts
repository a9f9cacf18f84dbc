// Codes as words: the golden ones that other tools write, and the inverse by single bits.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ropeRows } from "../lib/formats/gguf-rows.ts";
import { storedZeros } from "../lib/formats/gptq.ts";
import { packAwq, packRowBytes, packRows, transposed } from "../lib/formats/pack.ts";
import { halfValues, toHalf } from "../lib/util/half.ts";
import { F16, halfFromBits, halfToBits } from "./helpers/half.ts";
import { awqValue, byteStreamValue, streamValue } from "./helpers/unpack.ts";

const hex = (words: Uint32Array): string[] =>
  [...words].map((word) => word.toString(16).padStart(8, "0"));
const upTo = (n: number, of: (i: number) => number = (i) => i): Uint8Array =>
  Uint8Array.from({ length: n }, (_, i) => of(i));

describe("golden words", () => {
  it.each<[string, Uint8Array, number, string[]]>([
    ["4 bits", upTo(8), 4, ["76543210"]],
    ["2 bits", upTo(16, (i) => i & 3), 2, ["e4e4e4e4"]],
    ["8 bits", Uint8Array.of(1, 2, 3, 255), 8, ["ff030201"]],
    ["3 bits", upTo(32, (i) => i & 7), 3, ["88fac688", "c688fac6", "fac688fa"]],
  ])("of a stream of %s", (_, codes, bits, words) => {
    expect(hex(packRows(codes, 1, codes.length, bits))).toEqual(words);
  });

  it("of AWQ's order of columns", () => {
    // Columns 0 to 7 of the packed matrix are rows of the weight.
    expect(hex(packAwq(upTo(8), 8, 1))).toEqual(["75316420"]);
  });

  it("of signed 4-bit values, which compressed-tensors stores with 8 added", () => {
    const signed = (first: number): Uint8Array => upTo(8, (i) => first + i + 8);
    expect(hex(packRows(signed(-8), 1, 8, 4))).toEqual(["76543210"]);
    expect(hex(packRows(signed(0), 1, 8, 4))).toEqual(["fedcba98"]);
  });

  it.each<[number, string[], string[]]>([
    [4, ["77777777"], ["88888888"]],
    [3, ["db6db6db", "b6db6db6", "6db6db6d"], ["24924924", "49249249", "92492492"]],
    [2, ["55555555"], ["aaaaaaaa"]],
    [8, ["7f7f7f7f"], ["80808080"]],
  ])("of symmetric zero points of %i bits in GPTQ 1 and 2", (bits, first, second) => {
    const zeros = upTo((32 * second.length) / bits, () => 2 ** (bits - 1));
    const pack = (version: 1 | 2): string[] =>
      hex(packRows(storedZeros(zeros, version), 1, zeros.length, bits));
    expect(pack(1)).toEqual(first);
    expect(pack(2)).toEqual(second);
  });
});

const matrix = fc
  .record({
    bits: fc.integer({ min: 2, max: 8 }),
    rows: fc.integer({ min: 1, max: 9 }),
    columns: fc.integer({ min: 1, max: 140 }),
  })
  .chain(({ bits, rows, columns }) =>
    fc.record({
      bits: fc.constant(bits),
      rows: fc.constant(rows),
      columns: fc.constant(columns),
      codes: fc.uint8Array({
        min: 0,
        max: 2 ** bits - 1,
        minLength: rows * columns,
        maxLength: rows * columns,
      }),
    }),
  );

describe("packing", () => {
  it("puts every code where its bits belong, for any width and shape", () => {
    fc.assert(
      fc.property(matrix, ({ bits, rows, columns, codes }) => {
        const words = packRows(codes, rows, columns, bits);
        const perRow = Math.ceil((columns * bits) / 32);
        expect(words).toHaveLength(rows * perRow);
        const bytes = packRowBytes(codes, rows, columns, bits);
        const bytesPerRow = Math.ceil((columns * bits) / 8);
        expect(bytes).toHaveLength(rows * bytesPerRow);
        const turned = transposed(words, rows, perRow);
        for (let row = 0; row < rows; row++) {
          for (let k = 0; k < columns; k++) {
            const code = codes[row * columns + k];
            expect(streamValue(words, row * perRow, 1, k, bits)).toBe(code);
            expect(streamValue(turned, row, rows, k, bits)).toBe(code);
            expect(byteStreamValue(bytes, row * bytesPerRow, k, bits)).toBe(code);
          }
          // Behind the last value there is nothing.
          const used = columns * bits - 32 * (perRow - 1);
          const last = words[(row + 1) * perRow - 1] as number;
          expect(used === 32 ? 0 : last >>> used).toBe(0);
        }
      }),
      { numRuns: 60 },
    );
  });

  it("in AWQ's order is undone by its inverse", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 3 }),
        fc.integer({ min: 1, max: 150 }),
        (words, columns) => {
          const rows = 8 * words;
          const codes = upTo(rows * columns, (i) => (i * 7 + (i >> 4)) & 15);
          const packed = packAwq(codes, rows, columns);
          for (let o = 0; o < rows; o++) {
            for (let i = 0; i < columns; i++) {
              expect(awqValue(packed, i, words, o)).toBe(codes[o * columns + i]);
            }
          }
        },
      ),
      { numRuns: 25 },
    );
  });

  it("permutes rows as llama.cpp's rotary embedding wants them", () => {
    // One head of 8: pairs (0, 4), (1, 5), ... become neighbours.
    expect(Array.from({ length: 8 }, (_, row) => ropeRows(8)(row))).toEqual([
      0, 4, 1, 5, 2, 6, 3, 7,
    ]);
    const all = Array.from({ length: 48 }, (_, row) => ropeRows(16)(row));
    expect([...all].sort((a, b) => a - b)).toEqual(Array.from({ length: 48 }, (_, row) => row));
    expect(all.slice(16).every((row) => row >= 16)).toBe(true);
  });
});

describe("float16", () => {
  it("patterns have the values of the format", () => {
    const values = halfValues();
    for (let bits = 0; bits < 65536; bits += 7) {
      expect(values[bits]).toEqual(halfFromBits(bits, F16));
    }
  });

  it("is rounded to nearest, halves to even", () => {
    const agree = (x: number): void => {
      const expected = halfToBits(x, F16);
      // What vanishes keeps its sign.
      expect(toHalf(x)).toBe(expected === 0 && x < 0 ? 0x8000 : expected);
    };
    const single = fc.float({ noNaN: true, min: -66000, max: 66000 });
    fc.assert(fc.property(single, agree));
    const tiny = fc.float({ noNaN: true, min: Math.fround(-1e-4), max: Math.fround(1e-4) });
    fc.assert(fc.property(tiny, agree));
    for (const x of [65519, 65520, 2 ** -25, 2 ** -24, 3 * 2 ** -25, 6.1e-5, 2 ** -14]) {
      agree(x);
      agree(-x);
    }
  });
});
