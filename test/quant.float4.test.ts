// 4-bit floats at the end of calibration: codes and scales that training saw, the bytes of the scales,
// one global scale for what servers fuse, and the run state that keeps it all.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Float4Name } from "../lib/autograd/float4.ts";
import { Eager, materialize } from "../lib/autograd/graph.ts";
import { quantizedLinears } from "../lib/calibration/problem.ts";
import { RunState } from "../lib/export/run-state.ts";
import type { LearnedWeight, QuantizedWeight } from "../lib/quant/quantizer.ts";
import { quantizerOf, scaleBytes, scaleValues } from "../lib/quant/quantizers.ts";
import { checkScheme, float4Scheme, schemeName } from "../lib/quant/scheme.ts";
import { tokenQuantizers } from "../lib/quant/tokens.ts";
import { dequantizeWeight, fakeQuantLinears } from "../lib/quant/weights.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { Draw } from "./helpers/random.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { tensorsOf, tinyModel, tinyWeights } from "./helpers/tiny-block.ts";

const tempFolder = tempFolders();
const FORMATS = ["nvfp4", "mxfp4"] as const;

const quantizeFloats = (format: Float4Name, weights: ReadonlyMap<string, LearnedWeight>) =>
  quantizerOf({ numbers: format }).codes(weights, float4Scheme(format, 16));

const bitsOf = (data: Float32Array): Uint32Array => new Uint32Array(data.slice().buffer);

/** Weights of every size, with zeros, and their names. */
const matrices = fc
  .record({
    rows: fc.integer({ min: 1, max: 4 }),
    groups: fc.integer({ min: 1, max: 3 }),
    exponent: fc.integer({ min: -20, max: 12 }),
    seed: fc.nat(1e6),
  })
  .map(({ rows, groups, exponent, seed }) => {
    const shape = [rows, groups * 32] as const;
    const { data } = new Draw(seed, "f32").normal([...shape]);
    const w = Float32Array.from(data, (x) => x * 2 ** exponent);
    if (seed % 4 === 0) w.fill(0, 0, 32);
    if (seed % 5 === 0) w[w.length - 1] = 2 ** (exponent + 9);
    return { w, shape };
  });

describe("codes of 4-bit floats", () => {
  it.each(FORMATS)("stand for what %s fakes in training, and scales fit their bytes", (format) => {
    const scheme = float4Scheme(format, 16);
    fc.assert(
      fc.property(matrices, ({ w, shape }) => {
        scope(() => {
          const graph = new Eager();
          const x = Tensor.from(w, shape);
          const q = quantizeFloats(
            format,
            new Map([["w", { w: x, clip: undefined, offset: undefined }]]),
          ).get("w") as QuantizedWeight;
          expect(q.codes.read().every((code) => Number(code) < 16)).toBe(true);
          const scales = q.scale.floats();
          expect(bitsOf(scaleValues(scaleBytes(scales, format), format))).toEqual(bitsOf(scales));
          const weights = { w: graph.constant(x) };
          fakeQuantLinears(graph, weights, { scheme, fused: [["w"]] }, () => ({ clip: undefined }));
          const fake = materialize(weights.w.value).floats();
          const values = dequantizeWeight(q, scheme.groupSize).floats();
          // The factor of a product is 1 / g; a value is divided by g: the last bit may differ.
          for (const [i, value] of values.entries()) {
            expect(Math.abs(value - (fake[i] as number))).toBeLessThanOrEqual(
              Math.abs(value) * 2 ** -22,
            );
          }
          const most = w.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
          const worst = values.reduce(
            (max, v, i) => Math.max(max, Math.abs(v - (w[i] as number))),
            0,
          );
          // Half of the widest step is a sixth of the largest magnitude; scales round by a sixteenth.
          expect(worst).toBeLessThanOrEqual(most * (format === "nvfp4" ? 0.25 : 0.3));
        });
      }),
      { numRuns: 80 },
    );
  });

  it("share the global scale of linears that servers fuse", () => {
    scope(() => {
      const small = Tensor.from(new Float32Array(32).fill(0.01), [2, 16]);
      const large = Tensor.from(new Float32Array(32).fill(3), [2, 16]);
      const none = { clip: undefined, offset: undefined };
      const both = quantizeFloats(
        "nvfp4",
        new Map([
          ["q", { w: small, ...none }],
          ["k", { w: large, ...none }],
        ]),
      );
      const globals = [...both.values()].map(({ global }) => global?.item());
      expect(globals).toEqual([896, 896]);
      const zero = Tensor.from(new Float32Array(16), [1, 16]);
      const only = quantizeFloats("nvfp4", new Map([["q", { w: zero, ...none }]])).get("q");
      expect(only?.global?.item()).toBe(1);
      expect([...dequantizeWeight(only as QuantizedWeight, 16).floats()]).toEqual(
        new Array(16).fill(0),
      );
    });
  });

  it("refuse what is not a number", () => {
    scope(() => {
      const w = Tensor.from(new Float32Array(32).fill(Number.NaN), [1, 32]);
      const weights = new Map([["up", { w, clip: undefined, offset: undefined }]]);
      expectAqError(() => quantizeFloats("mxfp4", weights), "AQ_NUMERIC", '"up" is not a number');
    });
  });

  it("come back from the run state, kept linears as they were", () => {
    const model = tinyModel({ hidden_size: 32, head_dim: 8, intermediate_size: 96 });
    scope(() => {
      const weights = tensorsOf(tinyWeights(model, new Draw(3, "f32")), "f32");
      const kept = new Set(["o"]);
      for (const format of FORMATS) {
        const scheme = float4Scheme(format, 4);
        const { fused } = quantizedLinears({ model, scheme, kept });
        const names = fused.flat();
        expect(names).not.toContain("o");
        const fit = names.filter(
          (key) => (model.linears.find((l) => l.key === key)?.in ?? 0) % scheme.groupSize === 0,
        );
        const quantized = Object.fromEntries(
          quantizeFloats(
            format,
            new Map(
              fit.map((key) => [
                key,
                { w: weights[key] as Tensor, clip: undefined, offset: undefined },
              ]),
            ),
          ),
        );
        expect(fit.length).toBeGreaterThan(2);
        const others = Object.fromEntries(
          Object.entries(weights).filter(([key]) => !(key in quantized)),
        );
        const run = new RunState(tempFolder());
        run.writeBlock(0, model, { quantized, others }, {});
        const file = run.openBlock(0);
        const back = file.load(0, model, scheme.groupSize);
        file.close();
        for (const key of fit) {
          const [own, read] = [quantized[key], back.quantized[key]] as [
            QuantizedWeight,
            QuantizedWeight,
          ];
          expect(read.zero).toBeUndefined();
          expect(read.codes.read()).toEqual(own.codes.read());
          expect(read.scale.read()).toEqual(own.scale.read());
          expect(read.global?.item()).toBe(own.global?.item());
        }
        expect(back.others["o"]?.read()).toEqual(weights["o"]?.read());
      }
    });
  });
});

describe("activations in 4-bit floats", () => {
  it("leave q, k and v and what is kept alone, and take a global scale from outside", () => {
    scope(() => {
      const graph = new Eager();
      const scheme = float4Scheme("nvfp4", 4);
      const values = Float32Array.from(new Draw(5, "f32").normal([3, 16]).data);
      const x = graph.constant(Tensor.from(values, [3, 16]));
      const globals = new Map([["norm1", graph.constant(Tensor.from(Float32Array.of(64)))]]);
      const hook = tokenQuantizers(scheme, { globals, plain: new Set(["down"]) });
      expect(hook.apply(graph, "q", x, 8)).toBe(x);
      expect(hook.apply(graph, "down", x, 0)).toBe(x);
      expect(hook.apply(graph, "norm1", x, 0).value.float4?.source?.global?.item()).toBe(64);
      const own = hook.apply(graph, "norm2", x, 0).value.float4?.source?.global?.item() as number;
      const most = x.value.tensor.floats().reduce((max, v) => Math.max(max, Math.abs(v)), 0);
      expect(own).toBeCloseTo(2688 / most, 2);
      expect(tokenQuantizers(float4Scheme("mxfp4", 16), {}).apply(graph, "norm1", x, 0)).toBe(x);
    });
  });
});

describe("schemes of 4-bit floats", () => {
  it("are called by their names and have no settings of their own", () => {
    expect(schemeName(float4Scheme("nvfp4", 4))).toBe("NVFP4");
    expect(schemeName(float4Scheme("mxfp4", 16))).toBe("MXFP4A16");
    const scheme = float4Scheme("nvfp4", 4);
    expect(checkScheme(scheme)).toBe(scheme);
    expectAqError(() => checkScheme({ ...scheme, groupSize: 32 }), "AQ_ARG", "groups of 16");
    expectAqError(
      () => checkScheme({ ...scheme, numbers: "fp5" as "nvfp4" }),
      "AQ_ARG",
      "nvfp4 or mxfp4",
    );
  });
});

describe("bytes of scales", () => {
  it("cover every e4m3 number and power of two", () => {
    const all = Uint8Array.from({ length: 127 }, (_, byte) => byte);
    expect(scaleBytes(scaleValues(all, "nvfp4"), "nvfp4")).toEqual(all);
    expect(scaleValues(Uint8Array.of(1, 0x38, 0x7e), "nvfp4")).toEqual(
      Float32Array.of(2 ** -9, 1, 448),
    );
    const exponents = Uint8Array.from({ length: 254 }, (_, i) => i + 1);
    expect(scaleBytes(scaleValues(exponents, "mxfp4"), "mxfp4")).toEqual(exponents);
    expect(scaleValues(Uint8Array.of(127, 126), "mxfp4")).toEqual(Float32Array.of(1, 0.5));
  });
});
