// Where the transforms start: the published formula, written down a second time in float64.
import { describe, expect, it } from "vitest";
import { siteName, startSites } from "../lib/affine/sites.ts";
import { EXACT_STYLE } from "../lib/affine/style.ts";
import { scope } from "../lib/tensor/scope.ts";
import { difference } from "./helpers/compare.ts";
import { Draw } from "./helpers/random.ts";
import { tensorsOf, tinyModel, tinyWeights } from "./helpers/tiny-block.ts";
import type { Value } from "./helpers/value.ts";

const model = tinyModel();
const { hidden, mlp, heads, kvHeads, headDim: D } = model.shape;
const draw = new Draw(31, "f32");
const weights = tinyWeights(model, draw);
/** max |x| of each channel; one is zero and one is huge. */
const activations: Record<string, Float64Array> = Object.fromEntries(
  [
    ["norm1", hidden],
    ["norm2", hidden],
    ["o", heads * D],
    ["down", mlp],
  ].map(([name, size]) => {
    const { data } = draw.uniform([size as number], 0.01, 4);
    data[0] = 0;
    data[1] = 1000;
    return [name, data.map(Math.fround)];
  }),
);

function starts(alpha: number) {
  return scope(() => {
    const result = startSites(model.sites, {
      shape: model.shape,
      weights: tensorsOf(weights, "f32"),
      statistics: {
        max: new Map(
          Object.entries(activations).map(([name, data]) => [name, Float32Array.from(data)]),
        ),
        middle: new Map(),
      },
      alpha,
      scheme: { wbits: 4, abits: 16, groupSize: 0, symmetric: false },
      rotated: false,
      style: EXACT_STYLE,
    });
    return { result };
  }).result;
}

/** max |w| of column j over the rows of several weights. */
function columnMax(keys: readonly string[], j: number): number {
  const columns = keys.flatMap((key) => {
    const { data, shape } = weights[key] as Value;
    const width = shape[1] as number;
    return Array.from({ length: shape[0] as number }, (_, i) => Math.abs(data[i * width + j] ?? 0));
  });
  return Math.max(...columns);
}

function scale(activation: number, weight: number, alpha: number): number {
  const quotient = Math.max(activation, 1e-5) ** alpha / Math.max(weight, 1e-5) ** (1 - alpha);
  return Math.max(quotient, 1e-5);
}

function expectClose(name: string, expected: readonly number[], alpha: number): void {
  const start = starts(alpha).get(name);
  const tolerance = { rtol: 1e-6, atol: 1e-6 };
  expect(difference(name, start?.data ?? [], expected, tolerance)).toBeUndefined();
}

describe.each([0.5, 0, 1, 0.3])("with alpha %d", (alpha) => {
  it.each([
    ["norm1", ["q", "k", "v"]],
    ["norm2", ["gate", "up"]],
  ])("the logs of %s move large activations into its linears", (norm, consumers) => {
    const expected = Array.from({ length: hidden }, (_, j) =>
      Math.log(scale(activations[norm]?.[j] ?? 0, columnMax(consumers, j), alpha)),
    );
    expectClose(`norm.${norm}.log_s`, expected, alpha);
  });

  it("the logs of updown have the mean zero", () => {
    const logs = Array.from({ length: mlp }, (_, j) =>
      Math.log(scale(activations["down"]?.[j] ?? 0, columnMax(["down"], j), alpha)),
    );
    const mean = logs.reduce((sum, x) => sum + x, 0) / mlp;
    expectClose(
      "updown.log_s",
      logs.map((x) => x - mean),
      alpha,
    );
  });

  it("the matrices of vo are diagonal, with the largest of each query group", () => {
    const group = heads / kvHeads;
    const expected = Array.from({ length: kvHeads * D * D }, (_, at) => {
      const [kv, i, j] = [Math.floor(at / (D * D)), Math.floor(at / D) % D, at % D];
      if (i !== j) return 0;
      const columns = Array.from({ length: group }, (__, g) => (kv * group + g) * D + i);
      const activation = Math.max(...columns.map((c) => activations["o"]?.[c] ?? 0));
      return scale(activation, Math.max(...columns.map((c) => columnMax(["o"], c))), alpha);
    });
    expectClose("vo.S", expected, alpha);
  });
});

describe("the starts", () => {
  it("are one for every parameter of every site; the matrices alone are masked", () => {
    const all = starts(0.5);
    expect([...all].map(([name, { shape, masked }]) => [name, shape, masked])).toEqual([
      ["updown.log_s", [mlp], false],
      ["norm.norm1.log_s", [hidden], false],
      ["norm.norm2.log_s", [hidden], false],
      ["vo.S", [kvHeads, D, D], true],
      ["qk-pairs.log_r", [kvHeads, D / 2], false],
      ["qk-pairs.theta", [kvHeads, D / 2], false],
    ]);
    expect(new Set(model.sites.map(siteName)).size).toBe(model.sites.length);
  });

  it("leave queries and keys alone: no turn, no scale", () => {
    const all = starts(0.5);
    for (const name of ["qk-pairs.log_r", "qk-pairs.theta"]) {
      expect(all.get(name)?.data.every((x) => x === 0)).toBe(true);
    }
  });

  it("need statistics of the activations", () => {
    scope(() => {
      const context = {
        shape: model.shape,
        weights: tensorsOf(weights, "f32"),
        statistics: {
          max: new Map<string, Float32Array>(),
          middle: new Map<string, Float32Array>(),
        },
        alpha: 0.5,
        scheme: { wbits: 4, abits: 16, groupSize: 0, symmetric: false },
        rotated: false,
        style: EXACT_STYLE,
      };
      expect(() => startSites(model.sites, context)).toThrow("down");
    });
  });
});
