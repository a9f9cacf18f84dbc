// Rounding that is not to the nearest: learned offsets, which must mean the same to every op that
// takes them, and GPTQ, which must pay for the output of the layer.
import { describe, expect, it } from "vitest";
import { gptqWeight, type QuantizedIntegers, quantizeWeight } from "../lib/quant/integers.ts";
import { dequantizeWeight } from "../lib/quant/weights.ts";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { Draw } from "./helpers/random.ts";

const scheme = { wbits: 3, abits: 16, groupSize: 8, symmetric: false };
const [O, I] = [12, 37];
const draw = new Draw(77, "f32");
const w = Float32Array.from(draw.normal([O, I]).data);
const offsets = Float32Array.from(draw.uniform([O, I], -0.5, 0.5).data);

const weight = (): Tensor => Tensor.from(w, [O, I]);

/** The result of a body that makes tensors. */
const within = <R>(body: () => R): R => scope(() => ({ result: body() })).result;

function numbers({ codes, scale, zero }: QuantizedIntegers) {
  return {
    codes: Array.from(codes.read()),
    scale: Array.from(scale.read()),
    zero: Array.from(zero.read()),
  };
}

describe("learned offsets", () => {
  it("of zero change nothing", () => {
    const zeros = Tensor.from(new Float32Array(O * I), [O, I]);
    const [nearest, offset] = within(() => [
      numbers(quantizeWeight(weight(), undefined, scheme)),
      numbers(quantizeWeight(weight(), undefined, scheme, zeros)),
    ]);
    zeros.dispose();
    expect(offset).toEqual(nearest);
  });

  it("move a code by one at most, each in its own direction, and leave the grid alone", () => {
    const [nearest, moved] = within(() => [
      numbers(quantizeWeight(weight(), undefined, scheme)),
      numbers(quantizeWeight(weight(), undefined, scheme, Tensor.from(offsets, [O, I]))),
    ]);
    expect([moved.scale, moved.zero]).toEqual([nearest.scale, nearest.zero]);
    const steps = moved.codes.map((code, i) => code - (nearest.codes[i] as number));
    expect(new Set(steps)).toEqual(new Set([-1, 0, 1]));
    for (const [i, step] of steps.entries()) {
      if (step !== 0) expect(Math.sign(offsets[i] as number)).toBe(step);
    }
  });

  it.each([
    ["as a weight [N, K]", 1],
    ["as a gradient sees it [K, N]", 0],
  ])("mean the same to the fused product, %s, bit for bit", (_, transB) => {
    within(() => {
      const [M, inner] = [9, transB ? I : O];
      const a = Tensor.from(Float32Array.from(draw.normal([M, inner]).data), [M, inner]);
      const b = weight();
      const v = Tensor.from(offsets, [O, I]);
      const { scale, zero, codes } = quantizeWeight(b, undefined, scheme, v);
      const params = { trans_a: 0, trans_b: transB, a_bits: 0, a_group: 0, accumulate: 0, bf16: 0 };
      const none = undefined;
      const product = (right: Tensor, grid: readonly (Tensor | undefined)[], bits: number) =>
        invokeOne("fake_quant_gemm", [a, right, none, none, ...grid], {
          ...params,
          b_bits: bits,
          b_group: bits ? scheme.groupSize : 0,
        }).read();
      const fused = product(b, [scale, zero, none, v], scheme.wbits);
      const values = invokeOne("fake_quant", [b, scale, zero, v], { bits: 3, group: 8 });
      expect(fused).toEqual(product(values, [none, none, none, none], 0));
      const decoded = dequantizeWeight({ codes, scale, zero }, scheme.groupSize);
      expect(values.read()).toEqual(decoded.read());
    });
  });
});

/** Second moments of tokens whose channels go together. */
function moments(tokens: number, n: number): Tensor {
  const x = draw.normal([tokens, n]).data;
  for (let i = 1; i < x.length; i++) if (i % n) x[i] = 0.9 * (x[i - 1] as number) + (x[i] ?? 0) / 2;
  const h = new Float32Array(n * n);
  for (let i = 0; i < n * n; i++) {
    const [row, column] = [Math.floor(i / n), i % n];
    let sum = 0;
    for (let t = 0; t < tokens; t++) sum += (x[t * n + row] ?? 0) * (x[t * n + column] ?? 0);
    h[i] = sum / tokens;
  }
  return Tensor.from(h, [n, n]);
}

/** Mean squared error of the layer's output: tr((W - Q) H (W - Q)t) / O. */
function outputError(q: QuantizedIntegers, h: Float32Array): number {
  const values = dequantizeWeight(q, scheme.groupSize).read();
  let sum = 0;
  for (let o = 0; o < O; o++) {
    const e = Array.from({ length: I }, (_, i) => (w[o * I + i] ?? 0) - (values[o * I + i] ?? 0));
    for (let i = 0; i < I; i++) {
      for (let j = 0; j < I; j++) sum += (e[i] ?? 0) * (h[i * I + j] ?? 0) * (e[j] ?? 0);
    }
  }
  return sum / O;
}

describe("GPTQ", () => {
  it("keeps the grid and halves the error of the layer's output at least", () => {
    within(() => {
      const h = moments(200, I);
      const nearest = quantizeWeight(weight(), undefined, scheme);
      const gptq = gptqWeight(weight(), h, undefined, scheme);
      expect([gptq.scale.read(), gptq.zero.read()]).toEqual([
        nearest.scale.read(),
        nearest.zero.read(),
      ]);
      const [before, after] = [nearest, gptq].map((q) => outputError(q, h.floats()));
      expect(before).toBeGreaterThan(0);
      expect(after).toBeLessThan((before ?? 0) / 2);
    });
  });

  it.each([
    ["channels that have nothing to do with each other", (i: number) => 0.5 + (i % 7)],
    ["no input at all", () => 0],
  ])("gives the nearest codes with %s", (_, power) => {
    within(() => {
      const h = Float32Array.from({ length: I * I }, (_, i) => (i % (I + 1) ? 0 : power(i)));
      const gptq = gptqWeight(weight(), Tensor.from(h, [I, I]), undefined, scheme);
      expect(numbers(gptq)).toEqual(numbers(quantizeWeight(weight(), undefined, scheme)));
    });
  });

  it("gives the same codes whatever the blocks", () => {
    within(() => {
      const inputs = [weight(), moments(100, I)];
      const { scale, zero } = quantizeWeight(weight(), undefined, scheme);
      const codes = [1, 5, 16, 128].map((block) =>
        Array.from(
          invokeOne("gptq", [...inputs, scale, zero], {
            bits: 3,
            group: 8,
            damping: 0.01,
            block,
          }).read(),
        ),
      );
      for (const other of codes) expect(other).toEqual(codes[0]);
    });
  });

  it("names the column where moments are none, and leaves nothing behind", () => {
    const live = liveTensors();
    const h = moments(50, I).floats();
    h[5 * I + 5] = -3;
    const inputs = [weight(), Tensor.from(h, [I, I])] as const;
    const call = () => gptqWeight(inputs[0], inputs[1], undefined, scheme);
    expectAqError(call, "AQ_NUMERIC", "gptq", "[37, 37]", "not positive definite", "column 5");
    h.fill(Number.NaN);
    inputs[1].write(h);
    expectAqError(call, "AQ_NUMERIC", "gptq", "not positive definite", "column 36");
    for (const tensor of inputs) tensor.dispose();
    expect(liveTensors()).toBe(live + 1);
  });
});

describe("sign_step", () => {
  it("moves against the sign, not at all without one, and stops at the limit", () => {
    within(() => {
      const v = Tensor.from(Float32Array.of(0, 0, 0.25, 0.5, -0.5, 0.49, 0.7));
      const g = Tensor.from(Float32Array.of(1e-30, -7, 0, -2, 3, -1, 0));
      invoke("sign_step", [undefined, undefined, v, g], { lr: 0.125, limit: 0.5 });
      expect(Array.from(v.read())).toEqual([-0.125, 0.125, 0.25, 0.5, -0.5, 0.5, 0.5]);
    });
  });
});
