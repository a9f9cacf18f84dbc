// Activation quantizers and the settings of a scheme.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Eager, materialize } from "../lib/autograd/graph.ts";
import { passThrough } from "../lib/quant/activations.ts";
import { TokenQuantizers } from "../lib/quant/integers.ts";
import { checkScheme, quantizesTokens, schemeName, TOKEN_FLOOR } from "../lib/quant/scheme.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { roundEven } from "./helpers/half.ts";
import { Draw } from "./helpers/random.ts";

/** Quantizes rows [M, K] and gives the values, by an activation quantizer in float64. */
function quantize(x: Float64Array, columns: number, bits: number, group: number, clip?: number) {
  return scope(() => {
    const graph = new Eager();
    const clips = new Map(
      clip === undefined ? [] : [["x", graph.constant(Tensor.from(Float64Array.of(clip)))]],
    );
    const rows = graph.constant(Tensor.from(x, [x.length / columns, columns]));
    const value = new TokenQuantizers(bits, clips).apply(graph, "x", rows, group).value;
    return { values: materialize(value).read() };
  }).values;
}

/** The formula for one token or head, written down again. */
function byHand(x: readonly number[], bits: number, clip?: number): number[] {
  const factor = clip === undefined ? 1 : 1 / (1 + Math.exp(-clip));
  const [max, min] = [Math.max(...x, 0) * factor, Math.min(...x, 0) * factor];
  const top = 2 ** bits - 1;
  const scale = Math.max((max - min) / top, TOKEN_FLOOR);
  const zero = Math.min(Math.max(roundEven(-min / scale), 0), top);
  const code = (value: number) => Math.min(Math.max(roundEven(value / scale) + zero, 0), top);
  return x.map((value) => (code(value) - zero) * scale);
}

describe("tokens", () => {
  it("have one scale each, or one for each head, by the formula", () => {
    const sizes = fc.record({
      bits: fc.integer({ min: 2, max: 8 }),
      heads: fc.constantFrom(0, 1, 2, 4),
      clip: fc.option(fc.double({ min: -1, max: 6, noNaN: true }), { nil: undefined }),
      mean: fc.constantFrom(0, 5, -5),
      seed: fc.nat(1e6),
    });
    fc.assert(
      fc.property(sizes, ({ bits, heads, clip, mean, seed }) => {
        const [tokens, columns] = [3, 16];
        const { data } = new Draw(seed, "f64").normal([tokens, columns], 2, mean);
        const group = heads ? columns / heads : 0;
        const actual = Array.from(quantize(data, columns, bits, group, clip));
        const step = group || columns;
        const expected = Array.from({ length: data.length / step }, (_, i) =>
          byHand([...data.subarray(i * step, (i + 1) * step)], bits, clip),
        ).flat();
        expect(actual).toEqual(expected.map((value) => expect.closeTo(value, 12)));
      }),
      { numRuns: 60 },
    );
  });

  it("of zeros stay zeros", () => {
    expect(Array.from(quantize(new Float64Array(8), 4, 4, 0)).every((x) => x === 0)).toBe(true);
    expect(Array.from(quantize(new Float64Array(8), 4, 4, 0, 4)).every((x) => x === 0)).toBe(true);
  });

  it("that are constant are kept where nothing is clipped", () => {
    for (const c of [3, -3]) {
      const values = quantize(new Float64Array(4).fill(c), 4, 4, 0);
      for (const value of values) expect(value).toBeCloseTo(c, 12);
    }
  });

  it("do not see their neighbours: an outlier costs its own token alone", () => {
    const { data } = new Draw(5, "f64").normal([2, 8]);
    const calm = Array.from(quantize(Float64Array.from(data), 8, 4, 0));
    data[3] = 1e6;
    const wild = Array.from(quantize(data, 8, 4, 0));
    expect(wild.slice(8)).toEqual(calm.slice(8));
    const kept = wild.slice(0, 8).filter((x) => x !== 0);
    expect(kept.map((x) => x / 1e6)).toEqual([expect.closeTo(1, 5)]);
  });

  it("pass unchanged without quantizers", () => {
    scope(() => {
      const graph = new Eager();
      const x = graph.constant(Tensor.from(Float32Array.of(1, 2)));
      expect(passThrough.apply(graph, "norm1", x, 0)).toBe(x);
    });
  });
});

describe("a scheme", () => {
  const good = { wbits: 4, abits: 16, groupSize: 0, symmetric: false };

  it("has a name that people know", () => {
    expect(schemeName(good)).toBe("W4A16");
    expect(schemeName({ wbits: 3, abits: 8, groupSize: 128, symmetric: true })).toBe(
      "W3A8 g128 sym",
    );
    expect([2, 8, 16].map((abits) => quantizesTokens({ ...good, abits }))).toEqual([
      true,
      true,
      false,
    ]);
  });

  it("is checked field by field", () => {
    expect(checkScheme(good)).toBe(good);
    for (const wbits of [1, 9, 2.5, Number.NaN]) {
      expectAqError(() => checkScheme({ ...good, wbits }), "AQ_ARG", "wbits", "2 to 8", `${wbits}`);
    }
    for (const abits of [1, 9, 15, 3.5]) {
      expectAqError(() => checkScheme({ ...good, abits }), "AQ_ARG", "abits", "16", `${abits}`);
    }
    for (const groupSize of [-1, 1.5]) {
      expectAqError(() => checkScheme({ ...good, groupSize }), "AQ_ARG", "groupSize");
    }
  });
});
