// The schedule of the gradual mask, and what a band does to a matrix.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { maskOfEpoch } from "../lib/affine/gradual-mask.ts";
import { Eager } from "../lib/autograd/graph.ts";
import { gradualMask } from "../lib/autograd/ops/gradual-mask.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";

const bands = (epochs: number, headDim: number): number[] =>
  Array.from({ length: epochs }, (_, e) => maskOfEpoch(e, epochs, headDim, 0.1).band);

describe("the schedule", () => {
  it("widens to all off-diagonals over 20 epochs of heads of 32", () => {
    expect(bands(20, 32)).toEqual([
      2, 4, 5, 7, 8, 10, 12, 13, 15, 16, 18, 20, 21, 23, 24, 26, 28, 29, 31, 32,
    ]);
  });

  it("covers everything at once when there is one epoch", () => {
    expect(bands(1, 32)).toEqual([32]);
    expect(bands(2, 5)).toEqual([3, 5]);
  });

  it("always learns something, never narrows, and ends with everything", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 128 }), (E, half) => {
        const all = bands(E, 2 * half);
        expect(all[0]).toBeGreaterThan(0);
        expect(all.at(-1)).toBe(2 * half);
        expect(all).toEqual([...all].sort((a, b) => a - b));
      }),
      { numRuns: 60 },
    );
  });

  it("passes the stability factor on and refuses epochs outside", () => {
    expect(maskOfEpoch(3, 4, 8, 0.25)).toEqual({ band: 8, sf: 0.25 });
    expectAqError(() => maskOfEpoch(4, 4, 8, 0.1), "AQ_ARG", "0 to 3", "got 4");
    expectAqError(() => maskOfEpoch(-1, 4, 8, 0.1), "AQ_ARG", "got -1");
    expectAqError(() => maskOfEpoch(0.5, 4, 8, 0.1), "AQ_ARG", "got 0.5");
  });
});

describe("a band", () => {
  it("keeps the diagonal, scales what is within it and clears the rest", () => {
    const D = 5;
    for (let band = 0; band <= D; band++) {
      scope(() => {
        const s = Tensor.from(new Float64Array(D * D).fill(10), [1, D, D]);
        const a = gradualMask(
          new Eager(),
          { value: { tensor: s }, needsGrad: false },
          { band, sf: 0.1 },
        );
        const expected = Array.from({ length: D * D }, (_, at) => {
          const distance = Math.abs(Math.floor(at / D) - (at % D));
          if (distance === 0) return 10;
          return distance <= band ? 1 : 0;
        });
        expect(Array.from(a.value.tensor.read())).toEqual(expected);
      });
    }
  });
});
