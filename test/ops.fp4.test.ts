// 4-bit floats where they are easy to get wrong: every tie, every scale, numbers that are none, what is
// refused, and that the packed product is the product of the quantized operands.
import { describe, expect, it } from "vitest";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { Draw } from "./helpers/random.ts";
import { e2m1 } from "./reference/fp4.ts";
import { scaleOfByte } from "./reference/fp4-matmul.ts";

const FORMATS = [
  { name: "NVFP4", format: 0, group: 16 },
  { name: "MXFP4", format: 1, group: 32 },
] as const;

function matrix(rows: readonly (readonly number[])[]): Tensor {
  return Tensor.from(Float32Array.from(rows.flat()), [rows.length, rows[0]?.length ?? 0]);
}

/** Scales, codes and values q s of a matrix, all by the engine. */
function quantize(rows: readonly (readonly number[])[], format: number, global?: number) {
  return scope(() => {
    const inputs = [
      matrix(rows),
      global === undefined ? undefined : Tensor.from(Float32Array.of(global), [1]),
    ];
    const [scale, factor, codes] = invoke("fp4_operand", inputs, {
      format,
      dtype: dtypeCode("u8"),
    });
    const y = invoke("fp4_operand", inputs, { format, dtype: dtypeCode("f32") })[2];
    return [scale, factor, codes, y].map((tensor) => Array.from(tensor?.read() ?? []));
  }) as [scale: number[], factor: number[], codes: number[], y: number[]];
}

function random(seed: number, shape: readonly number[], std = 1): Tensor {
  return Tensor.from(Float32Array.from(new Draw(seed, "f32").normal(shape, std).data), shape);
}

describe.each(FORMATS)("$name", ({ format, group }) => {
  const of = (x: number[]) => [...x, ...new Array<number>(group - x.length).fill(0)];

  it("keeps its own numbers, and halves go to the even code", () => {
    const numbers = Array.from({ length: 8 }, (_, code) => e2m1(code));
    const kept = quantize([of([...numbers, ...numbers.map((x) => -x)])], format);
    expect(kept[0]).toEqual([1]);
    expect(kept[2].slice(0, 8)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(kept[2].slice(8, 16)).toEqual([0, 9, 10, 11, 12, 13, 14, 15]);
    const middles = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5];
    const [, , codes] = quantize([of([...middles, ...middles.map((x) => -x)])], format);
    expect(codes.slice(0, 8)).toEqual([7, 0, 2, 2, 4, 4, 6, 6]);
    expect(codes.slice(8, 16)).toEqual([15, 0, 10, 10, 12, 12, 14, 14]);
  });

  it("finds every scale that there is", () => {
    const bytes = Array.from({ length: format === 0 ? 126 : 250 }, (_, i) => i + 1);
    const scales = bytes.map((byte) => scaleOfByte(byte, format));
    // What a group reaches with such a scale, short of infinity in f32.
    const [found, , codes] = quantize(
      scales.map((s) => of([Math.fround(6 * s)])),
      format,
    );
    expect(found).toEqual(scales);
    expect(codes.filter((_, i) => i % group === 0).every((code) => code === 7)).toBe(true);
  });

  it("gives a group with a NaN a scale that is one, and leaves the others alone", () => {
    const [scale, , codes, y] = quantize([[...of([Number.NaN, 3]), ...of([6, 3])]], format);
    expect(scale).toEqual([Number.NaN, 1]);
    expect(codes.slice(0, group).every((code) => code === 0)).toBe(true);
    expect(y.slice(0, group).every(Number.isNaN)).toBe(true);
    expect(y.slice(group, group + 2)).toEqual([6, 3]);
  });

  it("does not move what is quantized already", () => {
    scope(() => {
      const x = random(3, [7, 96], 3);
      const params = { format, dtype: dtypeCode("f32") };
      const [scale, , once] = invoke("fp4_operand", [x], params) as [Tensor, Tensor, Tensor];
      const codes = invoke("fp4_operand", [x], { format, dtype: dtypeCode("u8") })[2] as Tensor;
      const values = invokeOne("fp4_values", [codes, scale], { format });
      expect(values.read()).toEqual(once.read());
      // A group may find a smaller scale the second time, but its numbers are on that one's too.
      expect(invoke("fp4_operand", [once], params)[2]?.read()).toEqual(once.read());
    });
  });

  it("refuses groups that are not whole", () => {
    scope(() => {
      const params = { format, dtype: dtypeCode("f32") };
      expect(() => invoke("fp4_operand", [random(1, [2, group + 8])], params)).toThrow(
        `must be a multiple of ${group}`,
      );
    });
  });

  it.each([0, 1])("packed, is the product of its operands for many rows (tokens %s)", (tokens) => {
    scope(() => {
      const [x, w] = [random(5, [40, 160]), random(6, [70, 160])];
      const operand = { format, dtype: dtypeCode("f32") };
      const globals = [x, w].map((m) => (format ? undefined : invokeOne("fp4_global", [m], {})));
      const [scale, factor, weights] = invoke("fp4_operand", [w, globals[1]], operand);
      const codes = invoke("fp4_operand", [w, globals[1]], { format, dtype: dtypeCode("u8") })[2];
      const [, xFactor, xq] = invoke("fp4_operand", [x, globals[0]], operand);
      const dense = invokeOne(
        "fake_quant_gemm",
        [
          ...(tokens ? [xq, weights, xFactor] : [x, weights, undefined]),
          ...[undefined, factor, undefined],
        ],
        {
          ...{ trans_a: 0, trans_b: 1, a_bits: 0, a_group: 0, b_bits: 0, b_group: 0 },
          ...{ accumulate: 0, bf16: 0 },
        },
      );
      const packed = invoke("fp4_pack", [codes, scale], { format });
      const inputs = [factor, undefined, tokens ? globals[0] : undefined];
      const run = (rows: Tensor) =>
        invokeOne("fp4_matmul", [rows, ...packed, ...inputs], { outputs: 70, format, tokens });
      expect(run(x).read()).toEqual(dense.read());
      // Few rows: the same numbers for each, whatever others are with it.
      const few = Array.from({ length: 9 }, (_, m) => m);
      const rowOf = (m: number) => x.read().slice(m * 160, (m + 1) * 160) as Float32Array;
      const together = run(
        Tensor.from(Float32Array.from(few.flatMap((m) => [...rowOf(m)])), [9, 160]),
      );
      const alone = few.flatMap((m) => [...run(Tensor.from(rowOf(m), [1, 160])).read()]);
      expect(Array.from(together.read())).toEqual(alone);
    });
  });
});

describe("global scales", () => {
  it("make the largest scale 448, and the largest number 2688 of their units", () => {
    scope(() => {
      const x = random(9, [5, 48]);
      const g = invokeOne("fp4_global", [x], {});
      const largest = Math.max(...Array.from(x.read(), Math.abs));
      expect(g.read()[0]).toBe(Math.fround(2688 / largest));
      const [scale, factor] = invoke("fp4_operand", [x, g], { format: 0, dtype: dtypeCode("f32") });
      expect(Math.max(...Array.from(scale?.read() ?? []))).toBe(448);
      expect(factor?.read()[0]).toBe(Math.fround(1 / (g.read()[0] ?? 0)));
    });
  });

  it("count as 1 where they are not finite", () => {
    const rows = [[6, ...new Array<number>(15).fill(1)]];
    const plain = quantize(rows, 0);
    expect(plain[1]).toEqual([1]);
    expect(quantize(rows, 0, Number.POSITIVE_INFINITY)).toEqual(plain);
    expect(quantize(rows, 0, Number.NaN)).toEqual(plain);
  });

  it("are refused where they mean nothing", () => {
    scope(() => {
      const [x, g] = [random(1, [2, 32]), Tensor.from(Float32Array.of(1), [1])];
      const params = { format: 1, dtype: dtypeCode("f32") };
      expect(() => invoke("fp4_operand", [x, g], params)).toThrow("MXFP4 has no global scale");
      const codes = Tensor.from(new Uint8Array(64), [2, 32]);
      const scale = Tensor.from(new Float32Array(4).fill(1), [2, 2]);
      const packed = invoke("fp4_pack", [codes, scale], { format: 0 });
      const product = { outputs: 2, format: 0, tokens: 0 };
      expect(() => invoke("fp4_matmul", [x, ...packed, undefined, undefined, g], product)).toThrow(
        "x_global needs tokens 1",
      );
    });
  });
});
