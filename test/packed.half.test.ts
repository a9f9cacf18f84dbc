// The 16-bit floats of the readers against plain arithmetic, pattern by pattern.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeFloats, encodeFloats, f16Bits, valueOfBits } from "../lib/packed/half.ts";
import { BF16, F16, halfFromBits, halfToBits } from "./helpers/half.ts";

describe.each([
  ["F16", F16],
  ["BF16", BF16],
] as const)("%s", (name, format) => {
  it("decodes every pattern, and encodes it back", () => {
    const all = Uint16Array.from({ length: 2 ** 16 }, (_, bits) => bits);
    const values = decodeFloats(new Uint8Array(all.buffer), name);
    const expected = Float64Array.from(all, (bits) => halfFromBits(bits, format));
    expect(values.every((x, i) => Object.is(x, expected[i]))).toBe(true);
    expect(all.every((bits) => Object.is(valueOfBits(bits, name), expected[bits]))).toBe(true);
    const back = encodeFloats(values, name);
    expect(all.every((bits) => Number.isNaN(values[bits]) || back[bits] === bits)).toBe(true);
  });

  it("rounds to the nearest, ties to even", () => {
    const single = fc.oneof(
      fc.float({ noNaN: true }),
      // Halfway between neighbours, and one step beside it.
      fc
        .tuple(fc.nat(0x7bff), fc.constantFrom(-1, 0, 1), fc.constantFrom(-1, 1))
        .map(([bits, off, sign]) => {
          const middle = (halfFromBits(bits, format) + halfFromBits(bits + 1, format)) / 2;
          return sign * Math.fround(middle * (1 + off * 2 ** -23));
        }),
    );
    fc.assert(
      fc.property(single, (x) => {
        const [bits] = encodeFloats(Float32Array.of(x), name);
        // A negative number that is rounded to zero keeps its sign.
        const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
        expect(bits).toBe(sign | halfToBits(Math.abs(Math.fround(x)), format));
        if (name === "F16") expect(f16Bits(Math.fround(x))).toBe(bits);
      }),
      { numRuns: 3000 },
    );
  });
});
