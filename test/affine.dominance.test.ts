// What keeps the matrices invertible: after a step, rows whose off-diagonals outweigh 0.9 of the
// diagonal are shrunk to it. In healthy runs this idles, so the matrices here are made up.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DOMINANCE_LIMIT } from "../lib/affine/style.ts";
import type { Mask } from "../lib/autograd/ops/gradual-mask.ts";
import { type MatrixRule, Parameter } from "../lib/calibration/parameters.ts";
import { invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";

const ruleOf = (mask: Mask): MatrixRule => ({
  maskOf: () => mask,
  dominance: DOMINANCE_LIMIT,
  floor: 0,
});

interface Projected {
  readonly values: Float32Array;
  readonly margin: number | undefined;
}

/** One step at rate zero: nothing but the projection changes anything. */
async function project(made: Float32Array, D: number, mask: Mask): Promise<Projected> {
  const shape = [made.length / (D * D), D, D];
  const parameter = new Parameter("vo.S", "transform", { data: made, shape, masked: true });
  const gradient = Tensor.from(new Float32Array(made.length), shape);
  const matrices = ruleOf(mask);
  const margins = Parameter.update([{ parameter, gradient, rate: 0 }], {
    control: { rate: 1, step: 1 },
    weightDecay: 0,
    matrices,
  });
  const margin = margins && Math.min(...margins.floats());
  const result = { values: parameter.value.floats(), margin };
  for (const item of [parameter, gradient, margins]) item?.dispose();
  return result;
}

/** Sum of |off-diagonal| over |diagonal| of each row, as the mask lets it count. */
function ratios(matrices: Float32Array, D: number, { band, sf }: Mask): number[] {
  return Array.from({ length: matrices.length / D }, (_, row) => {
    const i = row % D;
    const off = Array.from(matrices.subarray(row * D, (row + 1) * D)).reduce(
      (sum, x, j) => (j !== i && Math.abs(i - j) <= band ? sum + Math.abs(sf * x) : sum),
      0,
    );
    return off / Math.abs(matrices[row * D + i] as number);
  });
}

const full: Mask = { band: 4, sf: 0.5 };

describe("the projection", () => {
  it("shrinks the rows that are not dominant enough to the limit, and no others", async () => {
    const D = 4;
    // Ratios of the rows with sf 0.5: 0.75, 2 with a negative diagonal, 0.9 of one entry, 0.95.
    const made = Float32Array.of(
      ...[2, 1, -1, 1],
      ...[-4, -2, 2, 2],
      ...[0, 1.75, 1, 0],
      ...[-0.5, 0.4, 1, 1],
    );
    const { values, margin } = await project(made, D, full);
    expect(ratios(made, D, full)).toEqual([0.75, 2, 0.875, expect.closeTo(0.95, 6)]);
    expect(ratios(values, D, full)).toEqual(
      [0.75, 0.9, 0.875, 0.9].map((r) => expect.closeTo(r, 6)),
    );
    expect([...values.subarray(0, 4)]).toEqual([2, 1, -1, 1]);
    expect([...values.subarray(8, 12)]).toEqual([0, 1.75, 1, 0]);
    const shrunk = [-4, -2, 2, 2].map((x, j) => (j === 1 ? x : x * 0.45));
    expect([...values.subarray(4, 8)]).toEqual(shrunk.map((x) => expect.closeTo(x, 6)));
    expect(margin).toBeCloseTo(1 - DOMINANCE_LIMIT, 6);
  });

  it("gives the margin of the worst row of all matrices when nothing is too large", async () => {
    const made = Float32Array.of(1, 0.4, 0.2, 1, 2, -0.4, 0.8, -1);
    const { values, margin } = await project(made, 2, { band: 2, sf: 1 });
    expect(values).toEqual(made);
    expect(margin).toBeCloseTo(0.2, 6);
  });

  it("counts only what the band lets through", async () => {
    const made = Float32Array.of(1, 0.5, 100, 0.5, 1, 0.25, 100, 0.5, 1);
    const { values, margin } = await project(made, 3, { band: 1, sf: 1 });
    expect(values).toEqual(made);
    expect(margin).toBeCloseTo(0.25, 6);
  });

  it("leaves every matrix invertible, whatever came before", async () => {
    const arbitrary = fc
      .tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 0, max: 6 }))
      .chain(([half, band]) => {
        const count = 2 * (2 * half) ** 2;
        const entry = fc.double({ min: -1e3, max: 1e3, noNaN: true });
        const entries = fc.array(entry, { minLength: count, maxLength: count });
        return fc.tuple(fc.constant(2 * half), fc.constant(band), entries);
      });
    await fc.assert(
      fc.asyncProperty(arbitrary, async ([D, band, entries]) => {
        const mask = { band, sf: 0.7 };
        const made = Float32Array.from(entries);
        for (let row = 0; row < 2 * D; row++) made[row * D + (row % D)] = row % 2 ? 0.5 : -3;
        const { values, margin } = await project(made, D, mask);
        const worst = Math.max(...ratios(values, D, mask));
        expect(worst).toBeLessThanOrEqual(DOMINANCE_LIMIT * (1 + 1e-5));
        expect(margin).toBeCloseTo(1 - worst, 5);
        const before = ratios(made, D, mask);
        for (const [row, ratio] of ratios(values, D, mask).entries()) {
          expect(ratio).toBeCloseTo(Math.min(before[row] as number, DOMINANCE_LIMIT), 4);
        }
        scope(() => {
          const a = Tensor.from(values, [2, D, D]);
          invokeOne("lu_inverse", [invokeOne("gradual_mask", [a], mask), undefined], { pivot: 0 });
        });
      }),
      { numRuns: 60 },
    );
  });

  it("is of matrices alone: a diagonal has no margin", async () => {
    const live = liveTensors();
    const start = { data: Float32Array.of(1, 2), shape: [2], masked: false };
    const parameter = new Parameter("updown.log_s", "transform", start);
    const gradient = Tensor.from(Float32Array.of(1, -1));
    const rule = { control: { rate: 1, step: 1 }, weightDecay: 0, matrices: ruleOf(full) };
    expect(Parameter.update([{ parameter, gradient, rate: 0.1 }], rule)).toBeUndefined();
    expect(Array.from(parameter.value.floats())).toEqual([
      expect.closeTo(0.9, 5),
      expect.closeTo(2.1, 5),
    ]);
    for (const item of [parameter, gradient]) item.dispose();
    expect(liveTensors()).toBe(live);
  });
});
