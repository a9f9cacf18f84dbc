// The sites as the published recipes have them, and the matrix behind a norm: what they fold, where
// they start, and what keeps them invertible.
import { describe, expect, it } from "vitest";
import { maskOfEpoch } from "../lib/affine/gradual-mask.ts";
import type { StartContext, StartValue } from "../lib/affine/site.ts";
import { addedBySites, constants, foldSites, startSites } from "../lib/affine/sites.ts";
import { EXACT_STYLE, isEquivalent, PUBLISHED_STYLE, sitesInStyle } from "../lib/affine/style.ts";
import { Eager } from "../lib/autograd/graph.ts";
import { Parameter } from "../lib/calibration/parameters.ts";
import { recipeOf } from "../lib/calibration/recipe.ts";
import type { Model } from "../lib/models/family.ts";
import { opt } from "../lib/models/opt.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { Draw } from "./helpers/random.ts";
import { toTensor } from "./helpers/run-op.ts";
import {
  blockOutput,
  relativeChange,
  tensorsOf,
  tinyModel,
  tinyWeights,
  type Values,
} from "./helpers/tiny-block.ts";
import type { Value } from "./helpers/value.ts";

const bare = { num_key_value_heads: 4, attention_bias: false, mlp_bias: false };
const llama = tinyModel(bare);
const optModel = opt.open(
  {
    hidden_size: 8,
    num_attention_heads: 2,
    ffn_dim: 12,
    num_hidden_layers: 1,
    vocab_size: 16,
    max_position_embeddings: 64,
  },
  () => true,
);
const STYLES = {
  w4a4: PUBLISHED_STYLE,
  weights: recipeOf("paper-weight-only").transforms,
  ours: { ...EXACT_STYLE, norms: "full" as const },
};

function contextOf(model: Model, weights: Values, style: StartContext["style"]): StartContext {
  const draw = new Draw(3, "f32");
  const { hidden, mlp, heads, headDim } = model.shape;
  const sizes = { norm1: hidden, norm2: hidden, o: heads * headDim, down: mlp };
  const each = (f: (size: number) => Float64Array) =>
    new Map(Object.entries(sizes).map(([name, size]) => [name, Float32Array.from(f(size))]));
  return {
    shape: model.shape,
    weights: tensorsOf(weights, "f32"),
    statistics: {
      max: each((size) => draw.uniform([size], 0.5, 2).data),
      middle: each((size) => draw.normal([size]).data),
    },
    alpha: 0.5,
    scheme: { wbits: 4, abits: 4, groupSize: 0, symmetric: false },
    rotated: false,
    style,
  };
}

/** Starting values moved at random, matrices by off-diagonals that leave them invertible. */
function moved(starts: ReadonlyMap<string, StartValue>, draw: Draw): [string, Value][] {
  return [...starts].map(([name, { data, shape, shift }]) => {
    const noise = draw.normal(shape, shift ? 0.5 : 0.1).data;
    return [
      name,
      draw.value(
        Float64Array.from(data, (x, i) => x + (noise[i] ?? 0)),
        shape,
      ),
    ];
  });
}

/** How far folding every site of a style moves the output of a block in float64. */
function change(model: Model, style: StartContext["style"]): { output: number; added: string[] } {
  return scope(() => {
    const draw = new Draw(71, "f64");
    const plain = tinyWeights(model, draw);
    const specs = sitesInStyle(model.sites, style);
    const starts = startSites(specs, contextOf(model, plain, style));
    const graph = new Eager();
    const weights = tensorsOf(plain, "f64");
    const folded = constants(graph, weights);
    const parameters = moved(starts, draw).map(
      ([name, value]) => [name, graph.constant(toTensor(value, F64))] as const,
    );
    foldSites(specs, graph, folded, new Map(parameters), model.shape, () => ({ band: 2, sf: 0.5 }));
    const x = toTensor(draw.normal([2, 6, model.shape.hidden]), F64);
    const [before, after] = [weights, folded].map((w) => blockOutput(model, w, x).read());
    const added = Object.keys(folded).filter((key) => !(key in weights));
    expect(added.sort()).toEqual(
      addedBySites(specs, style)
        .filter((key) => !(key in weights))
        .sort(),
    );
    return { output: relativeChange(before ?? [], after ?? [], x.read()), added };
  });
}
const F64 = { device: "cpu", dtype: "f64" } as const;

describe("folding in the published styles and with matrices behind the norms", () => {
  it("keeps the function of an OPT block, whose q-k has no positions in between", () => {
    for (const style of Object.values(STYLES))
      expect(change(optModel, style).output).toBeLessThan(1e-12);
    expect(change(optModel, STYLES.w4a4).added).toEqual([]);
    expect(change(optModel, STYLES.weights).added).toEqual(["norm1.residue", "norm2.residue"]);
  });

  it("keeps the function of a LLaMA block but for the published q-k", () => {
    const exactQk = (style: StartContext["style"]) => ({ ...style, qk: "exact" as const });
    for (const style of Object.values(STYLES)) {
      expect(change(llama, exactQk(style)).output).toBeLessThan(1e-12);
    }
    for (const style of [STYLES.w4a4, STYLES.weights]) {
      expect(change(llama, style).output).toBeGreaterThan(1e-3);
      expect(isEquivalent(sitesInStyle(llama.sites, style), llama.sites)).toBe(false);
      expect(isEquivalent(sitesInStyle(optModel.sites, style), optModel.sites)).toBe(true);
    }
  });

  it("adds biases to a LLaMA block where there are shifts everywhere", () => {
    const biases = ["gate", "k", "o", "q", "up", "v"].map((key) => `${key}.bias`);
    const added = [...biases, "norm1.beta", "norm2.beta"].sort();
    expect(change(llama, STYLES.w4a4).added).toEqual(added);
    const residues = ["norm1.residue", "norm2.residue"];
    expect(change(llama, STYLES.weights).added).toEqual([...added, ...residues].sort());
    expect(change(llama, STYLES.ours).added).toEqual(residues);
  });
});

describe("published starts", () => {
  it("take one consumer's largest weight with its sign, and no shift of a LLaMA block", () => {
    scope(() => {
      const draw = new Draw(5, "f32");
      const weights = tinyWeights(llama, draw);
      const context = contextOf(llama, weights, STYLES.w4a4);
      const starts = startSites(sitesInStyle(llama.sites, STYLES.w4a4), context);
      const { data, shape } = weights["up"] as Value;
      const width = shape[1] as number;
      const column = (j: number) => data.filter((_, i) => i % width === j);
      const expected = Array.from({ length: width }, (_, j) => {
        const x = context.statistics.max.get("norm2")?.[j] ?? 0;
        return Math.sqrt(x) / Math.sqrt(Math.max(...column(j), 1e-5));
      });
      const start = starts.get("norm.norm2.s");
      // Activations pass through float16, which holds three digits.
      for (const [j, value] of (start?.data ?? []).entries()) {
        expect(value / (expected[j] ?? 0)).toBeCloseTo(1, 3);
      }
      for (const site of ["norm.norm1", "norm.norm2", "vo"]) {
        expect(
          starts.get(`${site}.shift`)?.data.every((x) => x === 0),
          site,
        ).toBe(true);
      }
      const middle = { ...STYLES.w4a4, shiftStart: "middle" } as const;
      const others = startSites(sitesInStyle(llama.sites, middle), { ...context, style: middle });
      expect(others.get("vo.shift")?.data).toEqual(context.statistics.middle.get("o"));
    });
  });
});

describe("the published rule of a step", () => {
  it("keeps entries away from zero, shifts and zeros excepted, and projects nothing", async () => {
    const matrices = { maskOf: () => ({ band: 1, sf: 1 }), dominance: 0, floor: 0.01 };
    const start = { data: Float32Array.of(1, 5, 0, 5, 0.001, -5, 0, 5, -1), shape: [1, 3, 3] };
    const matrix = new Parameter("vo.S", "transform", { ...start, masked: true });
    const gradient = Tensor.from(new Float32Array(9), [1, 3, 3]);
    const margins = Parameter.update([{ parameter: matrix, gradient, rate: 0 }], {
      control: { rate: 1, step: 1 },
      weightDecay: 0,
      matrices,
    });
    expect(margins?.item()).toBeLessThan(0);
    const kept = Float32Array.of(1, 5, 0, 5, 0.01, -5, 0, 5, -1);
    expect(matrix.value.floats()).toEqual(kept);
    const values = { data: Float32Array.of(-0.001), shape: [1], masked: false };
    const scale = new Parameter("norm.norm1.s", "transform", values);
    const shift = new Parameter("norm.norm1.shift", "transform", { ...values, shift: true });
    for (const p of [scale, shift]) p.keepAway(0.01);
    expect(scale.value.item()).toBeCloseTo(-0.01, 7);
    expect(shift.value.item()).toBeCloseTo(-0.001, 7);
    for (const p of [matrix, scale, shift, gradient, margins]) p?.dispose();
  });

  it("widens the mask from the diagonal alone to everything", () => {
    const bands = (epochs: number, size: number) =>
      Array.from(
        { length: epochs },
        (_, e) => maskOfEpoch(e, epochs, size, 1, "published").band + 1,
      );
    expect(bands(20, 128)).toEqual([
      1, 7, 14, 21, 27, 34, 41, 47, 54, 61, 67, 74, 81, 87, 94, 101, 107, 114, 121, 128,
    ]);
    // The published arithmetic loses the last band here, and no other size of a known model.
    expect(bands(20, 4096).slice(-2)).toEqual([3880, 4095]);
    expect(bands(1, 32)).toEqual([32]);
  });
});
