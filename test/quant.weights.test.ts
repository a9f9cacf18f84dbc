// The weight quantizer at the end of calibration: codes, float16 scales, and the law that what the
// codes stand for is what fake quantization on the same grid gives, bit for bit.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type QuantizedIntegers, quantizeWeight } from "../lib/quant/integers.ts";
import { groupsPerRow, WEIGHT_FLOOR } from "../lib/quant/scheme.ts";
import { dequantizeWeight, startClip } from "../lib/quant/weights.ts";
import { invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { F16, roundHalf } from "./helpers/half.ts";
import { Draw } from "./helpers/random.ts";

interface Settings {
  readonly wbits: number;
  readonly groupSize: number;
  readonly symmetric: boolean;
}

/** Numbers of a quantized weight, with its values by both ways. */
interface Quantized {
  readonly codes: Uint8Array;
  readonly scale: Float32Array;
  readonly zero: Float32Array;
  readonly values: Float32Array;
  /** Fake quantization of the same weight on the same grid. */
  readonly fake: Float32Array;
}

function quantize(
  w: Float32Array,
  shape: readonly [number, number],
  { wbits, groupSize, symmetric }: Settings,
  clip?: Tensor,
): Quantized {
  return scope(() => {
    const x = Tensor.from(w, shape);
    const q = quantizeWeight(x, clip, { wbits, abits: 16, groupSize, symmetric });
    const grid = { bits: wbits, group: groupSize };
    const result: Quantized = {
      codes: q.codes.read() as Uint8Array,
      scale: q.scale.floats(),
      zero: q.zero.floats(),
      values: dequantizeWeight(q, groupSize).floats(),
      fake: invokeOne("fake_quant", [x, q.scale, q.zero, undefined], grid).floats(),
    };
    return { result };
  }).result;
}

const bitsOf = (data: Float32Array): Uint32Array => new Uint32Array(data.slice().buffer);
const plain: Settings = { wbits: 4, groupSize: 0, symmetric: false };

/** A whole row as one group. */
const one = (w: readonly number[], settings: Settings = plain): Quantized =>
  quantize(Float32Array.from(w), [1, w.length], settings);

const SETTINGS = [2, 3, 4, 8].flatMap((wbits) =>
  [0, 8].flatMap((groupSize) =>
    [false, true].map((symmetric) => ({ wbits, groupSize, symmetric })),
  ),
);

/** Weights and settings of any kind: sizes, spreads, rows far from zero, empty rows. */
const weights = fc
  .record({
    rows: fc.integer({ min: 1, max: 5 }),
    columns: fc.integer({ min: 1, max: 40 }),
    wbits: fc.integer({ min: 2, max: 8 }),
    groupSize: fc.constantFrom(0, 1, 3, 8, 16, 64),
    symmetric: fc.boolean(),
    exponent: fc.integer({ min: -20, max: 8 }),
    mean: fc.constantFrom(0, 0, 3, -3),
    seed: fc.nat(1e6),
  })
  .map(({ rows, columns, exponent, mean, seed, ...settings }) => {
    const { data } = new Draw(seed, "f32").normal([rows, columns], 1, mean);
    if (seed % 3 === 0) data.fill(0, 0, columns);
    const w = Float32Array.from(data, (x) => x * 2 ** exponent);
    return { w, shape: [rows, columns] as const, settings };
  });

describe("codes and grids of any weight", () => {
  it("are within their ranges, with scales that float16 holds", () => {
    fc.assert(
      fc.property(weights, ({ w, shape, settings }) => {
        const { codes, scale, zero } = quantize(w, shape, settings);
        const top = 2 ** settings.wbits - 1;
        expect(codes.every((code) => code <= top)).toBe(true);
        expect(zero.every((z) => Number.isInteger(z) && z >= 0 && z <= top)).toBe(true);
        expect(scale.every((s) => s >= WEIGHT_FLOOR && roundHalf(s, F16) === s)).toBe(true);
        expect(scale.length).toBe(shape[0] * groupsPerRow(shape[1], settings.groupSize));
        if (settings.symmetric) expect(zero.every((z) => z === (top + 1) / 2)).toBe(true);
      }),
      { numRuns: 150 },
    );
  });

  it("stand for what fake quantization gives on the same grid, bit for bit", () => {
    fc.assert(
      fc.property(weights, ({ w, shape, settings }) => {
        const { values, fake } = quantize(w, shape, settings);
        expect(bitsOf(values)).toEqual(bitsOf(fake));
      }),
      { numRuns: 150 },
    );
  });

  it("are half a step away from the weight at most, and the range is covered", () => {
    fc.assert(
      fc.property(weights, ({ w, shape, settings }) => {
        const columns = shape[1];
        const { values, scale } = quantize(w, shape, settings);
        const group = settings.groupSize || columns;
        // A scale that float16 rounded down leaves the ends of the range half a code short, at most.
        const slack = 0.5 + 2 ** (settings.wbits - 11) + 1e-3;
        for (const [i, x] of w.entries()) {
          const [row, column] = [Math.floor(i / columns), i % columns];
          const at = row * Math.ceil(columns / group) + Math.floor(column / group);
          const step = scale[at] as number;
          // Symmetric codes reach one step less above zero than below; asymmetric zeros are rounded.
          const limit = settings.symmetric ? slack : slack + 0.5;
          expect(Math.abs(x - (values[i] as number))).toBeLessThanOrEqual(limit * step);
        }
      }),
      { numRuns: 100 },
    );
  });

  it("do not change when what they stand for is quantized again on the grid", () => {
    fc.assert(
      fc.property(weights, ({ w, shape, settings }) => {
        const first = quantize(w, shape, settings);
        const again = scope(() => {
          const grid = [shape[0], first.scale.length / shape[0]];
          const inputs = [
            Tensor.from(first.values, shape),
            Tensor.from(first.scale, grid),
            Tensor.from(first.zero, grid),
            undefined,
          ];
          const params = { bits: settings.wbits, group: settings.groupSize };
          return { codes: invokeOne("quantize", inputs, params).read() };
        }).codes;
        expect(again).toEqual(first.codes);
      }),
      { numRuns: 100 },
    );
  });

  it("keep the order of the weights of a group", () => {
    fc.assert(
      fc.property(weights, ({ w, shape: [rows, columns], settings }) => {
        const { codes } = quantize(w, [rows, columns], { ...settings, groupSize: 0 });
        for (let row = 0; row < rows; row++) {
          const order = Array.from({ length: columns }, (_, j) => row * columns + j);
          order.sort((a, b) => (w[a] as number) - (w[b] as number));
          const sorted = order.map((i) => codes[i] as number);
          expect(sorted).toEqual([...sorted].sort((a, b) => a - b));
        }
      }),
      { numRuns: 60 },
    );
  });
});

describe("special weights", () => {
  it.each(SETTINGS)("zeros stay zeros: %j", (settings) => {
    const { values, scale, zero, codes } = quantize(new Float32Array(20), [1, 20], settings);
    expect(values.every((x) => x === 0)).toBe(true);
    expect(scale.every((s) => s === WEIGHT_FLOOR)).toBe(true);
    expect(codes.every((code) => code === zero[0])).toBe(true);
  });

  it.each([
    [0.7, 0],
    [-0.7, 15],
  ])("a constant row of %d is kept, with the zero point %d at an end of the range", (c, zero) => {
    const result = one(Array.from({ length: 9 }, () => c));
    expect([...result.zero]).toEqual([zero]);
    expect(new Set(result.codes)).toEqual(new Set([15 - zero]));
    for (const value of result.values) expect(value / c).toBeCloseTo(1, 3);
  });

  it.each(SETTINGS)("of one sign have a zero point in range: %j", (settings) => {
    const positive = Array.from({ length: 16 }, (_, i) => 5 + i / 16);
    const top = 2 ** settings.wbits - 1;
    const ends = settings.symmetric ? [(top + 1) / 2, (top + 1) / 2] : [0, top];
    for (const [sign, zero] of [
      [1, ends[0]],
      [-1, ends[1]],
    ] as const) {
      const w = positive.map((x) => sign * x);
      const result = one(w, settings);
      expect(result.zero.every((z) => z === zero)).toBe(true);
      const step = result.scale[0] as number;
      for (const [i, x] of w.entries()) {
        expect(Math.abs(x - (result.values[i] as number))).toBeLessThan(0.6 * step);
      }
    }
  });

  it("with one huge outlier keep it, and lose the rest", () => {
    const w = Array.from({ length: 32 }, (_, i) => (i === 7 ? 3e4 : (i - 16) / 16));
    const { values, codes, zero } = one(w);
    expect((values[7] as number) / 3e4).toBeCloseTo(1, 3);
    for (const [i, code] of codes.entries()) expect(code === zero[0]).toBe(i !== 7);
    const grouped = one(w, { wbits: 4, groupSize: 8, symmetric: false });
    for (const [i, x] of w.entries()) {
      if (i > 7) expect(Math.abs(x - (grouped.values[i] as number))).toBeLessThan(0.04);
    }
  });

  it("of a short last group have a grid of their own", () => {
    const w = [...Array.from({ length: 8 }, (_, i) => (i - 4) * 10), 0.1, -0.2, 0.3];
    const { scale, zero, values } = one(w, { wbits: 4, groupSize: 8, symmetric: false });
    expect(scale).toHaveLength(2);
    expect(zero).toHaveLength(2);
    const alone = one(w.slice(8), { wbits: 4, groupSize: 8, symmetric: false });
    expect(scale[1]).toBe(alone.scale[0]);
    expect([...values.subarray(8)]).toEqual([...alone.values]);
    const whole = one(w, { wbits: 4, groupSize: 16, symmetric: false });
    expect([...whole.values]).toEqual([...one(w).values]);
  });

  it("that are symmetric use the middle code for zero and the largest magnitude for the scale", () => {
    const { scale, zero, codes } = one([-7, 3.4, 0, 1], {
      wbits: 4,
      groupSize: 0,
      symmetric: true,
    });
    expect([scale[0], zero[0]]).toEqual([1, 8]);
    expect([...codes]).toEqual([1, 11, 8, 9]);
  });

  it("are refused when a scale does not fit float16, and leave nothing behind", () => {
    const live = liveTensors();
    for (const settings of SETTINGS.filter(({ wbits }) => wbits === 3)) {
      const w = Tensor.from(Float32Array.of(1, 2, -1e6, 3), [1, 4]);
      const scheme = { abits: 16, ...settings };
      expectAqError(() => quantizeWeight(w, undefined, scheme), "AQ_NUMERIC", "65504");
      w.dispose();
    }
    expect(liveTensors()).toBe(live);
  });
});

describe("clipping", () => {
  const draw = new Draw(51, "f32");
  const [O, I, groupSize] = [3, 10, 4];
  const w = Float32Array.from(draw.normal([O, I]).data);
  const settings = { wbits: 3, groupSize, symmetric: false };

  it("starts with a logit for both ends of each group", () => {
    const { data, shape } = startClip(O, I, { groupSize });
    expect(shape).toEqual([2, O, 3]);
    expect(data).toEqual(new Float32Array(18).fill(4));
    expect(startClip(O, I, { groupSize: 0 }).shape).toEqual([2, O, 1]);
    expect([groupsPerRow(8, 0), groupsPerRow(8, 8), groupsPerRow(9, 8)]).toEqual([1, 1, 2]);
  });

  it("shrinks each end by its sigmoid", () => {
    const logits = Float32Array.from(draw.normal([2, O, 3]).data);
    const clipped = scope(() => ({
      q: quantize(w, [O, I], settings, Tensor.from(logits, [2, O, 3])),
    })).q;
    const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
    for (let at = 0; at < O * 3; at++) {
      const [row, group] = [Math.floor(at / 3), at % 3];
      const part = w.subarray(row * I + group * groupSize, row * I + Math.min(I, (group + 1) * 4));
      const max = Math.max(...part, 0) * sigmoid(logits[at] as number);
      const min = Math.min(...part, 0) * sigmoid(logits[9 + at] as number);
      const scale = roundHalf((max - min) / 7, F16);
      expect((clipped.scale[at] as number) / scale).toBeCloseTo(1, 2);
      expect(clipped.zero[at]).toBe(Math.round((0 - min) / (clipped.scale[at] as number)));
    }
  });
});

describe("a quantized weight", () => {
  it("is three tensors that the caller owns", () => {
    const live = liveTensors();
    const w = Tensor.from(Float32Array.of(1, 2, 3, 4), [2, 2]);
    const q: QuantizedIntegers = quantizeWeight(w, undefined, { ...plain, abits: 16 });
    expect(q.codes.dtype).toBe("u8");
    expect(liveTensors()).toBe(live + 4);
    for (const tensor of [w, q.codes, q.scale, q.zero]) tensor.dispose();
    expect(liveTensors()).toBe(live);
  });
});
