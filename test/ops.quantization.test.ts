// The quantizers where they are easy to get wrong: ties, constant and empty ranges, huge ranges, zero
// points at the ends, and the vectors that the specification works out by hand.
import { describe, expect, it } from "vitest";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { Draw } from "./helpers/random.ts";
import type { FloatType } from "./helpers/value.ts";

interface Settings {
  readonly bits: number;
  readonly group?: number;
  readonly symmetric?: boolean;
  readonly floor?: number;
  readonly roundF16?: boolean;
  /** Clipping logits: one, or [2, M, G]. */
  readonly clip?: readonly number[];
  readonly dtype?: FloatType;
}

const FLOOR = 2 ** -14;

function tensor(data: readonly number[], shape: readonly number[], dtype: FloatType): Tensor {
  const typed = dtype === "f32" ? Float32Array.from(data) : Float64Array.from(data);
  return Tensor.from(typed, shape);
}

/** Grid, codes, and values of the rows of x, all by the engine. */
function quantize(rows: readonly (readonly number[])[], settings: Settings) {
  const { bits, group = 0, symmetric, floor = FLOOR, roundF16, clip, dtype = "f32" } = settings;
  return scope(() => {
    const K = rows[0]?.length ?? 0;
    const x = tensor(rows.flat(), [rows.length, K], dtype);
    const logits =
      clip &&
      tensor(
        clip,
        clip.length === 1 ? [1] : [2, rows.length, clip.length / 2 / rows.length],
        dtype,
      );
    const [scale, zero] = invoke("quant_grid", [x, logits], {
      bits,
      group,
      symmetric: symmetric ? 1 : 0,
      round_f16: roundF16 ? 1 : 0,
      rule: 0,
      floor,
    }) as [Tensor, Tensor];
    const codes = invokeOne("quantize", [x, scale, zero, undefined], { bits, group });
    const values = invokeOne("fake_quant", [x, scale, zero, undefined], { bits, group });
    const decoded = invokeOne("dequantize", [codes, scale, zero], { group });
    expect(Array.from(decoded.read())).toEqual(Array.from(values.read()));
    return {
      scale: Array.from(scale.read()),
      zero: Array.from(zero.read()),
      codes: Array.from(codes.read()),
      values: Array.from(values.read()),
    };
  });
}

function expectClose(actual: readonly number[], expected: readonly number[], digits: number): void {
  expect(actual.length).toBe(expected.length);
  for (const [i, value] of expected.entries()) expect(actual[i]).toBeCloseTo(value, digits);
}

/** The row of the worked examples, clipped by logits of 4: the sigmoid is 0.98201379. */
const ROW = [-1, 0.3, 0.75, 2];

describe.each(["f32", "f64"] as const)("the worked examples in %s", (dtype) => {
  const digits = dtype === "f32" ? 6 : 8;

  it("two bits, asymmetric", () => {
    const { scale, zero, codes, values } = quantize([ROW], { bits: 2, clip: [4, 4], dtype });
    expectClose(scale, [0.98201379], digits);
    expect(zero).toEqual([1]);
    expect(codes).toEqual([0, 1, 2, 3]);
    expectClose(values, [-0.98201379, 0, 0.98201379, 1.96402758], digits);
  });

  it("three bits, symmetric around the code four", () => {
    const { scale, zero, codes, values } = quantize([ROW], {
      bits: 3,
      symmetric: true,
      clip: [4, 4],
      dtype,
    });
    expectClose(scale, [0.65467586], digits);
    expect(zero).toEqual([4]);
    expect(codes).toEqual([2, 4, 5, 7]);
    expectClose(values, [-1.30935172, 0, 0.65467586, 1.96402758], digits);
  });

  it("halves go to the even code", () => {
    // 0 .. 15 makes the scale 1 and the zero point 0.
    const row = [0, 15, 0.5, 1.5, 2.5, 3.5, 4.5, 13.5, 14.5];
    expect(quantize([row], { bits: 4, dtype }).codes).toEqual([0, 15, 0, 2, 2, 4, 4, 14, 14]);
    // -7 .. 8: the value is rounded before the zero point is added.
    const mixed = [-7, 8, -0.5, -1.5, -2.5, 0.5, 1.5, 2.5];
    expect(quantize([mixed], { bits: 4, dtype }).codes).toEqual([0, 15, 7, 5, 5, 7, 9, 9]);
    // The zero point too: -min / scale is 2.5 here, then 3.5.
    expect(quantize([[-2.5, 0.5]], { bits: 2, dtype }).zero).toEqual([2]);
    expect(quantize([[-3.5, 11.5]], { bits: 4, dtype }).zero).toEqual([4]);
  });

  it("a constant row keeps its value", () => {
    const { zero, codes, values } = quantize(
      [
        [0.75, 0.75, 0.75],
        [-1.5, -1.5, -1.5],
      ],
      { bits: 4, dtype },
    );
    expect(zero).toEqual([0, 15]);
    expect(codes).toEqual([15, 15, 15, 0, 0, 0]);
    expectClose(values, [0.75, 0.75, 0.75, -1.5, -1.5, -1.5], digits);
  });

  it.each([false, true])("a row of zeros stays zero (symmetric: %s)", (symmetric) => {
    const settings = { bits: 4, symmetric, dtype, clip: [4] };
    const { scale, zero, values } = quantize([[0, 0, 0, -0]], settings);
    expect(scale).toEqual([FLOOR]);
    expect(zero).toEqual([symmetric ? 8 : 0]);
    expect(values.every((value) => value === 0)).toBe(true);
  });

  it("values below the floor of the scale do no harm", () => {
    const { scale, zero, values } = quantize([[1e-12, -3e-12, 2e-20]], { bits: 4, dtype });
    expect(scale).toEqual([FLOOR]);
    expect(zero).toEqual([0]);
    expect(values.every((value) => value === 0)).toBe(true);
  });

  it("huge ranges stay finite, and the extremes stay at the ends", () => {
    const { scale, zero, codes, values } = quantize([[1e38, -1e38, 1, 0]], { bits: 4, dtype });
    expect(scale.every(Number.isFinite)).toBe(true);
    expect(values.every(Number.isFinite)).toBe(true);
    expect(codes[0]).toBe(15);
    expect(codes[1]).toBe(0);
    expect(codes.slice(2)).toEqual([zero[0], zero[0]]);
  });

  it("values far outside a given grid end at its ends", () => {
    const codes = scope(() => {
      const x = tensor([1e30, -1e30, 3e38, -3e38, 1e7, -1e7], [1, 6], dtype);
      const grid = [tensor([1e-6], [1, 1], dtype), tensor([7], [1, 1], dtype)];
      const inputs = [x, ...grid, undefined];
      return Array.from(invokeOne("quantize", inputs, { bits: 4, group: 0 }).read());
    });
    expect(codes).toEqual([15, 0, 15, 0, 15, 0]);
  });
});

describe("grids of random groups", () => {
  const draw = new Draw(11, "f32");
  const rows = [
    ...Array.from({ length: 40 }, () => Array.from(draw.normal([35]).data)),
    ...Array.from({ length: 20 }, () => Array.from(draw.uniform([35], 0.2, 1.3).data)),
    ...Array.from({ length: 20 }, () => Array.from(draw.uniform([35], -2.1, -0.3).data)),
    ...Array.from({ length: 20 }, (_, i) => Array.from(draw.normal([35], 10 ** (i - 10)).data)),
  ];
  const settings = [2, 3, 4, 8].flatMap((bits) =>
    [false, true].flatMap((symmetric) =>
      [false, true].map((roundF16) => ({ bits, symmetric, roundF16, group: 8 })),
    ),
  );

  it.each(settings)(
    "keep the zero point and the codes within $bits bits (symmetric: $symmetric, float16 scales: $roundF16)",
    ({ bits, symmetric, roundF16, group }) => {
      const top = 2 ** bits - 1;
      const { zero, codes } = quantize(rows, { bits, symmetric, roundF16, group });
      for (const z of zero) {
        expect(Number.isInteger(z) && z >= 0 && z <= top, `zero ${z}`).toBe(true);
        if (symmetric) expect(z).toBe(2 ** (bits - 1));
      }
      expect(Math.max(...codes)).toBeLessThanOrEqual(top);
    },
  );

  it("put the zero of one-sided groups at an end", () => {
    const { zero } = quantize(rows.slice(40, 80), { bits: 3, group: 8 });
    expect(new Set(zero.slice(0, 20 * 5))).toEqual(new Set([0]));
    expect(new Set(zero.slice(20 * 5))).toEqual(new Set([7]));
  });

  it("err by at most half a step without clipping", () => {
    const { scale, values } = quantize(rows.slice(0, 80), { bits: 4, group: 8 });
    const x = rows.slice(0, 80).flat();
    for (const [i, value] of values.entries()) {
      const s = scale[Math.floor(i / 35) * 5 + Math.floor((i % 35) / 8)] ?? 0;
      // An end may be off by the rounding of the zero point as well.
      expect(Math.abs(value - (x[i] ?? 0))).toBeLessThanOrEqual(s * 1.0001);
    }
  });

  it("are fixed points: values on the grid do not move", () => {
    scope(() => {
      const x = Tensor.from(Float32Array.from(rows.flat()), [rows.length, 35]);
      const grid = invoke("quant_grid", [x, undefined], {
        bits: 4,
        group: 8,
        symmetric: 0,
        round_f16: 0,
        rule: 0,
        floor: FLOOR,
      });
      const once = invokeOne("fake_quant", [x, ...grid, undefined], { bits: 4, group: 8 });
      const twice = invokeOne("fake_quant", [once, ...grid, undefined], { bits: 4, group: 8 });
      expect(twice.read()).toEqual(once.read());
    });
  });

  it("mean the same to the fused product as to fake_quant", () => {
    scope(() => {
      const n = 35;
      const identity = Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
      const w = Tensor.from(Float32Array.from(rows.flat()), [rows.length, n]);
      const grid = invoke("quant_grid", [w, undefined], {
        bits: 3,
        group: 8,
        symmetric: 0,
        round_f16: 0,
        rule: 0,
        floor: FLOOR,
      });
      const product = invokeOne(
        "fake_quant_gemm",
        [w, Tensor.from(identity, [n, n]), ...grid, ...new Array(4).fill(undefined)],
        {
          trans_a: 0,
          trans_b: 0,
          a_bits: 3,
          a_group: 8,
          b_bits: 0,
          b_group: 0,
          accumulate: 0,
          bf16: 0,
        },
      );
      const values = invokeOne("fake_quant", [w, ...grid, undefined], { bits: 3, group: 8 });
      expect(Array.from(product.read(), (x) => x + 0)).toEqual(
        Array.from(values.read(), (x) => x + 0),
      );
    });
  });
});
